"""GGUF tokenizer metadata to Hugging Face files: both kinds, every pre-tokenizer name, and bad metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.config import ModelConfig, RopeConfig
from edge.errors import TokenizerError
from edge.text.tokenizer import load_tokenizer, tokenizer_files_from_gguf
from edge.text.tokenizer.pre_tokenizers import PRE_TOKENIZERS

TEXTS = json.loads((Path(__file__).parent / "data" / "tokenizer_texts.json").read_text())
BYTES = [chr(b) for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
BYTES += [chr(b) for b in range(0x100, 0x100 + 256 - len(BYTES))]


def make_config(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        model_type="llama",
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        rms_norm_eps=1e-5,
        max_position_embeddings=64,
        rope=RopeConfig(),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_ids=(),
    )


@pytest.fixture
def bpe_metadata() -> Callable[[str], dict[str, Any]]:
    """A byte-level vocabulary whose merges join digits, letters, spaces and punctuation in many ways."""

    def make(pre: str) -> dict[str, Any]:
        joined = (
            "1 2,12 3,123 4,Ġ 1,Ġ t,Ġt h,h e,l l,' ll,' s,. .,. Ċ,Ġ Ġ,ĠĠ Ġ,Ċ Ċ,ĉ ĉ,č Ċ,Ġ (,! !,! a,/ Ċ,) Ċ"
        )
        merges = f"{joined},A b,a b,ab c,b A,I t,ä ½,ä½ ł,e Ì,o Ì".split(",")
        tokens = [*BYTES, *(merge.replace(" ", "") for merge in merges), "<bos>", "<|im_end|>", "<tool>"]
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * (len(tokens) - 3) + [3, 3, 4],
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": len(tokens) - 3,
            "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        }

    return make


def llama_cpp_ids(metadata: dict[str, Any], folder: Path, texts: list[str]) -> list[list[int]]:
    """What llama.cpp makes of texts, from a GGUF file with this tokenizer and no weights."""
    llama_cpp = pytest.importorskip("llama_cpp")
    import gguf

    path = folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in metadata.items():
        if name.startswith("tokenizer."):
            writer.add_key_value(name, value, *value_type(name, value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


def value_type(name: str, value: Any) -> tuple[Any, ...]:
    import gguf

    kinds = {str: gguf.GGUFValueType.STRING, bool: gguf.GGUFValueType.BOOL, float: gguf.GGUFValueType.FLOAT32}
    if isinstance(value, list):
        return gguf.GGUFValueType.ARRAY, kinds.get(type(value[0]), gguf.GGUFValueType.INT32)
    return (kinds.get(type(value), gguf.GGUFValueType.UINT32),)


# llama.cpp leaves out what these models' own files say: NFC, or \p{M} beside letters.
WITHOUT_MARKS = {"qwen2", "deepseek-r1-qwen", "qwen35", "tekken", "gpt-4o", "llama4"}


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_pre_tokenizers_equal_llama_cpp(
    bpe_metadata: Callable[[str], dict[str, Any]], tmp_path: Path, pre: str
) -> None:
    metadata = bpe_metadata(pre)
    tokenizer = load_tokenizer(
        tokenizer_files_from_gguf(metadata), make_config(len(metadata["tokenizer.ggml.tokens"]))
    )
    texts = {name: text + " 1234567 It's he'LL ...\n\n   x  12 abAb<tool>y" for name, text in TEXTS.items()}
    if pre in WITHOUT_MARKS:
        del texts["combining"]
    reference = llama_cpp_ids(metadata, tmp_path, list(texts.values()))
    found = [tokenizer.encode(text, add_bos=False, parse_special=True) for text in texts.values()]
    assert dict(zip(texts, found, strict=True)) == dict(zip(texts, reference, strict=True))


def test_pre_tokenizers_differ(bpe_metadata: Callable[[str], dict[str, Any]]) -> None:
    """The vocabulary of these tests can tell the kinds apart."""
    text = "".join(TEXTS.values()) + " 1234567 It's he'LL ...\n\n   x  12 abAb"
    seen = set()
    for kind in set(PRE_TOKENIZERS.values()):
        name = next(name for name, found in PRE_TOKENIZERS.items() if found == kind)
        metadata = bpe_metadata(name)
        files = tokenizer_files_from_gguf(metadata)
        tokenizer = load_tokenizer(files, make_config(len(metadata["tokenizer.ggml.tokens"])))
        seen.add((tuple(tokenizer.encode(text)), kind.ignore_merges))
    assert len(seen) == len(set(PRE_TOKENIZERS.values()))


@pytest.mark.parametrize(("pre", "expected"), [("gpt-2", False), ("llama-bpe", True), ("tekken", True)])
def test_bos_follows_the_file_and_else_the_kind(
    bpe_metadata: Callable[[str], dict[str, Any]], pre: str, expected: bool
) -> None:
    metadata = bpe_metadata(pre)
    config = make_config(len(metadata["tokenizer.ggml.tokens"]))
    bos = metadata["tokenizer.ggml.bos_token_id"]
    tokenizer = load_tokenizer(tokenizer_files_from_gguf(metadata), config)
    assert (tokenizer.encode("a")[0] == bos) is expected
    assert tokenizer.eos_ids == {bos + 1}
    metadata["tokenizer.ggml.add_bos_token"] = not expected
    tokenizer = load_tokenizer(tokenizer_files_from_gguf(metadata), config)
    assert (tokenizer.encode("a")[0] == bos) is not expected


def test_ordinary_added_tokens_are_always_matched(bpe_metadata: Callable[[str], dict[str, Any]]) -> None:
    metadata = bpe_metadata("gpt-2")
    size = len(metadata["tokenizer.ggml.tokens"])
    tokenizer = load_tokenizer(tokenizer_files_from_gguf(metadata), make_config(size))
    ids = tokenizer.encode("a<tool><|im_end|>")
    assert size - 1 in ids
    assert size - 2 not in ids
    assert tokenizer.decode(ids) == "a<tool><|im_end|>"


@pytest.fixture
def sentencepiece_metadata(shared_data: Path) -> dict[str, Any]:
    """MiniCPM4's model as llama.cpp's converter writes it down, added tokens included."""
    from sentencepiece import sentencepiece_model_pb2

    folder = shared_data / "minicpm4-8b"
    model = (folder / "tokenizer.model").read_bytes()
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model).pieces
    added = json.loads((folder / "added_tokens.json").read_text())
    added_texts = sorted(added, key=lambda text: added[text])
    return {
        "general.architecture": "minicpm",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.piece for piece in pieces] + added_texts,
        "tokenizer.ggml.scores": [piece.score for piece in pieces] + [-1000.0] * len(added),
        "tokenizer.ggml.token_type": [piece.type for piece in pieces] + [3] * len(added),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 73440,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_sentencepiece_equals_the_original_files(
    sentencepiece_metadata: dict[str, Any], shared_data: Path
) -> None:
    config = make_config(73448)
    tokenizer = load_tokenizer(tokenizer_files_from_gguf(sentencepiece_metadata), config)
    folder = shared_data / "minicpm4-8b"
    original = load_tokenizer({path.name: path.read_bytes() for path in folder.iterdir()}, config)
    assert tokenizer.special_tokens == original.special_tokens
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {2, 73440}  # </s> is a control token
    for text in TEXTS.values():
        for parse_special in (False, True):
            ids = tokenizer.encode(text, parse_special=parse_special)
            assert ids == original.encode(text, parse_special=parse_special)
            assert tokenizer.decode(ids) == original.decode(ids)


def test_sentencepiece_with_prefix_space_equals_llama_cpp(
    sentencepiece_metadata: dict[str, Any], tmp_path: Path
) -> None:
    metadata = {**sentencepiece_metadata, "tokenizer.ggml.add_space_prefix": True}
    tokenizer = load_tokenizer(tokenizer_files_from_gguf(metadata), make_config(73448))
    texts = ["Hello world", "你好", "<|im_start|>user<|im_end|>x", "a<|im_end|>b c", "  two"]
    reference = llama_cpp_ids(metadata, tmp_path, texts)
    assert [tokenizer.encode(text, add_bos=False, parse_special=True) for text in texts] == reference
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a\nb...c")) == "a\nb...c"  # no space inside, unlike llama.cpp
    ids = tokenizer.encode("world", add_bos=False)
    assert tokenizer.decode(ids) == "world"
    assert tokenizer.decode(ids, continues=True) == " world"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "exotic"}, "pre-tokenizer 'exotic'"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer model 'rwkv'"),
        ({"tokenizer.ggml.model": None}, "no 'tokenizer.ggml.model'"),
        ({"tokenizer.ggml.tokens": None}, "no 'tokenizer.ggml.tokens'"),
        ({"tokenizer.ggml.merges": None}, "no 'tokenizer.ggml.merges'"),
        ({"tokenizer.ggml.merges": ["h z"]}, "merge 'h z'"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 token types"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "'a' twice"),
        ({"tokenizer.ggml.model": "llama"}, "no 'tokenizer.ggml.scores'"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0]}, "1 scores"),
    ],
)
def test_bad_metadata_is_named(
    bpe_metadata: Callable[[str], dict[str, Any]], change: dict[str, Any], message: str
) -> None:
    metadata = {**bpe_metadata("gpt-2"), **change}
    with pytest.raises(TokenizerError, match=message):
        tokenizer_files_from_gguf({key: value for key, value in metadata.items() if value is not None})
