"""Tokenizer files that hang, panic or grow without end: one sentence, and the next text is encoded."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.config import ModelConfig
from edge.errors import TokenizerError
from edge.text.tokenizer import Tokenizer, load_tokenizer, process, tokenizer_files_from_gguf
from edge.text.tokenizer.sentencepiece_model import model_proto

LETTERS = [chr(code) for code in range(33, 127)] + ["\u0120"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory can be limited on Linux only")

Open = Callable[..., Tokenizer]


@pytest.fixture
def open_json(tiny_config: ModelConfig) -> Open:
    """`open_json(field=value, ...)`: a byte-level tokenizer.json of ASCII letters with changes."""

    def make(model: dict[str, Any] | None = None, **changes: Any) -> Tokenizer:
        bpe = {"type": "BPE", "vocab": {letter: i for i, letter in enumerate(LETTERS)}, "merges": []}
        document: dict[str, Any] = {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": BYTE_LEVEL,
            "post_processor": None,
            "decoder": BYTE_LEVEL,
            "model": {**bpe, **(model or {})},
        }
        data = json.dumps({**document, **changes}).encode()
        return load_tokenizer({"tokenizer.json": data}, replace(tiny_config, vocab_size=400))

    return make


def split(expression: str) -> dict[str, Any]:
    """A pre-tokenizer that cuts text by an expression."""
    rule = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [rule, BYTE_LEVEL]}


def replacing(*pairs: tuple[str, str]) -> dict[str, Any]:
    """A normalizer that replaces one text after another."""
    rules = [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in pairs]
    return {"type": "Sequence", "normalizers": rules}


@pytest.mark.parametrize("expression", [r"(x+x+)+y", r"(x|xx)+$", r"(x+)+$"])
def test_a_panic_is_one_sentence_and_the_next_text_is_encoded(open_json: Open, expression: str) -> None:
    tokenizer = open_json(pre_tokenizer=split(expression))
    with pytest.raises(TokenizerError, match=r"rules in tokenizer\.json can't be applied \(Onig") as caught:
        tokenizer.encode("x" * 60 + "b")
    assert "\n" not in str(caught.value)
    assert tokenizer.decode(tokenizer.encode("hi x")) == "hi x"


def test_an_endless_expression_is_stopped(open_json: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SECONDS", 1.0)
    tokenizer = open_json(pre_tokenizer=split(r"(?<a>x\g<a>?\g<a>?)z"))
    begin = time.monotonic()
    with pytest.raises(TokenizerError, match="takes more than 1 seconds"):
        tokenizer.encode("x" * 2000)
    assert time.monotonic() - begin < 30
    assert tokenizer.decode(tokenizer.encode("hi x")) == "hi x"


@linux
@pytest.mark.parametrize(
    "normalizer",
    [
        replacing(("x", "y" * 100), ("y", "z" * 1000), ("z", "w" * 1000)),
        {"type": "Replace", "pattern": {"Regex": "[x-z]"}, "content": "y" * 2_000_000},
    ],
)
def test_growth_is_stopped(open_json: Open, normalizer: dict[str, Any]) -> None:
    tokenizer = open_json(normalizer=normalizer)
    with pytest.raises(TokenizerError, match=r"out of memory|too much memory|more than 10 seconds"):
        tokenizer.encode("x" * 100)
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"


@linux
def test_growth_while_opening_is_stopped(open_json: Open) -> None:
    """Added tokens are normalized when the file is read."""
    token = {**SPECIAL, "id": len(LETTERS), "content": "x" * 100, "normalized": True, "special": False}
    with pytest.raises(TokenizerError, match=r"out of memory|too much memory"):
        open_json(normalizer=replacing(("x", "y" * 1000), ("y", "z" * 100_000)), added_tokens=[token])


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"continuing_subword_prefix": "######", "merges": [["a", "b"]]}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "EAAAAP////////////////////8A"}},
        {"pre_tokenizer": split("(" * 5000 + ")" * 5000)},
        {"pre_tokenizer": split("(?:(?:a{9999}){9999}){9999}")},
        {"added_tokens": [{**SPECIAL, "id": 95, "content": "\ud800"}]},
        {"model": {"vocab": {"a": -1}}},
    ],
)
def test_what_breaks_the_library_while_opening_is_one_sentence(
    open_json: Open, changes: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json c"):
        open_json(**changes)
    assert capfd.readouterr() == ("", "")


def test_a_byte_token_that_is_none_is_text(open_json: Open) -> None:
    fallback = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    vocabulary = {letter: i for i, letter in enumerate([*LETTERS, "<0xZZ>", "<0x41>"])}
    tokenizer = open_json(model={"vocab": vocabulary}, decoder=fallback)
    assert tokenizer.token_bytes(vocabulary["<0xZZ>"]) == b"<0xZZ>"
    assert tokenizer.token_bytes(vocabulary["<0x41>"]) == b"A"


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"\ud800": 95}, "half of a character"),
        ({"<a>": -1}, "gives a token the id -1"),
    ],
)
def test_added_tokens_that_are_none_are_refused(
    tiny_config: ModelConfig, added: dict[str, int], message: str
) -> None:
    model = {"type": "BPE", "vocab": {letter: i for i, letter in enumerate(LETTERS)}, "merges": []}
    document = {"added_tokens": [], "pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL, "model": model}
    files = {
        "tokenizer.json": json.dumps(document).encode(),
        "added_tokens.json": json.dumps(added).encode(),
        "tokenizer_config.json": json.dumps({"additional_special_tokens": list(added)}).encode(),
    }
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(files, replace(tiny_config, vocab_size=400))


@pytest.mark.parametrize("content", [5, None, [1], {}])
def test_an_added_token_of_another_type_is_refused(tiny_config: ModelConfig, content: Any) -> None:
    files = {
        "tokenizer.json": b"{}",
        "tokenizer_config.json": json.dumps({"added_tokens_decoder": {"95": {"content": content}}}).encode(),
    }
    with pytest.raises(TokenizerError, match=r"added token 95 is .*, which is no text"):
        load_tokenizer(files, tiny_config)


def gguf(*control: str) -> dict[str, Any]:
    """Metadata of a byte-level vocabulary with control tokens after the letters."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*LETTERS, *control],
        "tokenizer.ggml.token_type": [1] * len(LETTERS) + [3] * len(control),
        "tokenizer.ggml.merges": [""],
    }


def test_a_control_token_without_a_text_never_matches(tiny_config: ModelConfig) -> None:
    files = tokenizer_files_from_gguf(gguf("", "<end>"))
    tokenizer = load_tokenizer(files, replace(tiny_config, vocab_size=400))
    empty, end = len(LETTERS), len(LETTERS) + 1
    letters = [LETTERS.index(letter) for letter in "ab"]
    assert tokenizer.protect("ab") == "ab"
    assert tokenizer.encode("ab<end>", parse_special=True) == [*letters, end]
    assert dict(tokenizer.special_tokens) == {"<end>": end}
    assert tokenizer.decode([*letters, empty], skip_special=False) == "ab"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (gguf("\ud800"), r"'tokenizer\.ggml\.tokens' is not a list of texts"),
        ({**gguf(), "tokenizer.ggml.merges": ["\udfff a"]}, r"'tokenizer\.ggml\.merges' is not a list of te"),
        ({**gguf(), "tokenizer.ggml.pre": "\x1b[2J" + "x" * 9999}, r"pre-tokenizer '\[2Jx{297}' \("),
        ({**gguf(), "tokenizer.ggml.model": "\x1b[2J\n"}, r"tokenizer model '\[2J' is not supported"),
        (gguf("\x1b[2J", "\x1b[2J"), r"lists the token '\[2J' twice"),
    ],
)
def test_hostile_names_in_a_gguf_file(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizer_files_from_gguf(metadata)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("token", ["", "a\0b"])
def test_a_sentencepiece_vocabulary_in_a_gguf_file_has_texts_only(token: str) -> None:
    tokens = ["<unk>", "a", token]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 1, 3],
        "tokenizer.ggml.scores": [0.0] * 3,
    }
    with pytest.raises(TokenizerError, match="GGUF file's token 2 is empty or holds a NUL"):
        tokenizer_files_from_gguf(metadata)


def sentencepiece_model(folder: Path, change: Callable[[bytes], bytes]) -> bytes:
    """A small model whose normalization turns x into 30 times y, with that table changed."""
    import sentencepiece

    rules, text = folder / "rules.tsv", folder / "text.txt"
    rules.write_text("78\t" + " ".join(["79"] * 30) + "\n")  # code points in hexadecimal
    text.write_text("hello world xx yy\n" * 100)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "model"),
        vocab_size=20,
        normalization_rule_tsv=str(rules),
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    proto = model_proto().FromString((folder / "model.model").read_bytes())
    proto.normalizer_spec.precompiled_charsmap = change(proto.normalizer_spec.precompiled_charsmap)
    data: bytes = proto.SerializeToString()
    return data


@linux
def test_a_growing_sentencepiece_table_is_stopped(tiny_config: ModelConfig, tmp_path: Path) -> None:
    def grown(table: bytes) -> bytes:
        return table[: table.index(b"yyy")] + b"y" * 3_000_000 + b"\0"

    files = {"tokenizer.model": sentencepiece_model(tmp_path, grown)}
    tokenizer = load_tokenizer(files, tiny_config)
    with pytest.raises(TokenizerError, match=r"rules in tokenizer\.model can't be applied \(it "):
        tokenizer.encode("x" * 1000)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_a_broken_sentencepiece_table_is_one_sentence(tiny_config: ModelConfig, tmp_path: Path) -> None:
    """Its units point outside it."""

    def broken(table: bytes) -> bytes:
        size = struct.unpack("<I", table[:4])[0]
        return table[:4] + b"\xff\xfe\xff\x7f" * (size // 4) + table[4 + size :]

    files = {"tokenizer.model": sentencepiece_model(tmp_path, broken)}
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        load_tokenizer(files, tiny_config).encode("x" * 1000 + "hello\u3042")
