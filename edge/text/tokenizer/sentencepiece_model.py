"""SentencePiece's `tokenizer.model`, with the added tokens that Hugging Face keeps in files beside it.

Text between special tokens is encoded by SentencePiece itself (in a process of its own), with the
normalization that the model file asks for. That is what the models were trained with, MiniCPM4 among them:
its file has no dummy prefix (no space in front of the text) and over a thousand user-defined symbols that are
never cut ("...", "<table>").
transformers 5 differs in both: it adds a space unless told `add_prefix_space=False`, and cuts such symbols.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from edge.config import ModelConfig
from edge.text.tokenizer.process import TokenizerProcess
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
        # An explicit setting overrules the model file, as in Hugging Face's fast class. Text after a special
        # token gets the prefix again only in Hugging Face's `legacy` behaviour.
        self._process = sentencepiece_process(model, settings.add_prefix_space, settings.legacy)
        facts = self._process.facts
        unknown = _known(facts["unk"])
        control = (AddedToken(i, text, special=True) for i, text in facts["control"])
        added = settings.merged(control, config.vocab_size)
        bos = settings.bos({token.text: token.id for token in added}.get, config)
        super().__init__(
            Vocabulary(
                size=config.vocab_size,
                pieces=facts["pieces"],
                added=added,
                bos_id=bos if bos is not None else _known(facts["bos"]),
                unk_id=unknown,
                named=settings.named,
                add_bos=settings.add_bos is not False,  # what Hugging Face's Llama class does when silent
                strip_leading_space=facts["prefix"],
            ),
            match_ordinary=True,
        )

    def close(self) -> None:
        self._process.close()

    def _encode_plain(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        return self._process.encode(texts)

    def _piece_bytes(self, token_id: int) -> bytes:
        if token_id >= self._pieces:
            return b""
        piece, is_byte = self._process.piece(token_id)
        if is_byte:  # written as <0x0A>
            return bytes([int(piece[3:5], 16)])
        text: str = piece.replace(SPACE_SYMBOL, " ")
        return text.encode()

    def _piece_id(self, piece: bytes) -> int | None:
        found: int | None = self._process.ask("id", piece=sentencepiece_name(piece))
        return found


def sentencepiece_process(model: bytes, prefix: bool | None, legacy: bool) -> TokenizerProcess:
    """Open a model file; TokenizerError if the bytes are not such a model.

    prefix, legacy: as for `edge.text.isolation.sentencepiece.Program.open`.
    """
    return TokenizerProcess(
        "tokenizer.model",
        "edge.text.isolation.sentencepiece",
        packages=("sentencepiece", "google.protobuf"),
        setup=lambda: {"data": b64encode(model).decode(), "prefix": prefix, "legacy": legacy},
    )


def model_proto() -> Any:
    """The protobuf class of a model file."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # protobuf adds it at import


def _known(token_id: int) -> int | None:
    """SentencePiece writes -1 for a token that a model lacks."""
    return token_id if token_id >= 0 else None
