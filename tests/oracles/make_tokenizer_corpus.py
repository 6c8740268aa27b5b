#!/usr/bin/env python3
"""Makes seeds for the fuzz targets of src/tokenizer.

    make_tokenizer_corpus.py OUTPUT_DIR

Writes OUTPUT_DIR/tokenizer_json (small tokenizer.json files of every family that is supported) and
OUTPUT_DIR/sentencepiece (small tokenizer.model files). Needs tokenizers and sentencepiece.
"""
import json
import pathlib
import sys
import tempfile

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer

from make_tokenizer_vectors import (LLAMA3, METASPACE, QWEN2, digits_then_bytes, split_then_bytes,
                                    train_sentencepiece)

TEXT = "the cat sat on the mat; it's 2024, and the mat was flat. " * 40


def tokenizers_with_parts():
    """Hand-sized vocabularies: a seed should be small, and every part should occur."""
    words = ["a", "b", "t", "h", "e", " ", "<", ">", "th", "the", METASPACE, METASPACE + "the"]
    merges = [("t", "h"), ("th", "e"), (METASPACE, "the")]
    for ignore_merges, fuse in ((False, True), (True, False)):
        vocabulary = {word: i for i, word in enumerate(words + ["<unk>", "Ġ", "Ġthe"])}
        model = models.BPE(vocab=vocabulary, merges=merges + [("Ġ", "the")], unk_token="<unk>",
                           fuse_unk=fuse, ignore_merges=ignore_merges, byte_fallback=fuse)
        for normalizer, pre_tokenizer, decoder in (
                (None, split_then_bytes(LLAMA3), decoders.ByteLevel()),
                (normalizers.NFC(), split_then_bytes(QWEN2), decoders.ByteLevel()),
                (None, digits_then_bytes(), decoders.ByteLevel()),
                (normalizers.Sequence([normalizers.Prepend(METASPACE),
                                       normalizers.Replace(" ", METASPACE)]), None,
                 decoders.Sequence([decoders.Replace(METASPACE, " "), decoders.ByteFallback(),
                                    decoders.Fuse(), decoders.Strip(" ", 1, 0)])),
                (None, pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()),
                (None, pre_tokenizers.Sequence([
                    pre_tokenizers.Split("-", "merged_with_previous", invert=True),
                    pre_tokenizers.Digits()]), None)):
            tokenizer = Tokenizer(model)
            if normalizer is not None:
                tokenizer.normalizer = normalizer
            if pre_tokenizer is not None:
                tokenizer.pre_tokenizer = pre_tokenizer
            if decoder is not None:
                tokenizer.decoder = decoder
            tokenizer.add_special_tokens([AddedToken("<s>", normalized=False, special=True)])
            tokenizer.add_tokens([AddedToken("<x>", lstrip=True, rstrip=True, single_word=True),
                                  AddedToken("<é>", normalized=True)])
            tokenizer.post_processor = processors.Sequence([
                processors.ByteLevel(), processors.TemplateProcessing(
                    single="<s> $A <s>", pair="<s> $A $B",
                    special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])])
            yield tokenizer


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    output = pathlib.Path(sys.argv[1])
    json_seeds = output / "tokenizer_json"
    json_seeds.mkdir(parents=True, exist_ok=True)
    for i, tokenizer in enumerate(tokenizers_with_parts()):
        compact = json.dumps(json.loads(tokenizer.to_str()), separators=(",", ":"))
        (json_seeds / f"seed{i}.json").write_text(compact, encoding="utf-8")
    model_seeds = output / "sentencepiece"
    model_seeds.mkdir(parents=True, exist_ok=True)
    for i, settings in enumerate((
            {"byte_fallback": False, "vocab_size": 60}, {"vocab_size": 320},
            {"byte_fallback": False, "vocab_size": 60, "remove_extra_whitespaces": False,
             "user_defined_symbols": ["<x>", "two words"]},
            {"byte_fallback": False, "vocab_size": 60, "add_dummy_prefix": False,
             "split_by_whitespace": False})):
        with tempfile.TemporaryDirectory() as scratch:
            model = train_sentencepiece(TEXT, pathlib.Path(scratch), hard_vocab_limit=False,
                                        **settings)
            (model_seeds / f"seed{i}.model").write_bytes(model.read_bytes())
    print(f"{len(list(output.glob('*/*')))} seeds in {output}")


if __name__ == "__main__":
    main()
