"""SentencePiece's `tokenizer.model`, with the added tokens that Hugging Face keeps in files beside it.

Text between special tokens is encoded by SentencePiece itself, with the normalization that the model file
asks for. That is what the models were trained with, MiniCPM4 among them: its file has no dummy prefix (no
space in front of the text) and over a thousand user-defined symbols that are never cut ("...", "<table>").
transformers 5 differs in both: it adds a space unless told `add_prefix_space=False`, and cuts such symbols.
"""

from __future__ import annotations

from typing import Any

from edge.config import ModelConfig
from edge.errors import TokenizerError
from edge.text.tokenizer.segments import (
    SPACE_SYMBOL,
    AddedToken,
    SegmentTokenizer,
    Vocabulary,
    sentencepiece_name,
)
from edge.text.tokenizer.settings import TokenizerSettings


class SentencePieceTokenizer(SegmentTokenizer):
    """A `tokenizer.model` file and the added tokens beside it."""

    def __init__(self, model: bytes, settings: TokenizerSettings, config: ModelConfig) -> None:
        processor = load_processor(model)
        has_prefix = processor.normalize("a").startswith(SPACE_SYMBOL)
        # An explicit setting overrules the model file, as in Hugging Face's fast class.
        prefix = has_prefix if settings.add_prefix_space is None else settings.add_prefix_space
        added = settings.merged(_control_tokens(processor), config.vocab_size)
        bos = settings.bos({token.text: token.id for token in added}.get, config)
        super().__init__(
            Vocabulary(
                size=config.vocab_size,
                pieces=processor.vocab_size(),
                added=added,
                bos_id=bos if bos is not None else _known(processor.bos_id()),
                unk_id=_known(processor.unk_id()),
                named=settings.named,
                add_bos=settings.add_bos is not False,  # what Hugging Face's Llama class does when silent
                strip_leading_space=prefix,
            ),
            match_ordinary=True,
        )
        self._first = processor if prefix == has_prefix else _with_dummy_prefix(model, prefix)
        # Text after a special token gets the prefix again only in Hugging Face's `legacy` behaviour.
        self._later = self._first if settings.legacy or not prefix else _with_dummy_prefix(model, False)

    def _encode_plain(self, text: str, at_start: bool) -> list[int]:
        ids: list[int] = (self._first if at_start else self._later).encode(text)
        return ids

    def _piece_bytes(self, token_id: int) -> bytes:
        if token_id >= self._pieces:
            return b""
        piece: str = self._first.id_to_piece(token_id)
        if self._first.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE_SYMBOL, " ").encode()

    def _piece_id(self, piece: bytes) -> int | None:
        found: int = self._first.piece_to_id(sentencepiece_name(piece))
        return None if self._first.is_unknown(found) else found


def load_processor(model: bytes) -> Any:
    """A `sentencepiece.SentencePieceProcessor`; TokenizerError if the bytes are not such a model."""
    from sentencepiece import SentencePieceProcessor

    try:
        if not model:
            raise ValueError("it is empty")  # SentencePiece would accept it, and fail later
        return SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(
            f"tokenizer.model is not a readable SentencePiece model ({reason}); get the model's files again, "
            "or use those with a tokenizer.json."
        ) from None


def model_proto() -> Any:
    """The protobuf class of a model file."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # protobuf adds it at import


def _with_dummy_prefix(model: bytes, prefix: bool) -> Any:
    """A processor of the same model that puts (or doesn't put) a space in front of the text."""
    proto = model_proto().FromString(model)
    proto.normalizer_spec.add_dummy_prefix = prefix
    return load_processor(proto.SerializeToString())


def _control_tokens(processor: Any) -> list[AddedToken]:
    control = processor.is_control(list(range(processor.vocab_size())))
    ids = [token_id for token_id, found in enumerate(control) if found]
    unknown = _known(processor.unk_id())
    if unknown is not None:
        ids.append(unknown)
    return [AddedToken(token_id, processor.id_to_piece(token_id), special=True) for token_id in ids]


def _known(token_id: int) -> int | None:
    """SentencePiece writes -1 for a token that a model lacks."""
    return token_id if token_id >= 0 else None
