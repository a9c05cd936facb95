"""Encodes with SentencePiece, whose normalization table a tokenizer.model brings along.

Served in a process of its own (`worker`): the table may turn each character into a long text, and not every
version of the library checks it.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from edge.errors import TokenizerError
from edge.text.isolation.server import one_line

_SPACE_SYMBOL = "▁"


class Program:
    """What the process offers, for one tokenizer.model."""

    def open(self, data: str, prefix: bool | None, legacy: bool) -> dict[str, Any]:
        """Read a model file.

        data: base64. prefix: put a space in front of a text; None does what the file says. legacy: also in
        front of text after a control token. Returns `prefix`, `pieces` (how many), the ids `bos` and `unk`
        (-1 for none), and `control`: id and piece of each control token and of the unknown one.
        """
        model = b64decode(data)
        processor = _load(model)
        has_prefix = processor.normalize("a").startswith(_SPACE_SYMBOL)
        wanted = has_prefix if prefix is None else prefix
        self._first = processor if wanted == has_prefix else _with_dummy_prefix(model, wanted)
        self._later = self._first if legacy or not wanted else _with_dummy_prefix(model, False)
        ids = list(range(processor.vocab_size()))
        unknown = processor.unk_id()
        control = [token_id for token_id in ids if processor.is_control(token_id) or token_id == unknown]
        return {
            "prefix": wanted,
            "pieces": len(ids),
            "bos": processor.bos_id(),
            "unk": unknown,
            "control": [(token_id, processor.id_to_piece(token_id)) for token_id in control],
        }

    def encode(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of each text; beside it whether it is the beginning of a text."""
        return [(self._first if at_start else self._later).encode(text) for text, at_start in texts]

    def id(self, piece: str) -> int | None:
        """The id of a token by how the file writes it."""
        found: int = self._first.piece_to_id(piece)
        return None if self._first.is_unknown(found) else found

    def pieces(self, first: int, count: int) -> list[tuple[str, bool]]:
        """The pieces with ids from `first` on, as far as there are any; whether each stands for one byte."""
        ids = range(first, min(first + count, self._first.vocab_size()))
        return [(self._first.id_to_piece(i), self._first.is_byte(i)) for i in ids]


def _load(model: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        if not model:
            raise ValueError("it is empty")  # SentencePiece would accept it, and fail later
        return SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise TokenizerError(
            f"tokenizer.model is not a readable SentencePiece model ({one_line(error)}); get the model's "
            "files again, or use those with a tokenizer.json."
        ) from None


def _with_dummy_prefix(model: bytes, prefix: bool) -> Any:
    """A processor of the same model that puts (or doesn't put) a space in front of the text."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]  # made at import
    proto.normalizer_spec.add_dummy_prefix = prefix
    return _load(proto.SerializeToString())
