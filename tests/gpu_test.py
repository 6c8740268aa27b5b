"""Whole models on a GPU against the scalar reference: gpu_test.py NIBBLE SHARED_DATA.

Log-probabilities of every fixture, the text of a small model, graphs and batches, quantizing, bad devices.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import unittest

NIBBLE, SHARED = "", ""
# Normalized mean square error of log-probabilities against the reference, by activations' type.
TOLERANCE = {"f16": 1e-5, "bf16": 1e-3}


def nibble(*arguments, status=0):
    """Runs a command and returns its standard output (its errors where `status` is not 0)."""
    done = subprocess.run([NIBBLE, *map(str, arguments), "--quiet"], capture_output=True, text=True)
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stderr}"
    return done.stderr if status else done.stdout


def score(model, ids, *options):
    """Log-probabilities: of each token but the first, and of the likeliest alternatives by token."""
    with tempfile.TemporaryDirectory() as directory:
        output = os.path.join(directory, "score.json")
        nibble("score", model, "--token-ids", ",".join(map(str, ids)), "--top", 10, "--output",
               output, "--allow-random", *options)
        with open(output) as file:
            tokens = json.load(file)["tokens"]
    return tokens[1:]


def models():
    """The models that are there: (name, path)."""
    found = []
    for folder in ("fixtures", "models"):
        root = os.path.join(SHARED, folder)
        for directory, _, files in os.walk(root):
            if "config.json" in files:
                found.append((os.path.relpath(directory, root), directory))
    return sorted(found)


class Models(unittest.TestCase):
    def assert_agrees(self, model, ids, dtype):
        want = score(model, ids, "--device", "ref")
        got = score(model, ids, "--device", "cuda", "--dtype", dtype)
        error = sum((g["logprob"] - w["logprob"]) ** 2 for g, w in zip(got, want))
        total = sum(w["logprob"] ** 2 for w in want)
        self.assertLessEqual(error / total, TOLERANCE[dtype])
        largest = max(abs(g["logprob"] - w["logprob"]) for g, w in zip(got, want))
        for g, w in zip(got, want):
            best, second = w["top"][0], w["top"][1]
            if best["logprob"] - second["logprob"] > 2 * largest:
                self.assertEqual(g["top"][0]["id"], best["id"])
        return error / total

    def test_log_probabilities(self):
        if not models():
            self.skipTest(f"{SHARED} is absent")
        for name, path in models():
            with open(os.path.join(path, "config.json")) as file:
                config = json.load(file)
            vocabulary = config.get("vocab_size", 0)
            if not vocabulary:
                continue
            # Ids that walk over the vocabulary; more than one block of the KV cache.
            ids = [1 + (i * 7919) % (min(vocabulary, 512) - 1) for i in range(75)]
            for dtype in TOLERANCE:
                with self.subTest(model=name, dtype=dtype):
                    error = self.assert_agrees(path, ids, dtype)
                    print(f"{name} {dtype}: {error:.2e}")

    def test_synthetic_methods(self):
        for method in ("", ":rtn-g32", ":gptq-g32-sym", ":awq-g16-asym"):
            for dtype in TOLERANCE:
                with self.subTest(method=method, dtype=dtype):
                    ids = [i * 5 % 64 for i in range(100)]
                    error = self.assert_agrees("random:tiny" + method, ids, dtype)
                    print(f"random:tiny{method} {dtype}: {error:.2e}")

    def test_text(self):
        model = os.path.join(SHARED, "models", "stories260K")
        if not os.path.isdir(model):
            self.skipTest(f"{model} is absent")
        want = nibble("generate", model, "--max-tokens", 120, "--device", "ref")
        self.assertEqual(nibble("generate", model, "--max-tokens", 120, "--device", "cuda"), want)

    def test_bench(self):
        with tempfile.TemporaryDirectory() as directory:
            output = os.path.join(directory, "bench.json")
            nibble("bench", "random:tiny:gptq-g32-sym", "--device", "cuda", "--batch-sizes",
                   "1,2,5,16", "--input-length", 40, "--output-length", 30, "--repetitions", 2,
                   "--output", output)
            with open(output) as file:
                runs = json.load(file)["runs"]
        self.assertEqual([run["batch_size"] for run in runs], [1, 2, 5, 16])
        for run in runs:
            self.assertTrue(math.isfinite(run["decode_tokens_per_second"]))

    def test_sampled_text(self):
        # The same random numbers: the texts agree until rounding decides otherwise.
        options = ("generate", "random:tiny", "--token-ids", "1,2,3", "--max-tokens", 24,
                   "--temperature", 1, "--seed", 7)
        want = nibble(*options, "--device", "ref").strip().split(",")
        got = nibble(*options, "--device", "cuda").strip().split(",")
        self.assertEqual(len(got), len(want))
        self.assertEqual(got[:8], want[:8])

    def test_energy(self):
        with tempfile.TemporaryDirectory() as directory:
            output = os.path.join(directory, "bench.json")
            nibble("bench", "random:tinyllama-1.1b:gptq", "--device", "cuda", "--batch-sizes", 16,
                   "--input-length", 32, "--output-length", 400, "--output", output)
            with open(output) as file:
                document = json.load(file)
        run = document["runs"][0]
        if run["mean_power_watts"] is None:
            self.skipTest("the driver's NVML library is absent")
        self.assertTrue(30 < run["mean_power_watts"] < 1500, run["mean_power_watts"])
        self.assertAlmostEqual(run["energy_joules_per_token"] * run["decode_tokens_per_second"] /
                               run["mean_power_watts"], 1, delta=0.2)

    def test_memory(self):
        # Where nibble may use a twentieth, the largest batch that it names fits, and one more does not.
        options = ("bench", "random:smollm2-135m", "--device", "cuda", "--memory-fraction", 0.05,
                   "--input-length", 64, "--output-length", 8, "--repetitions", 1)
        errors = nibble(*options, "--batch-sizes", 100000, status=4)
        largest = int(errors.split("the largest batch that fits is ")[1].split()[0])
        nibble(*options, "--batch-sizes", largest)
        nibble(*options, "--batch-sizes", largest + 1, status=4)
        errors = nibble("bench", "random:llama-2-7b", "--device", "cuda", "--memory-fraction", 0.01,
                        status=4)
        self.assertIn("at 4 bits the weights would take", errors)

    def test_batch_invariant(self):
        # A text's beginning has the same bits alone and before the rest.
        for method in ("", ":gptq-g32-sym"):
            model, ids = "random:tiny" + method, [i * 5 % 64 for i in range(100)]
            options = ("--device", "cuda", "--batch-invariant")
            whole = score(model, ids, *options)
            want = score(model, ids, "--device", "ref")
            for got, expected in zip(whole, want):
                self.assertAlmostEqual(got["logprob"], expected["logprob"], delta=1e-2)
            for length in (2, 17, 64):
                self.assertEqual([t["logprob"] for t in score(model, ids[:length], *options)],
                                 [t["logprob"] for t in whole[:length - 1]])

    def test_kv_cache_of_8_bits(self):
        for name, model in models():
            with self.subTest(model=name):
                with open(os.path.join(model, "config.json")) as file:
                    config = json.load(file)
                ids = [i * 5 % 64 for i in range(100)]
                options = ("--device", "cuda", "--kv-cache", "fp8")
                if config["hidden_size"] // config["num_attention_heads"] % 16 != 0:
                    self.assertIn("multiple of 16", nibble("score", model, "--token-ids", "1,2",
                                                           *options, status=3))
                    continue
                want, got = score(model, ids, "--device", "ref"), score(model, ids, *options)
                error = sum((g["logprob"] - w["logprob"]) ** 2 for g, w in zip(got, want))
                error /= sum(w["logprob"] ** 2 for w in want)
                print(f"{name} with a KV cache of 8 bits: {error:.2e}")
                self.assertTrue(0 < error < 1e-2, error)
                invariant = (*options, "--batch-invariant")
                whole = [t["logprob"] for t in score(model, ids, *invariant)]
                self.assertEqual([t["logprob"] for t in score(model, ids[:37], *invariant)],
                                 whole[:36])
        with tempfile.TemporaryDirectory() as directory:
            bytes_of = {}
            for kind in ("auto", "fp8"):
                output = os.path.join(directory, "bench.json")
                nibble("bench", "random:tinyllama-1.1b:rtn", "--device", "cuda", "--batch-sizes", 8,
                       "--repetitions", 1, "--kv-cache", kind, "--output", output)
                with open(output) as file:
                    bytes_of[kind] = json.load(file)["runs"][0]["peak_memory_bytes"]["kv_cache"]
        self.assertLess(bytes_of["fp8"], 0.6 * bytes_of["auto"])

    def test_refusals(self):
        self.assertIn("portable", nibble("bench", "random:tiny", "--device", "cuda", "--kernels",
                                         "hopper", status=2))

    def test_bad_devices(self):
        for device in ("cuda:99", "cuda:-1"):
            self.assertIn(device, nibble("bench", "random:tiny", "--device", device, status=3))
        self.assertIn("f16 or bf16", nibble("bench", "random:tiny", "--device", "cuda", "--dtype",
                                            "f32", status=2))

    def test_too_large_a_batch(self):
        errors = nibble("bench", "random:llama-2-7b", "--device", "cuda", "--batch-sizes", 4096,
                        status=4)
        self.assertIn("the largest batch that fits", errors)


def quantized_codes(directory, layer):
    """The codes' words of a layer's linears, by tensor."""
    with open(os.path.join(directory, "model.safetensors"), "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        begin = file.tell()
        codes = {}
        for name, tensor in header.items():
            if f"layers.{layer}." in name and name.endswith("qweight"):
                first, last = tensor["data_offsets"]
                file.seek(begin + first)
                codes[name] = file.read(last - first)
    return codes


def equal_codes(one, other, layer):
    """The share of a layer's codes that are the same in both, of each linear and of all."""
    want, got = quantized_codes(one, layer), quantized_codes(other, layer)
    assert want and want.keys() == got.keys(), f"{want.keys()} and {got.keys()}"
    shares, all_same, all_codes = {}, 0, 0
    for name, codes in want.items():
        same = sum((a & 15 == b & 15) + (a >> 4 == b >> 4)
                   for a, b in zip(codes, got[name], strict=True))
        shares[name.split(".")[-2]] = same / (2 * len(codes))
        all_same += same
        all_codes += 2 * len(codes)
    return shares | {"all": all_same / all_codes}


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class Quantizing(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def path(self, name):
        return os.path.join(self.directory.name, name)

    def test_agrees_with_the_cpu(self):
        model = os.path.join(SHARED, "models", "stories260K")
        if not os.path.isdir(model):
            self.skipTest(f"{model} is absent")
        with open(os.path.join(model, "config.json")) as file:
            layers = json.load(file)["num_hidden_layers"]
        with open(self.path("text"), "w") as file:
            for seed in range(24):
                file.write(nibble("generate", model, "--max-tokens", 200, "--temperature", 1,
                                  "--seed", seed, "--device", "cpu"))
        for method, samples in (("rtn", 1), ("awq", 1), ("gptq", 1), ("gptq", 0.125),
                                ("awq+gptq", 1)):
            run = f"{method} {samples}"
            records, outputs = {}, {}
            # GPTQ measures drift on all 32 samples, or on 4: on a GPU that step and the rest's have
            # more than 256 rows, where the reference rounds what a GPU rounds.
            for device in ("cpu", "ref", "cuda"):
                output = outputs[device] = self.path(f"{device} {run}")
                nibble("quantize", model, "--method", method, "--grid", "asym", "--group-size", 32,
                       "--calibration", self.path("text"), "--samples", 32, "--sequence-length", 128,
                       "--asymmetric-samples", samples, "--dtype", "f16", "--device", device,
                       "--output", output)
                with open(os.path.join(output, "quantize.json")) as file:
                    records[device] = json.load(file)
            shares = {device: equal_codes(outputs[device], outputs["cuda"], 0)
                      for device in ("cpu", "ref")}
            for device, by_linear in shares.items():
                print(f"{run}: of the first layer's codes as with --device {device}",
                      ", ".join(f"{name} {share:.3%}" for name, share in by_linear.items()))
                later = [equal_codes(outputs[device], outputs["cuda"], layer)["all"]
                         for layer in range(1, layers)]
                print("  of the layers after it:", ", ".join(f"{share:.3%}" for share in later))
                errors = [got["error"] / want["error"] - 1 for want, got in
                          zip(records[device]["modules"], records["cuda"]["modules"], strict=True)]
                print(f"  errors of all linears: {min(errors):+.2%} to {max(errors):+.2%}")
            cpu, cuda = records["cpu"], records["cuda"]
            # Codes that rounding moves change what comes behind them, so one by one only what comes first.
            for want, got in list(zip(cpu["modules"], cuda["modules"]))[:3]:
                self.assertAlmostEqual(got["error"] / want["error"], 1, delta=0.01,
                                       msg=f"{run} {want['name']}")
            if "mean_error_ratio" in cpu:
                self.assertAlmostEqual(cuda["mean_error_ratio"] / cpu["mean_error_ratio"], 1,
                                       delta=0.03, msg=run)
            self.assertGreater(cuda["peak_device_memory_bytes"], 0)
            # A code of GPTQ's that rounding moves takes those behind it along, in its row and in the
            # linears that follow: its codes can be compared where activations are rounded alike, here of
            # the first layer. same_inputs_test.cc compares every layer's, from the same inputs.
            reference = "ref" if "gptq" in method else "cpu"
            self.assertGreaterEqual(shares[reference]["all"], 0.995, run)

    def test_same_bits_whatever_happens(self):
        options = (NIBBLE, "quantize", "random:smollm2-135m", "--method", "gptq", "--group-size",
                   "64", "--samples", "16", "--sequence-length", "256", "--device", "cuda",
                   "--quiet", "--output")
        subprocess.run([*options, self.path("whole")], check=True, capture_output=True)
        want = sha256(self.path("whole/model.safetensors"))
        subprocess.run([*options, self.path("little"), "--max-device-memory", "1GiB"], check=True,
                       capture_output=True)
        self.assertEqual(sha256(self.path("little/model.safetensors")), want)
        for layers in (1, 7, 20):
            killed = self.path(f"killed{layers}")
            process = subprocess.Popen([*options, killed], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            while process.poll() is None and (not os.path.isdir(killed + ".quantizing") or
                                              len(os.listdir(killed + ".quantizing")) < layers):
                time.sleep(0.005)
            self.assertIsNone(process.poll(), "was done before it could be killed")
            process.kill()
            process.wait()
            self.assertFalse(os.path.exists(killed))
            subprocess.run([*options, killed], check=True, capture_output=True)
            self.assertEqual(sha256(killed + "/model.safetensors"), want)


if __name__ == "__main__":
    NIBBLE, SHARED = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=1)
