#!/usr/bin/env python3
"""Checks a directory that `nibble convert MODEL.gguf --output DIRECTORY` wrote.

usage: check_gguf_conversion.py MODEL.gguf DIRECTORY
       (needs the packages gguf, numpy, safetensors, tokenizers and transformers)

Every tensor must equal what gguf-py expands, rounded to the type written, with the rows of q and k
back in Hugging Face's order; transformers must load the configuration and the tokenizer.
"""
import sys

import gguf
import numpy as np
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

MODULES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight":
         "model.norm.weight", "output.weight": "lm_head.weight"}


def main() -> None:
    source, directory = sys.argv[1:]
    config = AutoConfig.from_pretrained(directory)
    GenerationConfig.from_pretrained(directory)
    reader = gguf.GGUFReader(source)
    file = safe_open(directory + "/model.safetensors", "np")
    left = set(file.keys())
    for tensor in reader.tensors:
        name, module = NAMES.get(tensor.name), ""
        if name is None:
            _, layer, module, kind = tensor.name.split(".")
            name = f"model.layers.{layer}.{MODULES[module]}.{kind}"
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if config.model_type == "llama" and module in ("attn_q", "attn_k"):
            heads = (config.num_attention_heads if module == "attn_q"
                     else config.num_key_value_heads)
            rows = want.shape[0]
            want = want.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2)
            want = want.reshape(rows, -1)
        got = file.get_tensor(name)
        assert np.array_equal(got, want.astype(got.dtype)), name
        left.remove(name)
    assert not left, left
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = "Hello, world! 123 été"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    if tokenizer.chat_template:
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    print(f"{len(reader.tensors)} tensors, configuration and tokenizer agree")


main()
