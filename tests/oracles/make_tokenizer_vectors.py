#!/usr/bin/env python3
"""Makes test vectors for src/tokenizer with the reference implementations.

    make_tokenizer_vectors.py OUTPUT_DIR [--shared DIR] [--smollm2 FILE]

Needs the packages tokenizers, sentencepiece, gguf and numpy. Each folder of OUTPUT_DIR holds one
tokenizer (tokenizer.json or tokenizer.model, or gguf_vocabulary.json for what a GGUF file carries)
and vectors.jsonl, one text or one list of ids a line with what the reference makes of it. Real
vocabularies are taken from --shared and --smollm2 (a GGUF file, or a wheel that holds one) where
they are there; the other families get a small vocabulary, trained through their exact pipeline.
"""
import argparse
import itertools
import json
import pathlib
import random
import shutil
import sys
import tempfile
import unicodedata
import zipfile

import sentencepiece
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
METASPACE = "\u2581"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPACES = [chr(c) for c in range(0x110000) if chr(c).isspace()] + ["\u180e", "\u200b", "\u2060"]


# --- Texts -----------------------------------------------------------------------------------

def corpus(shared):
    """Text to train on and to cut samples from."""
    paths = sorted((REPOSITORY / "examples" / "text").glob("*.txt"))
    paths += sorted((REPOSITORY / "src").rglob("*.cc"))[:60]
    wiki = shared / "data" / "wikitext-2-raw" / "wiki.test.raw"
    if wiki.exists():
        paths.append(wiki)
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace")[:400_000] for path in paths)
    # Some of every script, so that merges form among bytes above ASCII too.
    scripts = "\n".join("Привет, мир! Ελληνικά γράμματα. 你好，世界。こんにちは 안녕하세요 مرحبا नमस्ते "
                        "été naïve Übergröße 🙂👍🏽 👨‍👩‍👧 e\u0301 x\u0302 1234 ½ ٣٤ Ⅷ" for _ in range(40))
    return text + "\n" + scripts


def code_point_texts(rng):
    """All of the first two planes and a sample of the others, 48 code points at a time."""
    chunk = 48
    for start in range(0, 0x20000, chunk):
        yield "".join(chr(c) for c in range(start, start + chunk) if not 0xD800 <= c < 0xE000)
    for plane in range(2, 17):
        count = {2: 100, 3: 100, 14: 20}.get(plane, 8)
        for _ in range(count):
            start = plane * 0x10000 + rng.randrange(0, 0x10000 - chunk)
            yield "".join(chr(c) for c in range(start, start + chunk))
    code_points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for _ in range(300):
        yield "".join(chr(rng.choice(code_points)) for _ in range(rng.randrange(1, 20)))


def mixed_texts(rng, text, specials):
    words = text.split()
    lines = [line for line in text.splitlines() if line.strip()]
    numbers = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) in ("Nd", "Nl", "No")]
    marks = [chr(c) for c in range(0x300, 0x370)] + ["\u0591", "\u0345", "\u20dd", "\u3099"]
    letters = list("aeiouAEIOUncszÅ") + ["\u1100", "\u1161", "\u11a8", "\u0915", "\u093c", "か"]
    emoji = ["🙂", "👍🏽", "👨‍👩‍👧", "🇩🇪", "🏳️‍🌈", "❤️", "1️⃣", "\u200d", "\ufe0f"]
    contractions = ["'s", "'S", "'t", "'re", "'RE", "'ve", "'m", "'ll", "'LL", "'d", "'x", "’s", "'ſ"]
    pieces = [
        lambda: rng.choice(words),
        lambda: " " * rng.randrange(1, 9),
        lambda: "".join(rng.choices(SPACES, k=rng.randrange(1, 7))),
        lambda: rng.choice(["\n", "\r\n", "\n\n\n", "\t", "\r", "\x0b", "\x00", "\ufeff"]),
        lambda: "".join(rng.choices("0123456789", k=rng.randrange(1, 12))),
        lambda: "".join(rng.choices(numbers, k=rng.randrange(1, 5))),
        lambda: rng.choice(letters) + "".join(rng.choices(marks, k=rng.randrange(1, 6))),
        lambda: rng.choice(emoji),
        lambda: rng.choice(contractions),
        lambda: "".join(rng.choices("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~", k=rng.randrange(1, 6))),
        lambda: rng.choice(specials),
        lambda: rng.choice([METASPACE, METASPACE * 3, "<0x0A>", "<unk>", "Ġ", "Ċ"]),
        lambda: chr(rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000)])),
    ]
    yield from ["", " ", "  ", "\n", "a", " a", "a ", "  a  b  ", METASPACE, METASPACE + "a", "\x00",
                "a" * 3000, " " * 3000, " " * 2000 + "x", "\n" * 500, "ab" * 1500, "'" * 700,
                "1" * 1000, "é" * 500, "e" + "\u0301\u0323" * 300, "🙂" * 300, "\u00a0" * 300 + "b"]
    for special in specials:
        yield from [special, " " + special + " ", special * 3, "x" + special + "y", special[:-1],
                    " \n " + special + "\t\t" + special + " é", special + " hello", special + "\u0301",
                    "word " + special + "_", special[:3] + special]
    for _ in range(700):
        start = rng.randrange(len(text) - 400)
        yield text[start:start + rng.randrange(1, 400)]
    for _ in range(200):
        yield rng.choice(lines)
    for _ in range(1600):
        yield "".join(rng.choice(pieces)() for _ in range(rng.randrange(1, 12)))


def malformed_texts(rng, text):
    leads = [b"\x80", b"\xbf", b"\xc0\x80", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf0\x9f\x98",
             b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xff", b"\xfe", b"\xe0\x80\x80",
             b"\xf0\x80\x80\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf0\x9f"]
    for lead in leads:
        yield from [lead, b"a" + lead + b"b", lead * 3, lead + "é".encode(), lead + b" <s>"]
    for _ in range(300):
        start = rng.randrange(len(text) - 60)
        data = bytearray(text[start:start + 50].encode())
        for _ in range(rng.randrange(1, 8)):
            data.insert(rng.randrange(len(data) + 1), rng.randrange(0x80, 0x100))
        yield bytes(data)
    for _ in range(300):
        yield bytes(rng.randrange(256) for _ in range(rng.randrange(1, 24)))


def all_texts(text, specials, seed=2024):
    rng = random.Random(seed)
    texts = [t.encode() for t in code_point_texts(rng)]
    texts += [t.encode() for t in mixed_texts(rng, text, specials)]
    texts += list(malformed_texts(rng, text))
    return texts


# --- Vectors ---------------------------------------------------------------------------------

def write_vectors(folder, texts, encode, decode, vocabulary_size, lists=400):
    """encode(text, add_special, parse_special) -> ids; decode(ids, skip_special) -> text."""
    rng = random.Random(7)
    with open(folder / "vectors.jsonl", "w", encoding="utf-8") as out:
        def put(record):
            out.write(json.dumps(record, separators=(",", ":"), ensure_ascii=True) + "\n")

        for data in texts:
            text = data.decode("utf-8", errors="replace")
            ids = encode(text, False, True)
            record = {"text": data.hex(), "ids": ids, "plain": encode(text, False, False),
                      "added": encode(text, True, True)}
            record["decoded"] = decode(record["added"], True)
            record["kept"] = decode(record["added"], False)
            put(record)
        for _ in range(lists):
            ids = [rng.randrange(vocabulary_size) for _ in range(rng.randrange(1, 24))]
            put({"decode": ids, "decoded": decode(ids, True), "kept": decode(ids, False)})


def write_json_vectors(folder, tokenizer, texts):
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))

    def encode(text, add_special, parse_special):
        tokenizer.encode_special_tokens = not parse_special
        return tokenizer.encode(text, add_special_tokens=add_special).ids

    write_vectors(folder, texts, encode,
                  lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip),
                  tokenizer.get_vocab_size())


def write_sentencepiece_vectors(folder, model, texts):
    """SentencePiece itself never parses special tokens, so only plain texts have vectors."""
    folder.mkdir(parents=True)
    shutil.copyfile(model, folder / "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    rng = random.Random(7)
    with open(folder / "vectors.jsonl", "w", encoding="utf-8") as out:
        for data in texts:
            text = data.decode("utf-8", errors="replace")
            ids = processor.encode(text)
            with_bos = processor.encode(text, add_bos=processor.bos_id() >= 0)
            record = {"text": data.hex(), "plain": ids, "plain_added": with_bos,
                      "decoded": processor.decode(ids)}
            out.write(json.dumps(record, separators=(",", ":")) + "\n")
        for _ in range(600):
            ids = [rng.randrange(processor.get_piece_size()) for _ in range(rng.randrange(1, 24))]
            if rng.random() < 0.5:  # more of the bytes
                ids = [rng.randrange(min(300, processor.get_piece_size())) for _ in ids]
            out.write(json.dumps({"decode": ids, "decoded": processor.decode(ids)}) + "\n")


# --- Tokenizers ------------------------------------------------------------------------------

def byte_level_family(normalizer, pre_tokenizer, text, specials, size=3000, ignore_merges=False,
                      template=None):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    if template is None:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{template} $A", pair=f"{template} $A {template} $B",
                special_tokens=[(template, tokenizer.token_to_id(template))])])
    return tokenizer


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits_then_bytes():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False)])


def llama2_vocabulary(model):
    """Pieces and the merges that they imply, best score first."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i, piece in enumerate(pieces):
        if processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-processor.get_score(i), i, cut, left, right))
    return vocabulary, [(left, right) for *_, left, right in sorted(merges)]


def llama2_style(model, normalizer=None, pre_tokenizer=None, strip=True):
    vocabulary, merges = llama2_vocabulary(model)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>",
                                     fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace(METASPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True)
                                  for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer


def unknown_style(text, fuse):
    """BPE without bytes to fall back to, on Metaspace words; the alphabet is limited."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<unk>", "<s>"], limit_alphabet=60,
                                  show_progress=False)
    tokenizer.train_from_iterator(text[:200_000].splitlines(), trainer)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def train_sentencepiece(text, folder, **options):
    source = folder / "text.txt"
    source.write_text(text, encoding="utf-8")
    prefix = folder / "model"
    settings = {"model_type": "bpe", "vocab_size": 900, "byte_fallback": True,
                "normalization_rule_name": "identity", "character_coverage": 0.995,
                "minloglevel": 2, "input_sentence_size": 4000, "max_sentence_length": 4000}
    settings.update(options)
    sentencepiece.SentencePieceTrainer.train(input=str(source), model_prefix=str(prefix), **settings)
    return prefix.with_suffix(".model")


def read_gguf_vocabulary(path):
    import gguf  # imported late: only the real SmolLM2 needs it

    fields = gguf.GGUFReader(path).fields

    def value(key):
        field = fields.get(key)
        return None if field is None else field.contents()

    prefix = "tokenizer.ggml."
    record = {key: value(prefix + key) for key in (
        "model", "pre", "tokens", "merges", "scores", "token_type", "bos_token_id", "eos_token_id",
        "unknown_token_id", "padding_token_id", "add_bos_token", "add_eos_token",
        "add_space_prefix")}
    record["chat_template"] = value("tokenizer.chat_template")
    return {key: item for key, item in record.items() if item is not None}


def as_gguf(vocabulary_by_id, special_ids, **fields):
    types = [3 if i in special_ids else 1 for i in range(len(vocabulary_by_id))]
    return {"tokens": vocabulary_by_id, "token_type": types, **fields}


def tokens_by_id(tokenizer):
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def smollm2_tokenizer(record):
    vocabulary = {token: i for i, token in enumerate(record["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in record["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = digits_then_bytes()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)
                                  for token, kind in zip(record["tokens"], record["token_type"])
                                  if kind == 3])
    return tokenizer


def write_gguf_record(folder, record):
    (folder / "gguf_vocabulary.json").write_text(json.dumps(record), encoding="utf-8")


# --- The set ---------------------------------------------------------------------------------

def find_smollm2(path, scratch):
    if path is None:
        return None
    if path.suffix != ".whl":
        return path
    with zipfile.ZipFile(path) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        return pathlib.Path(wheel.extract(name, scratch))


def make_byte_level(output, text):
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
    texts = all_texts(text, specials)

    llama3 = byte_level_family(None, split_then_bytes(LLAMA3), text, specials, ignore_merges=True,
                               template="<|begin_of_text|>")
    write_json_vectors(output / "llama3", llama3, texts)
    model = json.loads(llama3.to_str())["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    write_gguf_record(output / "llama3", as_gguf(
        tokens_by_id(llama3), set(range(5)), model="gpt2", pre="llama-bpe", merges=merges,
        bos_token_id=0, eos_token_id=1))

    qwen2 = byte_level_family(normalizers.NFC(), split_then_bytes(QWEN2), text, specials)
    write_json_vectors(output / "qwen2", qwen2, texts)
    merges = [" ".join(pair) for pair in json.loads(qwen2.to_str())["model"]["merges"]]
    write_gguf_record(output / "qwen2", as_gguf(
        tokens_by_id(qwen2), set(range(5)), model="gpt2", pre="qwen2", merges=merges,
        eos_token_id=4, padding_token_id=1, add_bos_token=False))

    gpt2 = byte_level_family(None, pre_tokenizers.ByteLevel(add_prefix_space=False), text, specials)
    write_json_vectors(output / "gpt2", gpt2, texts)
    merges = [" ".join(pair) for pair in json.loads(gpt2.to_str())["model"]["merges"]]
    write_gguf_record(output / "gpt2", as_gguf(
        tokens_by_id(gpt2), set(range(5)), model="gpt2", pre="gpt-2", merges=merges,
        bos_token_id=1, eos_token_id=1))

    few = texts[::4]
    write_json_vectors(output / "gpt2-prefix-space", byte_level_family(
        None, pre_tokenizers.ByteLevel(add_prefix_space=True), text, specials), few)
    write_json_vectors(output / "smollm-small", byte_level_family(
        None, digits_then_bytes(), text, specials), few)
    for behavior, invert in itertools.product(
            ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"],
            [False, True]):
        split = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(r"\p{L}+|\s"), behavior=behavior, invert=invert),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split("--", behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        write_json_vectors(output / f"split-{behavior}-{'inverted' if invert else 'plain'}",
                           byte_level_family(None, split, text[:200_000], specials, size=600),
                           texts[::16])

    # Added tokens with every option, in a tokenizer with a normalizer that changes them.
    added = byte_level_family(normalizers.NFC(), split_then_bytes(QWEN2), text, specials, size=600)
    tokens = [AddedToken("<left>", lstrip=True, normalized=False),
              AddedToken("<right>", rstrip=True, normalized=False),
              AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
              AddedToken("word", single_word=True, normalized=False),
              AddedToken("cafe\u0301", normalized=True), AddedToken("<norm>", normalized=True),
              AddedToken("wordy", normalized=False), AddedToken("a b", normalized=False),
              AddedToken("Ġx é", normalized=False), AddedToken("<lone>", single_word=True)]
    added.add_tokens(tokens)
    added.add_special_tokens([AddedToken("<|left|>", lstrip=True, normalized=False, special=True),
                              AddedToken("<|norm é|>", normalized=True, special=True)])
    specials = [str(token.content) for token in tokens] + ["<|left|>", "<|norm e\u0301|>", "café"]
    write_json_vectors(output / "added-tokens", added, all_texts(text, specials, seed=5)[-3600:])


def make_llama2_style(output, text, model):
    specials = ["<s>", "</s>", "<unk>", "[INST]"]
    texts = all_texts(text, specials)
    legacy = normalizers.Sequence([normalizers.Prepend(METASPACE),
                                   normalizers.Replace(" ", METASPACE)])
    write_json_vectors(output / "llama2-legacy", llama2_style(model, normalizer=legacy), texts)
    few = texts[::3]
    for scheme, split in (("first", False), ("always", True), ("never", False), ("first", True)):
        write_json_vectors(
            output / f"llama2-metaspace-{scheme}-{'split' if split else 'whole'}",
            llama2_style(model, strip=scheme != "never", pre_tokenizer=pre_tokenizers.Metaspace(
                replacement=METASPACE, prepend_scheme=scheme, split=split)), few)
    added = llama2_style(model, normalizer=legacy)
    added.add_tokens([AddedToken("<norm>", normalized=True), AddedToken("<raw>", normalized=False),
                      AddedToken("two words", normalized=True)])
    write_json_vectors(output / "llama2-added", added,
                       all_texts(text, ["<norm>", "<raw>", "two words", "<s>"], seed=6)[-3600::2])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--shared", type=pathlib.Path, default=REPOSITORY.parent / "shared")
    parser.add_argument("--smollm2", type=pathlib.Path)
    options = parser.parse_args()
    if options.output.exists():
        shutil.rmtree(options.output)
    options.output.mkdir(parents=True)
    text = corpus(options.shared)

    make_byte_level(options.output, text)
    for fuse in (True, False):
        write_json_vectors(options.output / f"unknown-{'fused' if fuse else 'single'}",
                           unknown_style(text, fuse), all_texts(text, ["<unk>", "<s>"])[::3])

    texts = all_texts(text, ["<s>", "</s>", "<unk>", "[INST]", "<user>", "two words"])
    variants = {
        "sp-identity": {},
        "sp-tidy": {"remove_extra_whitespaces": True},
        "sp-untidy": {"remove_extra_whitespaces": False, "split_digits": True,
                      "allow_whitespace_only_pieces": True},
        "sp-unknown": {"byte_fallback": False, "remove_extra_whitespaces": False},
        "sp-no-prefix": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        "sp-user-defined": {"user_defined_symbols": ["<user>", "two words", "ab", "\u2581x"],
                            "remove_extra_whitespaces": False},
        "sp-user-defined-tidy": {"user_defined_symbols": ["<user>", " two", "ab "]},
        "sp-across-words": {"split_by_whitespace": False, "remove_extra_whitespaces": False},
    }
    for name, settings in variants.items():
        with tempfile.TemporaryDirectory() as scratch:
            model = train_sentencepiece(text[:300_000], pathlib.Path(scratch), **settings)
            write_sentencepiece_vectors(options.output / name, model, texts[::3])
    for name, settings in {"refused-unigram": {"model_type": "unigram"},
                           "refused-nfkc": {"normalization_rule_name": "nmt_nfkc"}}.items():
        with tempfile.TemporaryDirectory() as scratch:
            model = train_sentencepiece(text[:300_000], pathlib.Path(scratch), **settings)
            (options.output / name).mkdir()
            shutil.copyfile(model, options.output / name / "tokenizer.model")

    llama2 = options.shared / "models" / "llama2-tokenizer" / "tokenizer.model"
    if llama2.exists():
        write_sentencepiece_vectors(options.output / "sp-llama2", llama2, texts)
        make_llama2_style(options.output, text, llama2)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(llama2))
        count = range(processor.get_piece_size())
        write_gguf_record(options.output / "llama2-legacy", {
            "model": "llama", "tokens": [processor.id_to_piece(i) for i in count],
            "scores": [processor.get_score(i) for i in count],
            "token_type": [2 if processor.is_unknown(i) else 3 if processor.is_control(i)
                           else 6 if processor.is_byte(i) else 1 for i in count],
            "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0})
    stories = options.shared / "models" / "stories260K" / "tokenizer.model"
    if stories.exists():
        write_sentencepiece_vectors(options.output / "sp-stories260K", stories, texts)
    with tempfile.TemporaryDirectory() as scratch:
        smollm2 = find_smollm2(options.smollm2, scratch)
        if smollm2 is not None:
            record = read_gguf_vocabulary(smollm2)
            write_json_vectors(options.output / "smollm2", smollm2_tokenizer(record), all_texts(
                text, ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"]))
            write_gguf_record(options.output / "smollm2", record)
    print(f"{len(list(options.output.glob('*/vectors.jsonl')))} tokenizers, "
          f"{len(texts)} texts at most, in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
