#!/usr/bin/env python3
"""Writes seed inputs for the libFuzzer targets, a folder for each.

usage: make_corpus.py DIRECTORY

    make_corpus.py corpus && safetensors_fuzz corpus/safetensors_fuzz

Python's standard library is enough. Seeds are small, valid files that reach deep into the readers,
and the same files with one thing wrong.
"""
import json
import os
import struct
import sys


def save(target: str, seeds: dict) -> None:
    folder = os.path.join(sys.argv[1], target)
    os.makedirs(folder, exist_ok=True)
    for name, content in seeds.items():
        data = content if isinstance(content, bytes) else content.encode()
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)


# safetensors: a byte that chooses the reader, then a file or an index ----------------------------


def safetensors(header, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"\0" + struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_seeds() -> dict:
    good = {"__metadata__": {"format": "pt"}, "a": entry("F16", [2, 3], 0, 12),
            "b": entry("I32", [1], 12, 16), "c": entry("F8_E4M3", [0], 16, 16),
            "scalar": entry("I64", [], 16, 24)}
    types = {f"t{i}": entry(t, [1], 8 * i, 8 * i + 8) for i, t in enumerate(["F64", "I64", "U64"])}
    return {
        "good": safetensors(good, bytes(24)),
        "types": safetensors(types, bytes(24)),
        "empty": safetensors({}, b""),
        "padded": safetensors(json.dumps(good).encode() + b"   ", bytes(24)),
        "truncated": safetensors(good, bytes(23)),
        "overlong": safetensors(good, bytes(25)),
        "hole": safetensors({"a": entry("U8", [1], 1, 2)}, bytes(2)),
        "overlap": safetensors({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)},
                               bytes(3)),
        "overflow": safetensors({"a": entry("F32", [2**32, 2**32], 0, 0)}, b""),
        "huge_header": b"\0" + struct.pack("<Q", 2**63) + b"{}",
        "twice": safetensors(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
                             b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
        "index": b"\1" + json.dumps({"metadata": {"total_size": 3, "deep": [[{}]]}, "weight_map": {
            "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        }).encode(),
        "index_outside": b'\1{"weight_map":{"a":"../secret"}}',
    }


# GGUF ---------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


class Gguf:
    FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
               11: "<q", 12: "<d"}
    SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24),
             8: (32, 34), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2)}

    def __init__(self):
        self.values, self.tensors, self.data = [], [], b""

    def scalar(self, kind: int, value) -> bytes:
        return text(value) if kind == 8 else struct.pack(self.FORMATS[kind], value)

    def value(self, key: str, kind: int, value) -> "Gguf":
        self.values.append(text(key) + struct.pack("<I", kind) + self.scalar(kind, value))
        return self

    def array(self, key: str, kind: int, values: list) -> "Gguf":
        self.values.append(text(key) + struct.pack("<IIQ", 9, kind, len(values)) +
                           b"".join(self.scalar(kind, v) for v in values))
        return self

    def tensor(self, name: str, extents: list, kind: int) -> "Gguf":
        block, size = self.SIZES[kind]
        count = 1
        for extent in extents:
            count *= extent
        self.tensors.append(text(name) + struct.pack("<I", len(extents)) +
                            struct.pack(f"<{len(extents)}Q", *extents) +
                            struct.pack("<IQ", kind, len(self.data)))
        pattern = bytes((37 * i + 11) % 60 for i in range(size))  # finite as float16
        self.data += pattern * (count // block)
        self.data += bytes(-len(self.data) % 32)
        return self

    def build(self, version: int = 3) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", version, len(self.tensors), len(self.values))
        head += b"".join(self.values) + b"".join(self.tensors)
        return head + bytes(-len(head) % 32) + self.data


def gguf_model(arch: str, kind: int, width: int) -> Gguf:
    g = Gguf().value("general.architecture", 8, arch)
    for key, size in (("block_count", 1), ("context_length", 64), ("embedding_length", width),
                      ("feed_forward_length", width), ("attention.head_count", 4),
                      ("attention.head_count_kv", 2)):
        g.value(f"{arch}.{key}", 4, size)
    g.value(f"{arch}.attention.layer_norm_rms_epsilon", 6, 1e-5)
    g.value(f"{arch}.rope.freq_base", 6, 500000.0)
    g.value("tokenizer.ggml.model", 8, "gpt2").value("tokenizer.ggml.pre", 8, "smollm")
    g.array("tokenizer.ggml.tokens", 8, ["<s>", "a", "b", "ab"])
    g.array("tokenizer.ggml.token_type", 5, [3, 1, 1, 1])
    g.array("tokenizer.ggml.merges", 8, ["a b"]).array("tokenizer.ggml.scores", 6, [0.0, -1.0])
    g.value("tokenizer.ggml.bos_token_id", 4, 0).value("tokenizer.ggml.add_bos_token", 7, True)
    g.value("tokenizer.chat_template", 8, "{{ messages[0].content }}")
    g.tensor("token_embd.weight", [width, 4], kind)
    g.tensor("blk.0.attn_norm.weight", [width], 0).tensor("blk.0.attn_q.weight", [width, width],
                                                          kind)
    g.tensor("blk.0.attn_k.weight", [width, width // 2], kind)
    g.tensor("blk.0.attn_q.bias", [width], 0).tensor("output_norm.weight", [width], 0)
    return g


def gguf_seeds() -> dict:
    seeds = {}
    for kind, (block, _) in Gguf.SIZES.items():
        seeds[f"type{kind}"] = gguf_model("llama", kind, max(block, 32)).build()
    qwen = gguf_model("qwen2", 8, 32)
    seeds["qwen2"] = qwen.build()
    seeds["version2"] = qwen.build(version=2)
    seeds["truncated"] = qwen.build()[:-40]
    seeds["overlong"] = qwen.build() + bytes(64)
    rope = gguf_model("llama", 8, 32).tensor("rope_freqs.weight", [4], 0)
    seeds["rope"] = rope.build()
    linear = gguf_model("llama", 2, 32).value("llama.rope.scaling.type", 8, "linear")
    seeds["linear"] = linear.value("llama.rope.scaling.factor", 6, 2.0).build()
    every = Gguf()
    for kind in Gguf.FORMATS:
        every.value(f"v{kind}", kind, 1).array(f"a{kind}", kind, [1, 0])
    seeds["values"] = every.array("strings", 8, ["", "x"]).tensor("a", [2, 2, 2, 2], 0).build()
    aligned = Gguf().value("general.alignment", 4, 64).tensor("a", [8], 0)
    seeds["aligned"] = aligned.build()
    return seeds


# JSON, tokenizers, text ---------------------------------------------------------------------------


def config_seeds() -> dict:
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True,
           "version": "gemm", "modules_to_not_convert": ["lm_head"]}
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True,
            "lm_head": False, "checkpoint_format": "gptq_v2", "pack_dtype": "int32",
            "modules_in_block_to_quantize": [["mlp.up_proj"], ["self_attn.q_proj"]]}
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
             "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 8,
             "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 512, "hidden_act": "silu",
             "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
             "rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": True,
             "torch_dtype": "float16", "eos_token_id": [1, 2], "bos_token_id": 1}
    newer = dict(llama, dtype="bfloat16", rope_parameters={
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})
    mistral = dict(llama, architectures=["MistralForCausalLM"], model_type="mistral",
                   sliding_window=32)
    qwen = dict(llama, architectures=["Qwen2ForCausalLM"], model_type="qwen2",
                use_sliding_window=False, max_window_layers=2, layer_types=["full_attention"] * 2)
    chat = {"chat_template": [{"name": "default", "template": "{{ messages }}"}]}
    objects = {"awq": dict(llama, quantization_config=awq),
               "gptq": dict(llama, quantization_config=gptq), "llama": llama, "newer": newer,
               "mistral": mistral, "qwen2": qwen, "chat": chat,
               "fp8": {"quantization_config": {"quant_method": "fp8"}}}
    seeds = {name: json.dumps(value) for name, value in objects.items()}
    return dict(seeds, deep="[" * 100, twice='{"a":1,"a":2}')


def tokenizer_seeds() -> dict:
    def added(i: int, content: str) -> dict:
        return {"id": i, "content": content, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True}

    byte_level = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(0, "<|end|>")], "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+"},
             "behavior": "Isolated", "invert": False},
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                           "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {"<|end|>": 0, "a": 1, "b": 2, "\u0120": 3, "ab": 4, "\u0120ab": 5},
                  "merges": ["a b", "\u0120 ab"]}}
    fallback = {
        "version": "1.0", "added_tokens": [added(0, "<unk>"), added(1, "<s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "vocab": {"<unk>": 0, "<s>": 1, "<0x41>": 2, "\u2581": 3, "a": 4, "\u2581a": 5},
                  "merges": [["\u2581", "a"]]}}
    metaspace = json.loads(json.dumps(fallback))
    metaspace["normalizer"] = None
    metaspace["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581",
                                  "prepend_scheme": "first", "split": False}
    return {"byte_level": json.dumps(byte_level), "fallback": json.dumps(fallback),
            "metaspace": json.dumps(metaspace), "pairs": json.dumps(
                dict(byte_level, model=dict(byte_level["model"], merges=[["a", "b"]],
                                            ignore_merges=True)))}


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, payload) -> bytes:
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    if isinstance(payload, float):
        return varint(number << 3 | 5) + struct.pack("<f", payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def sentencepiece(model_type: int) -> bytes:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<0x41>", 0.0, 6),
              ("\u2581a", -1.0, 1), ("\u2581", -2.0, 1), ("a", -3.0, 1)]
    model = b"".join(field(1, field(1, p.encode()) + field(2, s) + field(3, t))
                     for p, s, t in pieces)
    trainer = field(3, model_type) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2)
    normalizer = field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1)
    return model + field(2, trainer) + field(3, normalizer)


def text_seeds() -> dict:
    return {
        "csv": {"plain": "What is 2 + 2?,1,2,3,4,D\n", "crlf": "q,a,b,c,d,A\r\nq,a,b,c,d,B\r\n",
                "quotes": '"a ""quoted"" one, with\na line","b","c","d","e",C\n',
                "bom": "\ufeffq,a,b,c,d,A\n", "open": '"never closed,a,b\n', "wide": "a," * 40},
        "chat": {
            "loop": "{%- for x in range(3) -%}{{ loop.index0 }}{%- endfor -%}",
            "macro": "{% macro f(a, b=2) %}{{ a ~ b }}{% endmacro %}{{ f(1) }}",
            "error": "{{ raise_exception('no') }}", "deep": "{{ " + "(" * 200 + "1",
            "filters": "{{ ['a', 'b'] | join(', ') | upper | length }}{{ x is defined and not y }}",
        },
    }


def chat_templates() -> dict:
    """The templates that the tests compare with jinja2."""
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "oracles", "chat_templates")
    seeds = {}
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
            seeds[name] = file.read()
    return seeds


def request_seeds() -> dict:
    common = {"model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "n": 2,
              "stop": ["a", "b"], "seed": 1, "presence_penalty": 1, "frequency_penalty": -1,
              "logit_bias": {"5": -100}, "user": "u", "stream": True,
              "stream_options": {"include_usage": True}}
    bodies = {
        "text": {**common, "prompt": "Once", "max_tokens": 0, "echo": True, "logprobs": 1},
        "tokens": {"prompt": [[1, 2], "a"], "stop": "x"},
        "chat": {**common, "messages": [{"role": "user", "content": "hi"}, {
            "role": "assistant", "content": [{"type": "text", "text": "a"}]}],
            "max_completion_tokens": 5, "logprobs": True, "top_logprobs": 2},
        "tokenize": {"model": "m", "prompt": "Once", "add_special_tokens": False,
                     "return_token_strs": True},
        "tokenize_chat": {"messages": [{"role": "user", "content": "hi"}],
                          "add_generation_prompt": False},
        "detokenize": {"model": "m", "tokens": [1, 2, 3]},
    }
    return {name: json.dumps(body) for name, body in bodies.items()}


def main() -> None:
    texts = text_seeds()
    for target, seeds in {
            "safetensors_fuzz": safetensors_seeds(), "gguf_fuzz": gguf_seeds(),
            "config_fuzz": config_seeds(), "tokenizer_json_fuzz": tokenizer_seeds(),
            "csv_fuzz": texts["csv"], "chat_template_fuzz": dict(texts["chat"], **chat_templates()),
            "api_request_fuzz": request_seeds(),
            "sentencepiece_fuzz": {"bpe": sentencepiece(2), "unigram": sentencepiece(1)},
    }.items():
        save(target, seeds)


main()
