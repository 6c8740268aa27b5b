"""Calibrated quantization through the command line: stops, resumes, and refuses what cannot work.

Usage: quantize_test.py NIBBLE_BINARY SOURCE_DIR SHARED_DATA
"""
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

NIBBLE, SOURCE, SHARED = (pathlib.Path(p).resolve() for p in sys.argv[1:4])
STORIES = SHARED / "models" / "stories260K"
TEXT = SOURCE / "examples" / "text" / "calibration.txt"


def run(*args, status=0):
    done = subprocess.run([NIBBLE, *map(str, args)], capture_output=True, text=True, timeout=900)
    assert done.returncode == status, (
        f"{args}: want exit {status}, got {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def hashes(directory):
    """Of all files but quantize.json, which holds times."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.iterdir()) if path.name != "quantize.json"}


@unittest.skipUnless(STORIES.is_dir(), "the reference model is absent")
class QuantizeTest(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="nibble-quantize-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def command(self, method, output, *more):
        return ["quantize", STORIES, "--method", method, "--group-size", 32, "--calibration", TEXT,
                "--samples", 24, "--sequence-length", 256, "--threads", 2, "--output", output, *more]

    def kill_after(self, layer, method, output):
        """Kills a run when it has finished this layer; another one where it was done by then."""
        mark = pathlib.Path(f"{output}.quantizing") / f"layer-{layer:05}.safetensors"
        for _ in range(20):
            process = subprocess.Popen([NIBBLE, *map(str, self.command(method, output))],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not mark.exists():
                time.sleep(0.0005)
            process.kill()
            process.wait()
            if not output.exists():
                self.assertTrue(mark.exists(), "the run ended before it was killed")
                return
            # A complete checkpoint, beside which such a kill may leave its working folder.
            shutil.rmtree(output)
            shutil.rmtree(mark.parent, ignore_errors=True)
        self.fail("no run was killed before its end")

    def test_kills_leave_no_trace(self):
        for method in ("gptq", "awq", "awq+gptq"):
            with self.subTest(method=method):
                whole, killed = (self.dir / f"{method}-{name}" for name in ("whole", "killed"))
                run(*self.command(method, whole))
                for layer in (0, 1, 3):
                    self.kill_after(layer, method, killed)
                run(*self.command(method, killed))
                self.assertEqual(hashes(killed), hashes(whole))
                self.assertEqual({p.name for p in self.dir.glob(f"{method}-*")},
                                 {killed.name, whole.name})

    def test_record_and_reading_back(self):
        out = self.dir / "gptq"
        run(*self.command("gptq", out, "--grid", "asym", "--format", "gptq_v2"))
        record = json.loads((out / "quantize.json").read_text())
        self.assertEqual(record["calibration"], {"source": TEXT.name, "samples": 24,
                                                 "sequence_length": 256})
        self.assertLess(record["mean_error_ratio"], 1)
        self.assertTrue(all(module["damping"] > 0 for module in record["modules"]))
        run("perplexity", out, "--text", TEXT, "--context", 256, "--max-windows", 2,
            "--reference", STORIES)

    def test_own_words(self):
        out = self.dir / "own"
        run("quantize", STORIES, "--method", "gptq", "--samples", 4, "--sequence-length", 64,
            "--output", out)
        notes = json.loads((out / "quantize.json").read_text())["notes"]
        self.assertTrue(any("wrote itself" in note for note in notes), notes)

    def test_json_lines(self):
        lines = self.dir / "texts.jsonl"
        text = TEXT.read_text()
        lines.write_text("\n".join(json.dumps({"text": text[i:i + 4000]})
                                   for i in range(0, 40000, 4000)) + "\n")
        out = self.dir / "lines"
        run("quantize", STORIES, "--method", "awq", "--calibration", lines, "--samples", 4,
            "--sequence-length", 128, "--output", out)
        lines.write_text('{"text": "one"}\n{"txt": 1}\n')
        done = run("quantize", STORIES, "--method", "awq", "--calibration", lines, "--samples", 4,
                   "--sequence-length", 128, "--output", self.dir / "bad", status=3)
        self.assertIn("line 2", done.stderr)

    def test_chats(self):
        chats = self.dir / "chats.jsonl"
        text = TEXT.read_text()
        chats.write_text("\n".join(json.dumps({"messages": [
            {"role": "user", "content": text[i:i + 2000]},
            {"role": "assistant", "content": text[i + 2000:i + 4000]}]}) for i in range(0, 40000, 4000)))
        command = ("quantize", STORIES, "--method", "awq", "--calibration", chats, "--samples", 4,
                   "--sequence-length", 128, "--output")
        self.assertIn("no chat template", run(*command, self.dir / "none", status=3).stderr)
        losses = {}
        for template in ("zephyr", "llama2"):
            run(*command, self.dir / template, "--chat-template", template)
            record = json.loads((self.dir / template / "quantize.json").read_text())
            losses[template] = json.dumps(record["modules"])
            self.assertIn(f"chat template: {template}", record["notes"])
        self.assertNotEqual(losses["zephyr"], losses["llama2"])
        bad = self.dir / "bad.jinja"
        bad.write_text("{{ messages|wordwrap }}")
        self.assertIn("'wordwrap'", run(*command, self.dir / "bad", "--chat-template", bad,
                                        status=3).stderr)
        # Asked for, it must be there, though nothing wants it.
        command = [TEXT if argument == chats else argument for argument in command]
        run(*command, self.dir / "text", "--chat-template", bad, status=3)

    def test_refusals(self):
        short = self.dir / "short.txt"
        short.write_text("Too short.")
        done = run("quantize", STORIES, "--method", "gptq", "--calibration", short, "--output",
                   self.dir / "x", status=3)
        self.assertIn("too few for one calibration sequence", done.stderr)
        run(*self.command("gptq", self.dir, "--grid", "asym"), status=2)
        run(*self.command("gptq", self.dir / "y", "--grid", "asym", "--format", "gptq"), status=2)
        run(*self.command("gptq", self.dir / "z", "--order", "sideways"), status=2)
        run(*self.command("gptq", self.dir / "z", "--asymmetric-calibration", "1.5"), status=2)
        self.assertEqual(list(self.dir.iterdir()), [short])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
