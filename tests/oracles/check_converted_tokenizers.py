#!/usr/bin/env python3
"""Loads the tokenizer files made from GGUF vocabularies with `tokenizers` and `transformers`.

    check_converted_tokenizers.py VECTORS_DIR

VECTORS_DIR is what make_tokenizer_vectors.py wrote; the tokenizer test has put the converted files
beside the vectors (FOLDER/converted) when it ran. Both libraries must give the reference's ids, as
must `transformers` in a folder whose config.json names the model's architecture.
"""
import json
import pathlib
import shutil
import sys
import tempfile

import tokenizers
import transformers

ARCHITECTURES = {"llama3": "llama", "llama2-legacy": "llama", "smollm2": "llama", "gpt2": "llama",
                 "qwen2": "qwen2"}


def read_vectors(path, step):
    with open(path, encoding="utf-8") as lines:
        vectors = [json.loads(line) for line in lines]
    return [v for v in vectors if "text" in v][::step]


def compare(name, vectors, encode, decode):
    wrong = 0
    for vector in vectors:
        text = bytes.fromhex(vector["text"]).decode("utf-8", errors="replace")
        for add_special, key in ((False, "ids"), (True, "added")):
            if encode(text, add_special) != vector[key]:
                wrong += 1
                if wrong <= 3:
                    print(f"{name}: {text!r}: want {vector[key]}, got {encode(text, add_special)}")
        if decode(vector["added"]) != vector["decoded"]:
            wrong += 1
            if wrong <= 3:
                print(f"{name}: decoding {vector['added']}")
    print(f"{name}: {len(vectors)} texts, {wrong} differences")
    return wrong


def check_folder(folder):
    converted = folder / "converted"
    vectors = read_vectors(folder / "vectors.jsonl", step=5)
    plain = tokenizers.Tokenizer.from_file(str(converted / "tokenizer.json"))
    wrong = compare(f"{folder.name}, tokenizers", vectors,
                    lambda text, special: plain.encode(text, add_special_tokens=special).ids,
                    lambda ids: plain.decode(ids))
    with tempfile.TemporaryDirectory() as scratch:
        model = pathlib.Path(scratch) / "model"
        shutil.copytree(converted, model)
        for architecture in (None, ARCHITECTURES[folder.name]):
            if architecture is not None:
                (model / "config.json").write_text(json.dumps({"model_type": architecture}))
            auto = transformers.AutoTokenizer.from_pretrained(str(model))
            wrong += compare(
                f"{folder.name}, transformers ({type(auto).__name__}, config.json: {architecture})",
                vectors, lambda text, special: auto(text, add_special_tokens=special)["input_ids"],
                lambda ids: auto.decode(ids, skip_special_tokens=True))
            config = json.loads((converted / "tokenizer_config.json").read_text())
            for key in ("bos_token", "eos_token", "pad_token", "chat_template"):
                if getattr(auto, key) != config.get(key):
                    print(f"{folder.name}: {key}: {getattr(auto, key)!r}, not {config.get(key)!r}")
                    wrong += 1
    return wrong


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folders = sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/converted"))
    if not folders:
        sys.exit("no converted tokenizers: run the tokenizer test first")
    wrong = sum(check_folder(folder) for folder in folders)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
