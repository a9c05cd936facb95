"""SentencePiece's `tokenizer.model`, with the added tokens that Hugging Face keeps in files beside it.

Text between special tokens is encoded by SentencePiece itself, with the normalization that the model file asks
for. That is what the models were trained with, MiniCPM4 among them: its file has no dummy prefix (no space in
front of the text). Reimplementations differ: transformers 5 puts one there for MiniCPM4 unless told
`add_prefix_space=False`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from edge.config import ModelConfig
from edge.errors import TokenizerError
from edge.tokenizer.segments import AddedToken, SegmentTokenizer, Vocabulary
from edge.tokenizer.settings import TokenizerSettings

_SPACE = "▁"


class SentencePieceTokenizer(SegmentTokenizer):
    """A `tokenizer.model` file. Control symbols never come out of ordinary text (SentencePiece's own rule)."""

    def __init__(self, model: bytes, settings: TokenizerSettings, config: ModelConfig) -> None:
        processor = load_processor(model)
        size = processor.vocab_size()
        prefix = _Prefix(model, settings.add_prefix_space)
        added = settings.merged(_control_tokens(processor, size))
        ids = {token.text: token.id for token in added}
        bos = ids.get(settings.bos or "", config.bos_token_id)
        eos = {ids[text] for text in settings.eos if text in ids}
        super().__init__(
            Vocabulary(
                size=config.vocab_size,
                added=added,
                bos_id=bos if bos is not None else _known(processor.bos_id()),
                eos_ids=frozenset({*config.eos_token_ids, *settings.eos_ids, *eos}),
                unk_id=_known(processor.unk_id()),
                add_bos=settings.add_bos is not False,  # what Hugging Face's Llama class does when silent
                strip_leading_space=prefix.wanted,
            )
        )
        if size > config.vocab_size:
            raise TokenizerError(
                f"tokenizer.model has {size} tokens, but the model's vocabulary only {config.vocab_size}; use the "
                "tokenizer files that belong to this model."
            )
        self._size = size
        self._first = processor if prefix.wanted == prefix.stored else load_processor(prefix.changed(prefix.wanted))
        self._legacy = settings.legacy
        self._prefix = prefix

    @cached_property
    def _later(self) -> Any:
        """The processor for text after a special token: without prefix space, unless `legacy` repeats it."""
        if self._legacy or not self._prefix.wanted:
            return self._first
        return load_processor(self._prefix.changed(False))

    def _encode_plain(self, text: str, at_start: bool) -> list[int]:
        ids: list[int] = (self._first if at_start else self._later).encode(text)
        return ids

    def _piece_bytes(self, token_id: int) -> bytes:
        if token_id >= self._size:
            return b""
        piece: str = self._first.id_to_piece(token_id)
        if self._first.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()

    def _piece_id(self, piece: bytes) -> int | None:
        text = piece.decode("utf-8", "replace") if len(piece) > 1 or piece[0] < 128 else f"<0x{piece[0]:02X}>"
        found: int = self._first.piece_to_id(text)
        return None if self._first.is_unknown(found) else found


class _Prefix:
    """SentencePiece's dummy prefix: the space in front of a text, as stored in the model file and as wanted.

    An explicit `add_prefix_space` in tokenizer_config.json overrules the file, as in Hugging Face's fast class.
    """

    def __init__(self, model: bytes, override: bool | None) -> None:
        self._proto = _parse(model)
        self.stored: bool = self._proto.normalizer_spec.add_dummy_prefix
        self.wanted = self.stored if override is None else override

    def changed(self, prefix: bool) -> bytes:
        """The model file with another setting."""
        self._proto.normalizer_spec.add_dummy_prefix = prefix
        data: bytes = self._proto.SerializeToString()
        return data


def load_processor(model: bytes) -> Any:
    """A `sentencepiece.SentencePieceProcessor`; TokenizerError if the bytes are not such a model."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise _damaged(str(error)) from None


def _parse(model: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        return sentencepiece_model_pb2.ModelProto.FromString(model)
    except DecodeError as error:
        raise _damaged(str(error)) from None


def _damaged(reason: str) -> TokenizerError:
    reason = " ".join(reason.split())
    return TokenizerError(
        f"tokenizer.model is not a SentencePiece model that can be read ({reason}); get the model's files again, or "
        "use those with a tokenizer.json."
    )


def _control_tokens(processor: Any, size: int) -> list[AddedToken]:
    return [
        AddedToken(token_id, processor.id_to_piece(token_id), special=True)
        for token_id in range(size)
        if processor.is_control(token_id) or processor.is_unknown(token_id)
    ]


def _known(token_id: int) -> int | None:
    """SentencePiece writes -1 for a token that a model lacks."""
    return token_id if token_id >= 0 else None
