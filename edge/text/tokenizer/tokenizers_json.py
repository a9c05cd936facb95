"""Hugging Face's `tokenizer.json`, through the `tokenizers` package in a process of its own.

The package encodes plain text; control tokens are cut out here, so that text from a user cannot inject them,
and decoding goes by the bytes of each token, so that a stream never shows half a character.
"""

from __future__ import annotations

import re
from base64 import b64encode
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import cache
from typing import Any

from edge.config import ModelConfig
from edge.errors import TokenizerError
from edge.text.tokenizer.process import TokenizerProcess
from edge.text.tokenizer.segments import (
    SPACE_SYMBOL,
    AddedToken,
    SegmentTokenizer,
    Vocabulary,
    sentencepiece_name,
)
from edge.text.tokenizer.settings import TokenizerSettings

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenizersTokenizer(SegmentTokenizer):
    """Byte-level BPE (GPT-2, Llama 3, SmolLM, Qwen) or a converted SentencePiece model, by its decoder."""

    def __init__(self, data: bytes, settings: TokenizerSettings, config: ModelConfig) -> None:
        size = config.vocab_size
        listed = [astuple(token) for token in settings.merged((), size)]
        self._process = TokenizerProcess(
            "tokenizer.json",
            "edge.text.isolation.tokenizers",
            packages=("tokenizers",),
            setup=lambda: {
                "data": b64encode(data.removeprefix(BOM_UTF8)).decode(),
                "added": listed,
                "size": size,
            },
        )
        facts = self._process.facts
        added = settings.merged((AddedToken(*token) for token in facts["added"]), size)
        self._byte_level, strip = _decoder_kind(facts["decoder"])
        bos = settings.bos(self._id, config)
        bos = facts["first"] if bos is None else bos
        writes_bos = bos is not None and facts["first"] == bos
        super().__init__(
            Vocabulary(
                size=size,
                pieces=facts["pieces"],
                added=added,
                bos_id=bos,
                unk_id=None if self._byte_level else self._id(settings.named.get("unk_token", "")),
                named=settings.named,
                add_bos=writes_bos if settings.add_bos is None else settings.add_bos,
                strip_leading_space=strip,
            ),
            match_ordinary=False,
        )

    def close(self) -> None:
        self._process.close()

    def _encode_plain(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        return self._process.encode(texts)

    def _piece_bytes(self, token_id: int) -> bytes:
        piece: str | None = self._process.piece(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return _bytes_of_level(piece)
        if byte := _BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace(SPACE_SYMBOL, " ").encode()

    def _piece_id(self, piece: bytes) -> int | None:
        if self._byte_level:
            return self._id("".join(_byte_alphabet()[byte] for byte in piece))
        return self._id(sentencepiece_name(piece))

    def _id(self, text: str) -> int | None:
        found: int | None = self._process.ask("ids", pieces=[text])[0]
        return found


@cache
def _byte_alphabet() -> tuple[str, ...]:
    """GPT-2's visible character for each byte value: printable Latin-1 stands for itself, the rest from
    U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


@cache
def _byte_values() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(_byte_alphabet())}


def _bytes_of_level(piece: str) -> bytes:
    """A byte-level token's bytes; one with other characters (some unused tokens have them) is plain text."""
    values = _byte_values()
    try:
        return bytes([values[character] for character in piece])
    except KeyError:
        return piece.encode()


def _decoder_kind(decoder: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """Whether tokens are byte-level, and whether decoding drops the first space; TokenizerError for other
    kinds.
    """
    if decoder is None:
        raise TokenizerError("tokenizer.json has no decoder, so its tokens cannot be turned back into text.")
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "ByteFallback", "Fuse"}:
        return True, False
    if kinds == ["Metaspace"] and steps[0]["replacement"] == SPACE_SYMBOL:
        return False, steps[0].get("prepend_scheme", "always") != "never"
    if "ByteFallback" in kinds and all(_is_sentencepiece_step(step) for step in steps):
        return False, "Strip" in kinds
    raise TokenizerError(
        f"The decoder {' + '.join(kinds)} of tokenizer.json is not supported; byte-level and SentencePiece "
        "tokenizers are."
    )


def _is_sentencepiece_step(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":
        return step["pattern"] == {"String": SPACE_SYMBOL} and step["content"] == " "
    if step["type"] == "Strip":
        return bool(step["content"] == " " and step["start"] == 1 and step["stop"] == 0)
    return step["type"] in ("ByteFallback", "Fuse")
