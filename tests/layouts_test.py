#!/usr/bin/env python3
"""The published 4-bit layouts, written and read: nibble's checkpoints unpacked by
oracles/unpack_layouts.py, and checkpoints that are packed here, from the formats' descriptions
alone, scored by nibble.

Usage: layouts_test.py NIBBLE_BINARY SOURCE_DIR SHARED_DATA       (exits with 77 without numpy)
"""
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "oracles"))
import unpack_layouts  # noqa: E402  (exits with 77)
import numpy as np  # noqa: E402

NIBBLE, SOURCE, SHARED = (pathlib.Path(p).resolve() for p in sys.argv[1:4])
STORIES = SHARED / "models" / "stories260K"
LAYOUTS = {"asym": ["awq", "gptq_v2", "compressed-tensors"],
           "sym": ["gptq", "gptq_v2", "compressed-tensors"],
           "sym-full": ["gptq", "gptq_v2", "compressed-tensors"]}
TYPE_NAMES = {np.dtype(np.uint32): "I32", np.dtype(np.int32): "I32", np.dtype(np.int64): "I64",
              np.dtype(np.float16): "F16", np.dtype(np.float32): "F32",
              np.dtype(np.uint16): "BF16"}  # numpy has no bfloat16
TOKENS = "5,6,7,8,61,2,33,40,11,19"


def run(*args, status=0):
    done = subprocess.run([NIBBLE, *map(str, args)], capture_output=True, text=True, timeout=300)
    assert done.returncode == status, (
        f"{args}: want exit {status}, got {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def save(path: pathlib.Path, tensors: dict) -> None:
    header, data = {}, b""
    for name, tensor in tensors.items():
        content = np.ascontiguousarray(tensor).tobytes()
        header[name] = {"dtype": TYPE_NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# Packing, from the descriptions. Layers are unpack_layouts.Layer; words are little-endian nibbles.

def words(values: np.ndarray, order=tuple(range(8))) -> np.ndarray:
    """[r, 8 c] values to [r, c] words; nibble i of a word holds value order[i] of its eight."""
    eights = values.reshape(values.shape[0], -1, 8).astype(np.uint32)
    return sum(eights[..., column] << np.uint32(4 * i) for i, column in enumerate(order))


def pack_awq(name, layer):
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {f"{name}.qweight": words(layer.codes.T, order),
            f"{name}.qzeros": words(layer.zeros.T, order),
            f"{name}.scales": layer.scales.T}


def pack_gptq(name, layer, version):
    zeros = words(layer.zeros.T)
    if version == 1:
        zeros = (zeros.astype(np.int64) - 0x11111111).astype(np.uint32)  # modulo 2^32
    return {f"{name}.qweight": words(layer.codes).T, f"{name}.qzeros": zeros,
            f"{name}.scales": layer.scales.T, f"{name}.g_idx": layer.group.astype(np.int32)}


def pack_compressed(name, layer, symmetric, scales=None, g_idx=False):
    # The library packs signed values plus 8.
    tensors = {f"{name}.weight_packed": words((layer.codes - 8) + 8),
               f"{name}.weight_scale": layer.scales if scales is None else scales,
               f"{name}.weight_shape": np.array(layer.codes.shape, np.int64)}
    if not symmetric:
        tensors[f"{name}.weight_zero_point"] = words(layer.zeros.T).T
    if g_idx:
        tensors[f"{name}.weight_g_idx"] = layer.group.astype(np.int32)
    return tensors


def compressed_config(symmetric, group, **weights):
    return {"quant_method": "compressed-tensors", "format": "pack-quantized",
            "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": None,
                                          "output_activations": None, "weights": {
                "num_bits": 4, "type": "int", "symmetric": symmetric, "dynamic": False,
                "strategy": "channel" if group is None else "group", "group_size": group,
                "actorder": None} | weights}}}


def gptq_config(group, **members):
    return {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": False,
            "lm_head": False} | members


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="nibble-layouts-"))
        self.addCleanup(shutil.rmtree, self.dir)

    def refused(self, *args, status=3, contains):
        before = sorted(self.dir.rglob("*"))
        error = run(*args, status=status).stderr
        for part in contains:
            self.assertIn(part, error)
        self.assertEqual(sorted(self.dir.rglob("*")), before, "something was left behind")


class Written(Case):
    """What nibble writes, as the independent unpackers read it."""

    def assertSameLayers(self, got, want):
        self.assertEqual(got.keys(), want.keys())
        for name, layer in want.items():
            for part in layer._fields:
                np.testing.assert_array_equal(getattr(got[name], part), getattr(layer, part),
                                              f"{name}: {part}")

    def test_every_layout_holds_the_same_codes(self):
        run("convert", "random:tiny", "--output", self.dir / "made")
        dense = unpack_layouts.load(self.dir / "made")
        for (grid, layouts), group in itertools.product(LAYOUTS.items(), (32, "channel")):
            quantized = {}
            for layout in layouts:
                out = self.dir / f"{grid}-{group}-{layout}"
                run("quantize", self.dir / "made", "--method", "rtn", "--group-size", group,
                    "--grid", grid, "--format", layout, "--output", out)
                quantized[layout] = unpack_layouts.unpack(out)
            want = quantized[layouts[0]]
            self.assertEqual(len(want), 14)
            for name, layer in want.items():
                weight = dense[name + ".weight"].astype(np.float32)
                self.assertEqual(layer.codes.shape, weight.shape)
                self.assertEqual(layer.scales.shape[1],
                                 1 if group == "channel" else weight.shape[1] // 32)
                # A symmetric grid clips the positive extreme by half a step more.
                step = np.abs(layer.scales.astype(np.float32))[:, layer.group]
                limit = {"asym": 0.51, "sym": 0.51, "sym-full": 1.01}[grid]
                self.assertTrue(np.all(np.abs(layer.weight() - weight) <= limit * step), name)
                if grid != "asym":
                    self.assertTrue(np.all(layer.zeros == 8))
            for layout in layouts[1:]:
                self.assertSameLayers(quantized[layout], want)

    def test_conversions_give_the_file_that_quantize_writes(self):
        run("convert", "random:tiny", "--output", self.dir / "made")
        for grid, layouts in LAYOUTS.items():
            for layout in layouts:
                run("quantize", self.dir / "made", "--group-size", 32, "--grid", grid, "--format",
                    layout, "--output", self.dir / f"{grid}-{layout}")
            for source, target in itertools.permutations(layouts, 2):
                out = self.dir / f"{grid}-{source}-{target}"
                run("convert", self.dir / f"{grid}-{source}", "--format", target, "--output", out)
                direct = self.dir / f"{grid}-{target}"
                self.assertSameLayers(unpack_layouts.unpack(out), unpack_layouts.unpack(direct))
                for file in ("config.json", "quantize_config.json"):
                    self.assertEqual((out / file).exists(), (direct / file).exists())
                    if (out / file).exists():
                        self.assertEqual(json.loads((out / file).read_text()),
                                         json.loads((direct / file).read_text()))
                for file in ("quantize.json", "README.md"):
                    self.assertIn(target, (out / file).read_text())
            # Symmetric codes are expressible in AWQ, whose zeros are then 8.
            if grid != "asym":
                out = self.dir / f"{grid}-awq"
                run("convert", self.dir / f"{grid}-gptq", "--format", "awq", "--output", out)
                self.assertSameLayers(unpack_layouts.unpack(out),
                                      unpack_layouts.unpack(self.dir / f"{grid}-gptq"))
        self.refused("convert", self.dir / "asym-awq", "--format", "gptq", "--output",
                     self.dir / "x", contains=["gptq_v2", "compressed-tensors", "awq"])
        self.refused("convert", self.dir / "made", "--format", "gptq", "--output", self.dir / "x",
                     status=2, contains=["not quantized"])
        self.refused("convert", self.dir / "asym-awq", "--format", "gguf", "--output",
                     self.dir / "x", status=2, contains=["gguf", "gptq_v2"])

    def test_shards(self):
        run("quantize", "random:tiny", "--group-size", 32, "--format", "compressed-tensors",
            "--output", self.dir / "one")
        run("convert", self.dir / "one", "--format", "gptq_v2", "--max-shard-size", "16KB",
            "--output", self.dir / "many")
        files = sorted(p.name for p in (self.dir / "many").glob("*.safetensors"))
        self.assertGreater(len(files), 2)
        self.assertEqual(files, [f"model-{i + 1:05}-of-{len(files):05}.safetensors"
                                 for i in range(len(files))])
        index = json.loads((self.dir / "many" / "model.safetensors.index.json").read_text())
        self.assertEqual(set(index["weight_map"].values()), set(files))
        self.assertEqual(index["weight_map"].keys(), unpack_layouts.load(self.dir / "many").keys())
        self.assertSameLayers(unpack_layouts.unpack(self.dir / "many"),
                              unpack_layouts.unpack(self.dir / "one"))

    @unittest.skipUnless(STORIES.is_dir(), f"{STORIES} is absent")
    def test_a_model_with_layers_that_stay_dense(self):
        # 172 of its features are no multiple of 8: the MLP stays in 32 bits, by name.
        text = ["score", "--text", "Once upon a time there was", "--device", "ref", "--output"]
        scores = []
        for layout in LAYOUTS["asym"]:
            out = self.dir / layout
            run("quantize", STORIES, "--group-size", 32, "--format", layout, "--output", out)
            self.assertIn("tokenizer.model", [p.name for p in out.iterdir()])
            run(text[0], out, *text[1:], self.dir / f"{layout}.json")
            scores.append(json.loads((self.dir / f"{layout}.json").read_text())["tokens"])
            config = (out / "config.json").read_text()
            self.assertIn("model.layers.0.mlp.down_proj", config.replace("\\\\", ""))
            for target in LAYOUTS["asym"]:
                copy = self.dir / f"{layout}-{target}"
                run("convert", out, "--format", target, "--output", copy)
                run(text[0], copy, *text[1:], self.dir / f"{layout}-{target}.json")
                scores.append(
                    json.loads((self.dir / f"{layout}-{target}.json").read_text())["tokens"])
        for score in scores[1:]:
            self.assertEqual(score, scores[0])


class Read(Case):
    """Checkpoints packed here, against a 32-bit one that holds what they mean."""

    def setUp(self):
        super().setUp()
        run("convert", "random:tiny", "--output", self.dir / "base")
        self.tensors = unpack_layouts.load(self.dir / "base")
        self.config = json.loads((self.dir / "base" / "config.json").read_text())
        self.linears = [n[:-len(".weight")] for n in self.tensors if "_proj." in n]

    def layers(self, group, symmetric, seed, ordered=False):
        """Random layers, zeros of 0 and 15 among them, about as large as the base's."""
        random = np.random.default_rng(seed)
        layers = {}
        for name in self.linears:
            out, inputs = self.tensors[name + ".weight"].shape
            groups = inputs // (group or inputs)
            index = np.arange(inputs) // (group or inputs)
            if ordered:  # the same inputs have the same order
                shuffle = np.random.default_rng([seed, int(name.split(".")[2]), inputs,
                                                 "o_proj" in name, "mlp" in name])
                index = shuffle.permutation(index)
            zeros = np.full((out, groups), 8) if symmetric else random.integers(0, 16, (out, groups))
            scales = random.uniform(0.02, 0.05, (out, groups)).astype(np.float16)
            # float16 numbers that are bfloat16 numbers too
            scales = (scales.view(np.uint16) & 0xFFF8).view(np.float16)
            layers[name] = unpack_layouts.Layer(random.integers(0, 16, (out, inputs)), scales, zeros,
                                                index)
        return layers

    def write(self, directory, tensors, quantization=None):
        directory.mkdir()
        rest = {n: t for n, t in self.tensors.items()
                if n.removesuffix(".weight") not in self.linears}
        save(directory / "model.safetensors", rest | tensors)
        config = self.config | ({"quantization_config": quantization} if quantization else {})
        (directory / "config.json").write_text(json.dumps(config))

    def logprobs(self, model, device):
        out = self.dir / "score.json"
        run("score", model, "--token-ids", TOKENS, "--allow-random", "--dtype", "f32", "--device",
            device, "--output", out)
        return np.array([t["logprob"] for t in json.loads(out.read_text())["tokens"][1:]])

    def check(self, layers, pack, quantization):
        meaning, packed = self.dir / "meaning", self.dir / "packed"
        self.write(meaning, {f"{n}.weight": layer.weight() for n, layer in layers.items()})
        tensors = {}
        for name, layer in layers.items():
            tensors |= pack(name, layer)
        self.write(packed, tensors, quantization)
        want = self.logprobs(meaning, "ref")
        self.assertGreater(np.ptp(want), 0.1)  # the model distinguishes tokens
        for device in ("ref", "cpu"):
            np.testing.assert_allclose(self.logprobs(packed, device), want, rtol=0, atol=1e-3)

    def test_awq(self):
        self.check(self.layers(32, False, 1), pack_awq,
                   {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True,
                    "version": "gemm", "modules_to_not_convert": None})

    def test_gptq_v1_symmetric(self):
        self.check(self.layers(32, True, 2), lambda n, w: pack_gptq(n, w, 1),
                   gptq_config(32, sym=True))

    def test_gptq_v1_asymmetric(self):
        self.check(self.layers(32, False, 3), lambda n, w: pack_gptq(n, w, 1),
                   gptq_config(32, checkpoint_format="gptq"))

    def test_gptq_v2(self):
        self.check(self.layers(32, False, 4), lambda n, w: pack_gptq(n, w, 2),
                   gptq_config(32, checkpoint_format="gptq_v2"))

    def test_gptq_per_channel(self):
        self.check(self.layers(None, True, 5), lambda n, w: pack_gptq(n, w, 1),
                   gptq_config(-1, sym=True, desc_act=True))

    def test_gptq_act_order(self):
        self.check(self.layers(32, False, 6, ordered=True), lambda n, w: pack_gptq(n, w, 2),
                   gptq_config(32, desc_act=True, checkpoint_format="gptq_v2"))

    def test_gptq_act_order_symmetric(self):
        self.check(self.layers(16, True, 7, ordered=True), lambda n, w: pack_gptq(n, w, 1),
                   gptq_config(16, sym=True, desc_act=True))

    def test_compressed_tensors(self):
        self.check(self.layers(32, False, 8), lambda n, w: pack_compressed(n, w, False),
                   compressed_config(False, 32))

    def test_compressed_tensors_symmetric_with_bfloat16_scales(self):
        def bfloat16(scales):
            return (scales.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        self.check(self.layers(32, True, 9),
                   lambda n, w: pack_compressed(n, w, True, bfloat16(w.scales)),
                   compressed_config(True, 32, actorder="weight"))

    def test_compressed_tensors_per_channel(self):
        self.check(self.layers(None, False, 10), lambda n, w: pack_compressed(n, w, False),
                   compressed_config(False, None))

    def test_compressed_tensors_act_order(self):
        self.check(self.layers(32, True, 11, ordered=True),
                   lambda n, w: pack_compressed(n, w, True, g_idx=True),
                   compressed_config(True, 32, actorder="group"))

    def test_layers_packed_together_must_share_their_order(self):
        layers = self.layers(32, False, 12, ordered=True)
        name = "model.layers.1.self_attn.k_proj"
        layers[name] = layers[name]._replace(group=np.roll(layers[name].group, 1))
        tensors = {}
        for n, layer in layers.items():
            tensors |= pack_gptq(n, layer, 2)
        self.write(self.dir / "packed", tensors,
                   gptq_config(32, desc_act=True, checkpoint_format="gptq_v2"))
        self.refused("score", self.dir / "packed", "--token-ids", TOKENS, "--allow-random",
                     contains=["g_idx", "layers.1.self_attn.q_proj", name])

    def test_contradictions_are_named(self):
        layers = self.layers(32, False, 13)
        good = {}
        for n, layer in layers.items():
            good |= pack_gptq(n, layer, 2)
        config = gptq_config(32, checkpoint_format="gptq_v2")
        o_proj = "model.layers.1.self_attn.o_proj"
        for i, (tensors, settings, contains) in enumerate([
                ({}, config | {"sym": True}, ["q_proj.qzeros", "symmetric"]),
                ({}, config | {"group_size": 16}, [".qzeros: want i32 [4, 8], got I32 [2, 8]"]),
                ({f"{o_proj}.scales": good[f"{o_proj}.scales"][:1]}, config,
                 [f"{o_proj}.scales: want f16 [2, 64], got F16 [1, 64]"]),
                ({f"{o_proj}.g_idx": good[f"{o_proj}.g_idx"][::-1].copy()}, config,
                 [f"{o_proj}.g_idx: input 0 is in group 1, want 0"]),
                ({f"{o_proj}.qweight": good[f"{o_proj}.qweight"].T}, config,
                 [f"{o_proj}.qweight: want i32 [8, 64], got I32 [64, 8]"]),
                ({f"{o_proj}.weight": layers[o_proj].weight()}, config, [f"{o_proj}.weight"])]):
            model = self.dir / f"bad{i}"
            self.write(model, good | tensors, settings)
            self.refused("score", model, "--token-ids", TOKENS, "--allow-random",
                         contains=[str(model), *contains])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
