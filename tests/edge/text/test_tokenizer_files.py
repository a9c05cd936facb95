"""Opening tokenizers: BOS and EOS rules, Metaspace and byte-level files, and files that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edge.config import ModelConfig
from edge.errors import TokenizerError
from edge.system.notices import EdgeWarning
from edge.text.tokenizer import load_tokenizer
from edge.text.tokenizer.settings import read_settings
from tests.configs import one_layer

SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
METASPACE_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


@pytest.fixture
def converted() -> Callable[..., dict[str, Any]]:
    """A small tokenizer.json as transformers converts SentencePiece models: Metaspace and byte fallback."""

    def make(**changes: Any) -> dict[str, Any]:
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        pieces += [*"▁abch</s>好", "▁a", "ab", "▁ab", "</", "s>", "</s", "[U]"]
        vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        merges = [["▁", "a"], ["a", "b"], ["▁a", "b"], ["<", "/"], ["s", ">"], ["</", "s"], ["</", "s>"]]
        scheme = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": pieces[i], **SPECIAL} for i in range(3)],
            "normalizer": None,
            "pre_tokenizer": scheme,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
            "decoder": METASPACE_DECODER,
            "model": {
                "type": "BPE",
                "unk_token": "<unk>",
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        }
        return {**document, **changes}

    return make


def pieces_of(document: dict[str, Any], ids: list[int]) -> list[str]:
    by_id = {i: piece for piece, i in document["model"]["vocab"].items()}
    return [by_id[i] for i in ids]


def open_json(document: dict[str, Any], config: ModelConfig | None = None, **files: Any) -> Any:
    contents = {f"{name}.json": json.dumps(data).encode() for name, data in files.items()}
    return load_tokenizer(
        {"tokenizer.json": json.dumps(document).encode(), **contents}, config or one_layer()
    )


def test_metaspace_equals_the_backend(converted: Callable[..., dict[str, Any]]) -> None:
    from tokenizers import Tokenizer as Backend

    document = converted()
    tokenizer, backend = open_json(document), Backend.from_str(json.dumps(document))
    for text in ["ab", " ab  abab", "好é", "ab</s>ab<s> a", "\n"]:
        reference = backend.encode(text).ids
        assert tokenizer.encode(text, parse_special=True) == reference
        assert tokenizer.decode(reference) == backend.decode(reference)
        if not text.startswith(" "):  # this scheme adds no space where there is one, but removes one
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_control_token_built_by_merges_is_taken_apart(converted: Callable[..., dict[str, Any]]) -> None:
    document = converted()
    ids = open_json(document).encode("ab</s>", add_bos=False)
    assert pieces_of(document, ids) == ["▁ab", "<", "/", "s", ">"]


@pytest.mark.parametrize(("scheme", "after"), [("always", "▁ab"), ("first", "ab"), ("never", "ab")])
def test_the_prefix_space_after_a_special_token(
    converted: Callable[..., dict[str, Any]], scheme: str, after: str
) -> None:
    from tokenizers import Tokenizer as Backend

    document = converted()
    document["pre_tokenizer"]["prepend_scheme"] = scheme
    tokenizer = open_json(document)
    reference = Backend.from_str(json.dumps(document))
    for text in ("ab</s>ab", "</s>ab", "ab"):
        assert tokenizer.encode(text, parse_special=True) == reference.encode(text).ids
    assert pieces_of(document, tokenizer.encode("ab</s>ab", parse_special=True))[-1] == after
    assert pieces_of(document, tokenizer.encode("ab", continues=True)) == [after]


def test_bos_comes_from_the_post_processor_or_the_flag(converted: Callable[..., dict[str, Any]]) -> None:
    first = [open_json(converted()).encode("b")[0]]
    first.append(open_json(converted(post_processor=None)).encode("b")[0])
    first.append(open_json(converted(), tokenizer_config={"add_bos_token": False}).encode("b")[0])
    with_flag = {"add_bos_token": True, "bos_token": {"content": "<s>"}}
    first.append(open_json(converted(post_processor=None), tokenizer_config=with_flag).encode("b")[0])
    assert [token_id == 1 for token_id in first] == [True, False, False, True]


def test_tokens_that_only_the_small_files_list(converted: Callable[..., dict[str, Any]]) -> None:
    size = len(converted()["model"]["vocab"])
    added = {
        str(size): {"content": "<think>", "special": False},
        str(size + 1): {"content": "<|im_end|>", "special": False, "lstrip": True, "rstrip": True},
    }
    tokenizer = open_json(
        converted(),
        tokenizer_config={"added_tokens_decoder": added, "additional_special_tokens": ["<|im_end|>"]},
    )
    assert tokenizer.special_tokens["<|im_end|>"] == size + 1
    assert size in tokenizer.encode("a<think>")
    assert size + 1 not in tokenizer.encode("a<|im_end|>")
    spaced = tokenizer.encode("a \n<|im_end|> \tb", parse_special=True)
    assert spaced == tokenizer.encode("a<|im_end|>b", parse_special=True)
    assert tokenizer.decode(spaced, skip_special=False) == "<s> a<|im_end|> b"


def test_truncation_of_the_file_is_ignored(converted: Callable[..., dict[str, Any]]) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    assert (
        open_json(converted(truncation=truncation)).decode(open_json(converted()).encode("h" * 50))
        == "h" * 50
    )
    assert len(open_json(converted(truncation=truncation)).encode("h" * 50)) > 50


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (None, "has no decoder"),
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "decoder WordPiece"),
        (
            {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "BPEDecoder", "suffix": "</w>"}]},
            "Fuse . BPED",
        ),
    ],
)
def test_other_decoders_are_named(
    converted: Callable[..., dict[str, Any]], decoder: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        open_json(converted(decoder=decoder))


def test_the_tokenizers_own_configuration_counts_more_than_the_map_beside_it() -> None:
    """As transformers does with files that list their added tokens; what only the map has counts too."""
    config = {"bos_token": "<s>", "added_tokens_decoder": {}}
    mapped = {"bos_token": "</s>", "unk_token": {"content": "<unk>"}}
    files = {"tokenizer_config.json": config, "special_tokens_map.json": mapped}
    found = read_settings({name: json.dumps(data).encode() for name, data in files.items()})
    assert found.named["bos_token"] == "<s>" and found.named["unk_token"] == "<unk>"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer"),
        ({"tokenizer.json": b"{"}, "tokenizer.json cannot be read"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json cannot be read"),
        ({"tokenizer.model": b"not a model"}, "not a readable SentencePiece model"),
        ({"tokenizer.model": b""}, "not a readable SentencePiece model"),
        (
            {"tokenizer.json": b"{}", "tokenizer_config.json": b"\xff"},
            "tokenizer_config.json is not valid JSON",
        ),
        ({"tokenizer.json": b"{}", "added_tokens.json": b"[]"}, "added_tokens.json must hold a JSON object"),
        ({"tokenizer.json": b"{}", "added_tokens.json": b'{"a": "b"}'}, "added tokens"),
        (
            {"tokenizer.json": b"{}", "tokenizer_config.json": b'{"added_tokens_decoder": {"5": {}}}'},
            "added tokens",
        ),
    ],
)
def test_bad_files_get_one_sentence(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(files, one_layer())
    assert "\n" not in str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused(converted: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(TokenizerError, match="vocabulary only 100 tokens"):
        open_json(converted(), one_layer(vocab_size=100))


def test_contradicting_ids_are_refused(converted: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(TokenizerError, match="disagree on the id of '<think>'"):
        open_json(converted(), added_tokens={"<think>": 390})


@pytest.mark.parametrize(
    ("decoder", "added", "said"),
    [
        ({"1": {"content": "<other>"}}, {}, "the tokenizer itself has '<s>' as token 1, and .* '<other>'"),
        ({"350": {"content": "</s>"}}, {}, "the tokenizer itself has '</s>' as token 2, .* token 350"),
        ({}, {"</s>": 350}, "disagree on the id of '</s>'"),
        ({"350": {"content": "<a>"}}, {"<a>": 351}, "tokenizer_config.json has '<a>' as token 350, .* 351"),
        ({"350": {"content": "<a>"}}, {"<b>": 350}, "tokenizer_config.json has '<a>' as token 350, .*'<b>'"),
    ],
)
def test_two_sources_of_added_tokens_agree(
    converted: Callable[..., dict[str, Any]], decoder: dict[str, Any], added: dict[str, int], said: str
) -> None:
    entries = {key: {"special": True, **entry} for key, entry in decoder.items()}
    with pytest.raises(TokenizerError, match=said):
        open_json(converted(), tokenizer_config={"added_tokens_decoder": entries}, added_tokens=added)


def test_marks_of_byte_order_and_nulls_are_harmless(converted: Callable[..., dict[str, Any]]) -> None:
    document = "\ufeff" + json.dumps(converted())
    files = {"tokenizer.json": document.encode(), "tokenizer_config.json": b'{"added_tokens_decoder": null}'}
    plain = open_json(converted())
    assert load_tokenizer(files, one_layer()).encode("ab") == plain.encode("ab")


def test_the_tokenizers_bos_counts_and_is_told(converted: Callable[..., dict[str, Any]]) -> None:
    with pytest.warns(EdgeWarning, match=r"begins texts with token 1 \('<s>'\).* names 2\."):
        tokenizer = open_json(
            converted(),
            one_layer(bos_token_id=2),
            tokenizer_config={"bos_token": "<s>", "add_bos_token": True},
        )
    assert tokenizer.encode("b")[0] == tokenizer.bos_id == 1
