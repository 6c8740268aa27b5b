#!/usr/bin/env python3
"""Runs the program as a user would: outputs, exit statuses, and that bad input leaves nothing behind.

Usage: cli_test.py NIBBLE_BINARY SOURCE_DIR SHARED_DATA
"""
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

NIBBLE, SOURCE, SHARED = (pathlib.Path(p).resolve() for p in sys.argv[1:4])
STORIES = SHARED / "models" / "stories260K"
SAMPLE = SOURCE / "examples" / "mmlu-sample"
TEXT = SOURCE / "examples" / "text" / "perplexity.txt"
SMOLLM2 = SOURCE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
# Sanitizers take memory of their own, so that nothing can be said of a process's.
SANITIZED = b"__asan_init" in NIBBLE.read_bytes()


def run(*args, status=0, timeout=600):
    done = subprocess.run([NIBBLE, *map(str, args)], capture_output=True, text=True,
                          timeout=timeout)
    assert done.returncode == status, (
        f"{args}: want exit {status}, got {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def peak_resident(*args):
    """The highest resident size in bytes of the process that runs this command."""
    process = subprocess.Popen([NIBBLE, *map(str, args)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{args}: exit {process.returncode}"
    return usage.ru_maxrss * 1024


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="nibble-cli-"))
        self.addCleanup(shutil.rmtree, self.dir)

    def refused(self, *args, status, contains):
        """The command fails with this status, says so, and writes nothing."""
        before = sorted(self.dir.rglob("*"))
        error = run(*args, status=status).stderr
        for part in [contains] if isinstance(contains, str) else contains:
            self.assertIn(part, error)
        self.assertEqual(sorted(self.dir.rglob("*")), before, "something was left behind")


class Usage(Case):
    def test_help_teaches_by_example(self):
        commands = run("--help").stdout
        for command in ("inspect", "generate", "quantize", "convert", "score", "perplexity",
                        "evaluate", "bench", "study", "report"):
            self.assertIn(command, commands)
            self.assertIn(f"nibble {command} ", run(command, "--help").stdout)

    def test_wrong_usage(self):
        out = self.dir / "out"
        self.refused("quantise", status=2, contains="")
        self.refused("generate", status=2, contains="model")
        self.refused("generate", "random:tiny", "--token-ids", "1,x", status=2, contains="1,x")
        self.refused("quantize", "random:tiny", "--method", "magic", "--output", out, status=2,
                     contains="magic")
        self.refused("quantize", "random:tiny", "--grid", "sym", "--format", "awq", "--output", out,
                     status=2, contains="gptq")
        self.refused("quantize", "random:tiny", "--output", self.dir, status=2, contains="exists")
        self.refused("bench", "random:tiny", "--batch-sizes", "0", status=2, contains="0")
        self.refused("inspect", "random:tiny", "--device", "tpu", status=2, contains="tpu")
        self.refused("inspect", "random:tiny", "--kv-cache", "int4", status=2, contains="int4")
        self.refused("generate", "random:tiny", "--token-ids", "1,2", "--device", "cpu", "--kv-cache",
                     "fp8", status=2, contains="GPU")
        self.refused("inspect", "random:tiny", "--device", "cpu", "--memory-fraction", "0", status=2,
                     contains="--memory-fraction")

    def test_devices_and_presets_that_are_not_there(self):
        self.refused("inspect", "random:gigantic", status=2, contains="gigantic")
        self.refused("inspect", self.dir / "absent", status=3, contains="absent")
        self.refused("bench", "random:tiny", "--device", "cuda:7", status=3, contains="cuda:7")


class Synthetic(Case):
    def test_accuracy_of_random_weights_is_refused(self):
        for args in (["score", "random:tiny", "--token-ids", "1,2"],
                     ["perplexity", "random:tiny", "--text", TEXT],
                     ["evaluate", "random:tiny", "--data", SAMPLE]):
            self.refused(*args, status=3, contains="--allow-random")
        run("score", "random:tiny", "--token-ids", "1,2,3", "--allow-random")

    def test_quantize_convert_and_read_back(self):
        made, quantized = self.dir / "made", self.dir / "quantized"
        run("convert", "random:tiny", "--output", made)
        self.assertTrue(json.loads((made / "config.json").read_text())["nibble_synthetic"])
        same = [run("score", model, "--token-ids", "5,6,7,8", "--allow-random").stdout
                for model in ("random:tiny", made)]
        self.assertEqual(*same)
        for grid, layout in (("asym", "awq"), ("sym", "gptq"), ("sym-full", "gptq_v2")):
            out = quantized / grid
            run("quantize", made, "--group-size", 32, "--grid", grid, "--format", layout,
                "--output", out)
            config = json.loads((out / "config.json").read_text())["quantization_config"]
            self.assertEqual(config["bits"], 4)
            self.assertEqual(config["group_size"], 32)
            scores = [run("score", out, "--token-ids", "5,6,7,8", "--allow-random", "--device",
                          device, "--dtype", "f32", "--output", self.dir / f"{grid}-{device}")
                      for device in ("cpu", "ref")]
            self.assertTrue(scores)
            cpu, ref = (json.loads((self.dir / f"{grid}-{d}").read_text())["logprob"]
                        for d in ("cpu", "ref"))
            self.assertAlmostEqual(cpu, ref, delta=1e-3)

    def test_bench_adds_up(self):
        out = self.dir / "bench.json"
        run("bench", "random:tiny", "--batch-sizes", "1,3", "--input-length", 20,
            "--output-length", 9, "--repetitions", 3, "--output", out)
        document = json.loads(out.read_text())
        self.assertEqual(document["schema"], "nibble.bench/1")
        inspected = self.dir / "inspect.json"
        run("inspect", "random:tiny", "--batch-sizes", "1,3", "--input-length", 20,
            "--output-length", 9, "--output", inspected)
        predicted = json.loads(inspected.read_text())["predicted_memory"]["by_batch_size"]
        for entry, prediction in zip(document["runs"], predicted, strict=True):
            batch = entry["batch_size"]
            self.assertEqual(len(entry["repetitions"]), 3)
            seconds = entry["prefill_seconds"] + entry["decode_seconds"]
            self.assertAlmostEqual(entry["output_tokens_per_second"], batch * 9 / seconds, delta=1)
            self.assertAlmostEqual(entry["decode_tokens_per_second"],
                                   batch * 8 / entry["decode_seconds"], delta=1)
            memory = entry["peak_memory_bytes"]
            for part in ("weights", "kv_cache", "workspace", "total"):
                self.assertEqual(memory[part], prediction["bytes"][part], part)
            self.assertEqual(memory["total"],
                             memory["weights"] + memory["kv_cache"] + memory["workspace"])

    @unittest.skipIf(SANITIZED, "a sanitizer's memory is not nibble's")
    def test_inspect_predicts_the_process(self):
        self.check_process("random:smollm2-135m", within=0.05)
        # Code and libraries are nearly all of it.
        self.check_process("random:tiny", within=0.05, slack=3 << 20)

    @unittest.skipIf(SANITIZED, "a sanitizer's memory is not nibble's")
    @unittest.skipUnless(SMOLLM2.exists(), f"{SMOLLM2} is absent")
    def test_inspect_predicts_the_process_of_a_gguf(self):
        self.check_process(SMOLLM2, within=0.05)
        predicted = self.predictions(SMOLLM2, "--batch-sizes", 1, "--input-length", 6,
                                     "--output-length", 2)[0]["process_bytes"]
        used = peak_resident("score", SMOLLM2, "--token-ids", "1,2,3,4,5,6,7,8")
        self.assertLess(abs(predicted - used), 0.05 * used, (predicted, used))

    def predictions(self, model, *options):
        out = self.dir / "inspect.json"
        run("inspect", model, *options, "--output", out)
        return json.loads(out.read_text())["predicted_memory"]["by_batch_size"]

    def check_process(self, model, within, slack=0):
        options = ["--batch-sizes", "1,16", "--input-length", 32, "--output-length", 4]
        out = self.dir / "bench.json"
        run("bench", model, *options, "--repetitions", 1, "--output", out)
        for entry, predicted in zip(json.loads(out.read_text())["runs"],
                                    self.predictions(model, *options), strict=True):
            used = entry["peak_memory_bytes"]["process"]
            self.assertLessEqual(abs(predicted["process_bytes"] - used), within * used + slack,
                                 (model, predicted, used))

    def test_what_a_killed_write_left_is_removed(self):
        out = self.dir / "made"
        ended = subprocess.Popen(["true"])
        ended.wait()
        left = self.dir / f"made.partial-{ended.pid}"
        live = self.dir / f"made.partial-{os.getpid()}"
        for directory in (left, live):
            directory.mkdir()
            (directory / "model.safetensors").write_bytes(b"half")
        error = run("convert", "random:tiny", "--output", out).stderr
        self.assertIn(f"{left}: removed", error)
        self.assertEqual(sorted(self.dir.iterdir()), [out, live])

    def test_a_batch_beyond_memory_is_refused_with_the_largest_that_fits(self):
        self.refused("bench", "random:llama-2-7b", "--batch-sizes", "100000", status=4,
                     contains=["100000", "available"])

    def test_a_share_of_the_memory_is_kept_to(self):
        # About 16 MB on a machine of 16 GB: nothing of this model fits, and 4 bits would take less.
        self.refused("generate", "random:llama-2-7b", "--token-ids", "1", "--device", "cpu",
                     "--memory-fraction", "0.001", status=4, contains="at 4 bits the weights would")

    def test_a_context_beyond_the_models_is_refused(self):
        self.refused("bench", "random:tiny", "--input-length", 512, status=3, contains="512")


@unittest.skipUnless(STORIES.is_dir(), f"{STORIES} is absent")
class Stories(Case):
    def broken(self, change):
        """A copy of stories260K after `change(directory)`."""
        copy = self.dir / "model"
        shutil.copytree(STORIES, copy)
        for path in copy.iterdir():
            path.chmod(0o644)
        copy.chmod(0o755)
        change(copy)
        return copy

    def test_generates_its_story(self):
        text = run("generate", STORIES, "--max-tokens", 120).stdout
        self.assertTrue(text.startswith(
            "Once upon a time, there was a little girl named Lily. She loved to play outside in "
            "the park. One day, she saw a big, red ball."))

    def test_chat_templates(self):
        template = self.dir / "own.jinja"
        template.write_text("{{ bos_token }}{{ messages[0].content|trim }}")
        chat = ("generate", STORIES, "--max-tokens", 20, "--prompt", " Tom had a dog ", "--chat")
        self.assertEqual(run(*chat, "--chat-template", template).stdout,
                         run("generate", STORIES, "--max-tokens", 20, "--prompt",
                             "Tom had a dog").stdout)
        run(*chat, "--chat-template", "llama2")
        self.refused(*chat, status=3, contains=["no chat template", "--chat-template"])
        self.refused(*chat, "--chat-template", "nobodys", status=3, contains=["nobodys", "zephyr"])
        self.refused("generate", STORIES, "--chat-template", "llama2", status=2, contains="--chat")
        template.write_text("\n{% include 'x' %}")
        # Before the weights are loaded, and before it is seen that there is no tokenizer.
        self.refused("generate", "random:llama-2-7b", "--chat", "--chat-template", template, status=3,
                     contains=["line 2", "'include'", str(template)])

        def with_templates(copy):
            (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": [
                {"name": "tool_use", "template": "{{ bos_token }}Tom had a dog"},
                {"name": "default", "template": "{{ raise_exception('not today') }}"}]}))
        model = self.broken(with_templates)
        self.refused("generate", model, "--chat", status=3, contains="not today")
        self.assertEqual(run("generate", model, "--max-tokens", 20, "--chat", "--chat-template",
                             "tool_use").stdout,
                         run(*chat[:-2], "Tom had a dog").stdout)

    def test_score_and_perplexity(self):
        out = self.dir / "score.json"
        run("score", STORIES, "--text", "Once upon a time", "--top", 2, "--output", out)
        tokens = json.loads(out.read_text())["tokens"]
        self.assertIsNone(tokens[0]["logprob"])
        self.assertEqual(tokens[0]["id"], 1)
        self.assertEqual(len(tokens[1]["top"]), 2)
        self.assertLessEqual(tokens[1]["logprob"], tokens[1]["top"][0]["logprob"])
        empty = self.dir / "empty.txt"
        empty.write_text("")
        self.refused("perplexity", STORIES, "--text", empty, status=3, contains="empty")
        self.refused("perplexity", STORIES, "--text", TEXT, "--context", 1024, status=3,
                     contains="512")
        run("perplexity", STORIES, "--text", TEXT, "--max-windows", 2)

    def test_bad_models(self):
        def config(**members):
            def change(directory):
                path = directory / "config.json"
                path.write_text(json.dumps(json.loads(path.read_text()) | members))
            return change

        def truncate(directory):
            path = directory / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-1])

        def lie(directory):
            path = directory / "model.safetensors"
            data = path.read_bytes()
            path.write_bytes(struct.pack("<Q", 1 << 62) + data[8:])

        def nan(directory):
            path = directory / "model.safetensors"
            data = bytearray(path.read_bytes())
            size = struct.unpack_from("<Q", data)[0]
            header = json.loads(data[8:8 + size])
            begin = header["model.layers.2.self_attn.v_proj.weight"]["data_offsets"][0]
            struct.pack_into("<f", data, 8 + size + begin, float("nan"))
            path.write_bytes(data)

        for change, contains in (
                (config(architectures=["BertModel"]), "BertModel"),
                (config(hidden_act="gelu"), "gelu"),
                (config(rope_scaling={"rope_type": "yarn", "factor": 2}), "yarn"),
                (config(num_hidden_layers=6), "model.layers.5"),
                (config(num_hidden_layers=4), "model.layers.4"),
                (config(intermediate_size=176), "176"),
                (truncate, "model.safetensors"),
                (lie, "model.safetensors"),
                (lambda d: (d / "config.json").write_text("{"), "config.json"),
                (lambda d: (d / "config.json").unlink(), "config.json"),
                (lambda d: (d / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff"),
                 "tokenizer.model"),
        ):
            model = self.broken(change)
            self.refused("generate", model, "--prompt", "a", "--quiet", status=3,
                         contains=contains)
            shutil.rmtree(model)
        model = self.broken(nan)
        self.refused("quantize", model, "--output", self.dir / "q", status=3,
                     contains=["finite", "model.layers.2.self_attn.v_proj"])

    def test_bad_questions(self):
        data = self.dir / "mmlu"
        shutil.copytree(SAMPLE, data)
        path = data / "test" / "anatomy_test.csv"
        path.write_text("What?,a,b,c,d,E\n")
        self.refused("evaluate", STORIES, "--data", data, status=3,
                     contains=["anatomy_test.csv", "E"])
        path.unlink()
        self.refused("evaluate", STORIES, "--data", data, status=3,
                     contains="anatomy_test.csv")

    def test_evaluate_compares(self):
        first, second = self.dir / "a.json", self.dir / "b.json"
        options = ["--data", SAMPLE, "--shots", 1, "--questions-per-subject", 1, "--scoring",
                   "cloze"]
        run("evaluate", STORIES, *options, "--output", first)
        run("evaluate", STORIES, *options, "--output", second, "--reference", first)
        document = json.loads(second.read_text())
        self.assertEqual(document["schema"], "nibble.evaluate/1")
        self.assertEqual([len(document[k]) for k in ("subjects", "subcategories", "categories")],
                         [57, 17, 4])
        self.assertEqual(document["overall"]["total"], 57)
        self.assertEqual(document["overall"]["comparison"]["difference"], 0)
        self.assertEqual(document["overall"]["comparison"]["flipped"], 0)
        again = self.dir / "c.json"
        run("evaluate", STORIES, *options, "--output", again)
        self.assertEqual(again.read_text(), first.read_text())


@unittest.skipUnless(STORIES.is_dir(), f"{STORIES} is absent")
class Study(Case):
    OPTIONS = ["--methods", "fp16,rtn", "--data", SAMPLE, "--shots", 1, "--questions-per-subject",
               1, "--text", TEXT, "--max-windows", 2, "--batch-sizes", "1,2", "--input-length", 32,
               "--output-length", 8, "--repetitions", 1]

    def test_runs_resumes_and_renders_again(self):
        out = self.dir / "study"
        command = ["study", STORIES, *self.OPTIONS, "--output", out]
        # Interrupted after the first stages, it leaves what was finished.
        process = subprocess.Popen([NIBBLE, *map(str, command)], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        deadline = time.time() + 300
        while not (out / "stages" / "fp16.evaluate_cloze.json").exists() and process.poll() is None:
            self.assertLess(time.time(), deadline)
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=300), 130)
        finished = {p.name: p.stat().st_mtime_ns for p in (out / "stages").iterdir()}
        self.assertIn("fp16.evaluate_cloze.json", finished)
        self.assertFalse((out / "report.html").exists())

        summary = run(*command).stdout
        self.assertIn(str(out / "report.html"), summary)
        for name, time_ns in finished.items():
            self.assertEqual((out / "stages" / name).stat().st_mtime_ns, time_ns, name)
        for name in ("study.json", "report.html", "report.md", "accuracy.csv", "throughput.csv",
                     "memory.csv", "models/rtn/model.safetensors"):
            self.assertTrue((out / name).exists(), name)
        study = json.loads((out / "study.json").read_text())
        self.assertEqual(list(study["methods"]), ["fp16", "rtn"])
        self.assertNotIn("error", study["methods"]["rtn"])
        for key in ("quantize", "evaluate_cloze", "perplexity", "bench"):
            self.assertTrue(study["methods"]["rtn"][key], key)
        self.assertIn("kl_divergence", study["methods"]["rtn"]["perplexity"])

        report = (out / "report.html").read_text()
        (out / "report.html").unlink()
        run("report", out)
        self.assertEqual((out / "report.html").read_text(), report)

        # Load tests stay with the study until others take their place.
        under_load, other = self.dir / "load.json", self.dir / "other.json"
        document = {"schema": "nibble.load-test/1", "model": "the first",
                    "workload": {"input_length": 5, "output_length": 5}, "slo": {},
                    "runs": [{"concurrency": 1, "requests": 4, "completed": 4,
                              "output_tokens_per_second": 10.0, "requests_per_second": 2.0}]}
        under_load.write_text(json.dumps(document))
        other.write_text(json.dumps({**document, "model": "the second"}))
        run("report", out, "--load-test", under_load)
        under_load.unlink()
        for command_again in (["report", out], command):
            run(*command_again)
            self.assertIn("the first", (out / "report.html").read_text())
        self.refused("report", out, "--load-test", out / "study.json", status=3,
                     contains="nibble.load-test/1")
        run("report", out, "--load-test", other)
        self.assertNotIn("the first", (out / "report.html").read_text())
        self.assertIn("the second", (out / "report.md").read_text())

        # A rerun computes nothing; another option reruns only what depends on it.
        stamps = {p.name: p.stat().st_mtime_ns for p in (out / "stages").iterdir()}
        run(*command)
        self.assertEqual(stamps, {p.name: p.stat().st_mtime_ns
                                  for p in (out / "stages").iterdir()})
        run(*[3 if a == 2 else a for a in command])  # --max-windows 3
        changed = {p.name for p in (out / "stages").iterdir()
                   if p.stat().st_mtime_ns != stamps[p.name]}
        self.assertEqual(changed, {"fp16.perplexity.json", "rtn.perplexity.json"})

    def test_a_method_that_fails_does_not_stop_the_others(self):
        out, short = self.dir / "study", self.dir / "short.txt"
        short.write_text("Too short.")
        command = ["study", STORIES, *self.OPTIONS[2:], "--sequence-length", 64, "--samples", 4,
                   "--output", out, "--methods", "fp16,gptq-g32,rtn", "--calibration"]
        summary = run(*command, short, status=3)
        self.assertIn("error: gptq-g32: ", summary.stderr)
        study = json.loads((out / "study.json").read_text())
        self.assertEqual(list(study["methods"]), ["fp16", "gptq-g32", "rtn"])
        self.assertRegex(study["methods"]["gptq-g32"]["error"], "too few")
        for method in ("fp16", "rtn"):
            self.assertNotIn("error", study["methods"][method])
            self.assertTrue(study["methods"][method]["bench"])
        for report in ("report.md", "report.html"):
            self.assertRegex((out / report).read_text(), "gptq-g32 has no quantization.*too few")
        # What is missing is made up for.
        run(*command, TEXT)
        study = json.loads((out / "study.json").read_text())
        self.assertNotIn("error", study["methods"]["gptq-g32"])

    def test_what_is_quantized_again_is_measured_again(self):
        out = self.dir / "study"
        command = ["study", STORIES, *self.OPTIONS[2:], "--sequence-length", 64, "--samples", 16,
                   "--calibration", TEXT, "--methods", "fp16,rtn,gptq-g32", "--device", "cpu",
                   "--output", out]

        def share_and_stages(*more):
            run(*command, *more)
            method = json.loads((out / "study.json").read_text())["methods"]["gptq-g32"]
            return (method["quantize"]["options"]["gptq"]["asymmetric_samples"],
                    {p.name: p.stat().st_mtime_ns for p in (out / "stages").iterdir()})

        share, stages = share_and_stages()
        self.assertEqual(share, 1)
        # The default is what it stands for.
        self.assertEqual(share_and_stages("--asymmetric-samples", 1), (share, stages))
        share, again = share_and_stages("--asymmetric-samples", 0.125)
        self.assertEqual(share, 0.125)
        self.assertEqual({name for name in stages if again[name] != stages[name]},
                         {name for name in stages if name.startswith("gptq-g32.")})

    def test_refuses_before_anything_is_done(self):
        out = self.dir / "study"
        too_long = [600 if a == 32 else a for a in self.OPTIONS]  # --input-length
        self.refused("study", STORIES, *too_long, "--output", out, status=3, contains="600")
        self.refused("study", STORIES, *self.OPTIONS[2:], "--methods", "rtn", "--output", out,
                     status=2, contains="baseline")
        (self.dir / "other").mkdir()
        (self.dir / "other" / "file").write_text("mine")
        self.refused("study", STORIES, *self.OPTIONS, "--output", self.dir / "other", status=2,
                     contains="not a study")
        self.refused("report", self.dir / "other", status=3, contains="study.json")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
