#!/usr/bin/env python3
"""Unpacks the 4-bit layers of a checkpoint directory (AWQ gemm, GPTQ versions 1 and 2).

usage: unpack_layouts.py CHECKPOINT OUTPUT       (needs numpy; exits with 77 without it)

OUTPUT gets NAME.f32 for each quantized layer NAME: its weight [out, in] as raw float32. Written
against the published packing alone, to check nibble's against.
"""
import glob
import json
import os
import sys

try:
    import numpy as np
except ImportError:
    sys.exit(77)

TYPES = {"I32": np.uint32, "F16": np.float16}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i holds column AWQ_ORDER[i]


def load(path: str) -> dict:
    with open(path, "rb") as file:
        content = file.read()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, info in json.loads(content[8:start]).items():
        if name != "__metadata__" and info["dtype"] in TYPES:
            begin, end = info["data_offsets"]
            flat = np.frombuffer(content[start + begin:start + end], TYPES[info["dtype"]])
            tensors[name] = flat.reshape(info["shape"])
    return tensors


def nibbles(words: np.ndarray, order: list) -> np.ndarray:
    """[r, c] words to [r, 8 c] columns; nibble i is column order[i]."""
    out = np.empty(words.shape + (8,), np.int32)
    for i, column in enumerate(order):
        out[..., column] = (words >> np.uint32(4 * i)) & np.uint32(15)
    return out.reshape(words.shape[0], -1)


def main() -> None:
    source, output = sys.argv[1:]
    os.makedirs(output, exist_ok=True)
    with open(os.path.join(source, "config.json")) as file:
        quantization = json.load(file)["quantization_config"]
    tensors = {}
    for path in glob.glob(os.path.join(source, "*.safetensors")):
        tensors.update(load(path))
    in_order = list(range(8))
    for name in [n[:-len(".qweight")] for n in tensors if n.endswith(".qweight")]:
        qweight, qzeros = tensors[name + ".qweight"], tensors[name + ".qzeros"]
        scales = tensors[name + ".scales"].astype(np.float32)
        if quantization["quant_method"] == "awq":
            codes = nibbles(qweight, AWQ_ORDER)  # [in, out]
            zeros = nibbles(qzeros, AWQ_ORDER)
        else:
            codes = nibbles(np.ascontiguousarray(qweight.T), in_order).T
            if quantization.get("checkpoint_format", "gptq") == "gptq":
                qzeros = qzeros + np.uint32(0x11111111)  # wraps around
            zeros = nibbles(qzeros, in_order)
        group = np.arange(codes.shape[0]) // (codes.shape[0] // scales.shape[0])
        weight = scales[group] * (codes - zeros[group]).astype(np.float32)
        np.ascontiguousarray(weight.T).tofile(os.path.join(output, name + ".f32"))


main()
