#!/usr/bin/env python3
"""Unpacks the 4-bit layers of a checkpoint directory: AWQ gemm, GPTQ versions 1 and 2,
compressed-tensors pack-quantized.

usage: unpack_layouts.py CHECKPOINT OUTPUT       (needs numpy; exits with 77 without it)

OUTPUT gets NAME.f32 for each quantized layer NAME: its weight [out, in] as raw float32. Written
against the published packing alone, to check nibble's against.
"""
import glob
import json
import os
import sys
from typing import NamedTuple

try:
    import numpy as np
except ImportError:
    sys.exit(77)

TYPES = {"I32": np.uint32, "I64": np.int64, "F16": np.float16, "F32": np.float32}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i holds column AWQ_ORDER[i]
IN_ORDER = list(range(8))


class Layer(NamedTuple):
    """weight[n, k] = scales[n, group[k]] * (codes[n, k] - zeros[n, group[k]])"""
    codes: np.ndarray  # [out, in]
    scales: np.ndarray  # [out, groups], float16
    zeros: np.ndarray  # [out, groups]
    group: np.ndarray  # [in]

    def weight(self) -> np.ndarray:
        difference = (self.codes - self.zeros[:, self.group]).astype(np.float32)
        return self.scales.astype(np.float32)[:, self.group] * difference


def load(directory: str) -> dict:
    """All tensors of the types above, by name."""
    tensors = {}
    for path in glob.glob(os.path.join(directory, "*.safetensors")):
        with open(path, "rb") as file:
            content = file.read()
        start = 8 + int.from_bytes(content[:8], "little")
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


def unpack_awq(tensors: dict, name: str) -> Layer:
    codes = nibbles(tensors[name + ".qweight"], AWQ_ORDER).T
    scales = tensors[name + ".scales"].T
    zeros = nibbles(tensors[name + ".qzeros"], AWQ_ORDER).T
    return Layer(codes, scales, zeros, np.arange(codes.shape[1]) * scales.shape[1] // codes.shape[1])


def unpack_gptq(tensors: dict, name: str, version: int) -> Layer:
    codes = nibbles(tensors[name + ".qweight"].T, IN_ORDER)
    stored = tensors[name + ".qzeros"]
    if version == 1:
        stored = stored + np.uint32(0x11111111)  # wraps around
    group = tensors[name + ".g_idx"].astype(np.int32)
    return Layer(codes, tensors[name + ".scales"].T, nibbles(stored, IN_ORDER).T, group)


def unpack_compressed(tensors: dict, name: str) -> Layer:
    codes = nibbles(tensors[name + ".weight_packed"], IN_ORDER)
    assert list(tensors[name + ".weight_shape"]) == list(codes.shape)
    scales = tensors[name + ".weight_scale"]
    zeros = np.full(scales.shape, 8, np.int32)
    if name + ".weight_zero_point" in tensors:
        zeros = nibbles(tensors[name + ".weight_zero_point"].T, IN_ORDER).T
    group = np.arange(codes.shape[1]) * scales.shape[1] // codes.shape[1]
    group = tensors.get(name + ".weight_g_idx", group).astype(np.int32)
    return Layer(codes, scales, zeros, group)


def unpack(directory: str) -> dict:
    """The quantized layers of a checkpoint, by name."""
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)["quantization_config"]
    tensors = load(directory)
    method = config["quant_method"]
    codes = ".weight_packed" if method == "compressed-tensors" else ".qweight"
    version = 2 if config.get("checkpoint_format") == "gptq_v2" else 1
    unpackers = {"awq": unpack_awq,
                 "gptq": lambda t, n: unpack_gptq(t, n, version),
                 "compressed-tensors": unpack_compressed}
    return {n: unpackers[method](tensors, n)
            for n in [t[:-len(codes)] for t in tensors if t.endswith(codes)]}


def main() -> None:
    source, output = sys.argv[1:]
    os.makedirs(output, exist_ok=True)
    for name, layer in unpack(source).items():
        np.ascontiguousarray(layer.weight()).tofile(os.path.join(output, name + ".f32"))


if __name__ == "__main__":
    main()
