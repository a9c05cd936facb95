"""SmolLM2's byte-level BPE from its GGUF file: ids as llama.cpp and Hugging Face's pipeline give them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.config import ModelConfig
from edge.config.gguf import config_from_gguf
from edge.text.tokenizer import Tokenizer, load_tokenizer, tokenizer_files_from_gguf

TEXTS = json.loads((Path(__file__).parent / "data" / "tokenizer_texts.json").read_text())
bounded = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def metadata(smollm2_gguf: Path) -> dict[str, Any]:
    import gguf

    fields = gguf.GGUFReader(smollm2_gguf).fields
    return {
        name: field.contents()
        for name, field in fields.items()
        if name.startswith(("tokenizer", "llama", "general"))
    }


@pytest.fixture(scope="module")
def config(metadata: dict[str, Any]) -> ModelConfig:
    return config_from_gguf(metadata, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def files(metadata: dict[str, Any]) -> dict[str, bytes]:
    return tokenizer_files_from_gguf(metadata)


@pytest.fixture(scope="module")
def tokenizer(files: dict[str, bytes], config: ModelConfig) -> Tokenizer:
    return load_tokenizer(files, config)


@pytest.fixture(scope="module")
def hugging_face(metadata: dict[str, Any]) -> Any:
    """The pipeline of SmolLM2's published tokenizer.json, put together by hand."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == 3
        ]
    )
    return backend


@pytest.fixture(scope="module")
def known_bytes(tokenizer: Tokenizer) -> set[int]:
    """This vocabulary lacks some lead bytes of unassigned planes: every library loses them."""
    single = (tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size))
    return {data[0] for data in single if len(data) == 1}


@pytest.fixture(scope="module")
def llama_cpp_model(smollm2_gguf: Path) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(smollm2_gguf), vocab_only=True, verbose=False)


def test_ids_and_roles(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {0, 2}  # <|endoftext|> and <|im_end|>, as llama.cpp has them
    assert tokenizer.special_tokens["<|im_start|>"] == 1
    assert len(tokenizer.special_tokens) == 17
    assert tokenizer.named_tokens["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("parse_special", [False, True])
def test_ids_equal_llama_cpp(
    tokenizer: Tokenizer, llama_cpp_model: Any, name: str, parse_special: bool
) -> None:
    text = TEXTS[name]
    expected = llama_cpp_model.tokenize(text.encode(), add_bos=False, special=parse_special)
    assert tokenizer.encode(text, parse_special=parse_special) == expected


@pytest.mark.parametrize("name", TEXTS)
def test_ids_equal_hugging_face(tokenizer: Tokenizer, hugging_face: Any, name: str) -> None:
    for text in (TEXTS[name], f"<|im_start|>{TEXTS[name]}<|im_end|> {TEXTS[name]}"):
        assert tokenizer.encode(text, parse_special=True) == hugging_face.encode(text).ids


@bounded
@given(st.text(max_size=60))
def test_any_text_equals_hugging_face_and_comes_back(
    tokenizer: Tokenizer, hugging_face: Any, known_bytes: set[int], text: str
) -> None:
    ids = tokenizer.encode(text, parse_special=True)
    assert ids == hugging_face.encode(text).ids
    if set(text.encode()) <= known_bytes:
        assert tokenizer.decode(ids, skip_special=False) == text


@pytest.mark.parametrize("name", TEXTS)
def test_a_stream_shows_whole_characters_only(tokenizer: Tokenizer, name: str) -> None:
    stream, shown = tokenizer.stream(), ""
    for token_id in tokenizer.encode(TEXTS[name]):
        shown += stream.push(token_id)
        assert TEXTS[name].startswith(shown)
    assert shown + stream.flush() == TEXTS[name]


@bounded
@given(st.lists(st.integers(0, 49151) | st.integers(17, 272), max_size=30))
def test_a_stream_of_any_ids_equals_hugging_face(
    tokenizer: Tokenizer, hugging_face: Any, ids: list[int]
) -> None:
    """Ids 17 to 272 are the single bytes: in any order they make invalid UTF-8."""
    stream = tokenizer.stream(skip_special=False)
    streamed = "".join([stream.push(token_id) for token_id in ids]) + stream.flush()
    assert streamed == tokenizer.decode(ids, skip_special=False)
    assert streamed == hugging_face.decode(ids, skip_special_tokens=False)


def test_plain_text_never_gives_control_tokens(tokenizer: Tokenizer) -> None:
    text = "".join(tokenizer.special_tokens)
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(tokenizer.protect(text), parse_special=True) != tokenizer.encode(
        text, parse_special=True
    )
    assert tokenizer.decode(tokenizer.encode(tokenizer.protect(text), parse_special=True)) == text


def test_loading_is_quick(files: dict[str, bytes], config: ModelConfig) -> None:
    start = time.process_time()
    load_tokenizer(files, config).encode("a")
    assert time.process_time() - start < 0.3
