"""SentencePiece's `tokenizer.model` as a `tokenizer.json`, for runtimes that read nothing else.

Its BPE joins the pair whose piece has the best score, and a list of merges in the order of scores is what
`tokenizer.json` holds. Whatever that form can't say (other algorithms, a normalizer with rules) is refused.
"""

from __future__ import annotations

import json
from typing import Any

from edge.errors import ExportError
from edge.export.source import Source
from edge.text.tokenizer.load import load_tokenizer
from edge.text.tokenizer.segments import SPACE_SYMBOL
from edge.text.tokenizer.sentencepiece_model import model_proto
from edge.text.tokenizer.settings import read_settings

TOKENIZER = "tokenizer.json"
_BPE, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 2, 3, 4, 6  # sentencepiece_model.proto
_SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a\ttab and\n\na blank line ",
    "def f(x):\n    return x ** 2  # 中文注释 … naïve 🦊🦊",
    "今天天气很好，我们去公园散步吧。1234567890",
    "",
)


def converted_tokenizer(source: Source) -> bytes | None:
    """The file to write, None if the source has one or no tokenizer.model; ExportError if none is exact."""
    files = source.tokenizer_files
    if TOKENIZER in files or "tokenizer.model" not in files:
        return None
    return checked_tokenizer(source, _convert(files, source.config.vocab_size))


def checked_tokenizer(source: Source, document: dict[str, Any]) -> bytes:
    """The file with that content; ExportError unless it cuts texts as the source's own tokenizer does."""
    data = json.dumps(document, ensure_ascii=False).encode()
    _compare(source, data)
    return data


def _convert(files: dict[str, bytes], size: int) -> dict[str, Any]:
    proto = model_proto().FromString(files["tokenizer.model"])
    settings = read_settings(files)
    if proto.trainer_spec.model_type != _BPE:
        raise _refusal("its SentencePiece model is not BPE")
    if proto.normalizer_spec.precompiled_charsmap or proto.normalizer_spec.remove_extra_whitespaces:
        raise _refusal("its SentencePiece model rewrites the text before it is cut")
    scores = {piece.piece: piece.score for piece in proto.pieces}
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    added = {
        index: (piece.piece, piece.type != _USER_DEFINED)
        for index, piece in enumerate(proto.pieces)
        if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }
    for token in settings.merged([], size):
        added[token.id] = token.text, token.special
    prefix = proto.normalizer_spec.add_dummy_prefix
    if settings.add_prefix_space is not None:
        prefix = settings.add_prefix_space
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SYMBOL}
    normalizers = [{"type": "Prepend", "prepend": SPACE_SYMBOL}] if prefix else []
    unknown = next((piece.piece for piece in proto.pieces if piece.type == _UNKNOWN), None)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for index, (text, special) in sorted(added.items())
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers, spaces]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_SYMBOL}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(piece.type == _BYTE for piece in proto.pieces),
            "ignore_merges": False,
            "vocab": ids,
            "merges": _merges(scores, ids, {text for text, _ in added.values()}),
        },
    }


def _merges(scores: dict[str, float], ids: dict[str, int], whole: set[str]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, the best score first; ties in the order of the pieces."""
    found = []
    for piece, score in scores.items():
        if piece in whole:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-score, ids[piece], ids[left], ids[right], [left, right]))
    return [pair for *_, pair in sorted(found, key=lambda merge: merge[:4])]


def _compare(source: Source, data: bytes) -> None:
    """Both tokenizers must cut the same texts alike."""
    others = {name: file for name, file in source.tokenizer_files.items() if name != "tokenizer.model"}
    wanted = load_tokenizer(source.tokenizer_files, source.config)
    found = load_tokenizer({**others, TOKENIZER: data}, source.config)
    for text in _SAMPLES:
        if list(wanted.encode(text)) != list(found.encode(text)):
            raise _refusal(f"as tokenizer.json it cuts {text!r} otherwise")


def _refusal(reason: str) -> ExportError:
    return ExportError(
        "The model's tokenizer can't be made into the tokenizer.json that the runtime needs: "
        f"{reason}; put an exact tokenizer.json beside it."
    )
