#!/usr/bin/env python3
"""Writes one small GGUF file of every quantized type with what gguf-py expands it to.

usage: make_gguf_vectors.py DIRECTORY        (needs the packages gguf and numpy)

DIRECTORY gets NAME.gguf, holding one tensor called "tensor", and NAME.f32, its elements as raw
float32. Codes are random bits, so every field of a block takes every value; scales are finite.
"""
import os
import sys

import gguf
import numpy as np

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Where a block's float16 numbers are.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
BLOCKS = 64


def main() -> None:
    directory = sys.argv[1]
    os.makedirs(directory, exist_ok=True)
    rng = np.random.default_rng(2)
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for offset in HALVES[name]:
            halves = rng.normal(0, 0.1, BLOCKS).astype(np.float16)
            halves[:4] = [0, -0.0, 6e-8, 65504 / 64 / 256]  # zero, subnormal, large
            blocks[:, offset:offset + 2] = halves.view(np.uint8).reshape(BLOCKS, 2)
        rows = blocks.reshape(4, -1)
        writer = gguf.GGUFWriter(os.path.join(directory, name + ".gguf"), "llama")
        writer.add_tensor("tensor", rows, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        expected = gguf.quants.dequantize(rows, kind).astype(np.float32)
        assert expected.shape == (4, BLOCKS // 4 * elements)
        expected.tofile(os.path.join(directory, name + ".f32"))


main()
