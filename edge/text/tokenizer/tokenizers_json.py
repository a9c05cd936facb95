"""Hugging Face's `tokenizer.json`, through the `tokenizers` package.

The package encodes plain text; control tokens are cut out here, so that text from a user cannot inject them,
and decoding goes by the bytes of each token, so that a stream never shows half a character.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache, cached_property
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


class TokenizersTokenizer(SegmentTokenizer):
    """Byte-level BPE (GPT-2, Llama 3, SmolLM, Qwen) or a converted SentencePiece model, by its decoder."""

    def __init__(self, data: bytes, settings: TokenizerSettings, config: ModelConfig) -> None:
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_buffer(data)
        except (ValueError, TypeError) as error:
            raise TokenizerError(
                f"tokenizer.json cannot be read ({' '.join(str(error).split())}); get the model's files "
                "again."
            ) from None
        # A prompt is never cut or padded here, whatever its author's training pipeline did.
        backend.no_truncation()
        backend.no_padding()
        self._byte_level, strip = _decoder_kind(backend)
        own = {
            token_id: AddedToken(token_id, token.content, token.special, token.lstrip, token.rstrip)
            for token_id, token in backend.get_added_tokens_decoder().items()
        }
        added = settings.merged(own.values(), config.vocab_size)
        if not own.keys() <= {token.id for token in added}:
            backend = _without_tokens_beyond(backend, config.vocab_size)
        _add_missing(backend, [token for token in added if token.id not in own and not token.special])
        first_id = _first_special_id(backend)
        backend.encode_special_tokens = True  # their text is ordinary text for the backend
        self._backend = backend
        bos = settings.bos(self._id, config)
        bos = first_id if bos is None else bos
        writes_bos = bos is not None and first_id == bos
        super().__init__(
            Vocabulary(
                size=config.vocab_size,
                pieces=backend.get_vocab_size(with_added_tokens=False),
                added=added,
                bos_id=bos,
                unk_id=None if self._byte_level else self._id(settings.named.get("unk_token", "")),
                named=settings.named,
                add_bos=writes_bos if settings.add_bos is None else settings.add_bos,
                strip_leading_space=strip,
            ),
            match_ordinary=False,
        )

    @cached_property
    def _later(self) -> Any:
        """For text after a control token: Metaspace's scheme `first` puts a space only at the start."""
        return _without_first_space(self._backend)

    def _encode_plain(self, text: str, at_start: bool) -> list[int]:
        backend = self._backend if at_start else self._later
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return _bytes_of_level(piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        found: str = piece.replace(SPACE_SYMBOL, " ")
        return found.encode()

    def _piece_id(self, piece: bytes) -> int | None:
        if self._byte_level:
            return self._id("".join(_byte_alphabet()[byte] for byte in piece))
        return self._id(sentencepiece_name(piece))

    def _id(self, text: str) -> int | None:
        found: int | None = self._backend.token_to_id(text)
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


def _state(component: Any) -> dict[str, Any]:
    """The JSON description of a part of a tokenizer."""
    found: dict[str, Any] = json.loads(component.__getstate__())
    return found


def _decoder_kind(backend: Any) -> tuple[bool, bool]:
    """Whether tokens are byte-level, and whether decoding drops the first space; TokenizerError for other
    kinds.
    """
    if backend.decoder is None:
        raise TokenizerError("tokenizer.json has no decoder, so its tokens cannot be turned back into text.")
    outer = _state(backend.decoder)
    steps = outer["decoders"] if outer["type"] == "Sequence" else [outer]
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


def _is_sentencepiece_step(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return step["pattern"] == {"String": SPACE_SYMBOL} and step["content"] == " "
    if step["type"] == "Strip":
        return bool(step["content"] == " " and step["start"] == 1 and step["stop"] == 0)
    return step["type"] in ("ByteFallback", "Fuse")


def _first_special_id(backend: Any) -> int | None:
    """The token that the post-processor puts in front of a text."""
    encoded = backend.encode("a")
    return encoded.ids[0] if encoded.special_tokens_mask[:1] == [1] else None


def _without_tokens_beyond(backend: Any, size: int) -> Any:
    """The same tokenizer without added tokens of ids from `size` on, so that no text becomes one."""
    from tokenizers import Tokenizer

    document = json.loads(backend.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] < size]
    return Tokenizer.from_str(json.dumps(document))


def _add_missing(backend: Any, tokens: Iterable[AddedToken]) -> None:
    """Ordinary added tokens that only the files beside tokenizer.json list."""
    from tokenizers import AddedToken as BackendToken

    for token in tokens:
        backend.add_tokens(
            [BackendToken(token.text, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)]
        )
        if backend.token_to_id(token.text) != token.id:
            raise TokenizerError(
                f"tokenizer.json and the files beside it disagree on the id of '{token.text}'; get the "
                "model's files again."
            )


def _without_first_space(backend: Any) -> Any:
    """The same tokenizer (the vocabulary is shared) with the prefix scheme `first` turned into `never`."""
    if backend.pre_tokenizer is None:
        return backend
    state = backend.pre_tokenizer.__getstate__().decode()
    changed = state.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
    if changed == state:
        return backend
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import Whitespace

    later = Tokenizer(backend.model)
    if backend.normalizer is not None:
        later.normalizer = backend.normalizer
    later.pre_tokenizer = Whitespace()
    pre_tokenizer = later.pre_tokenizer
    pre_tokenizer.__setstate__(changed.encode())
    later.pre_tokenizer = pre_tokenizer
    added = sorted(backend.get_added_tokens_decoder().items())
    later.add_special_tokens([token for _, token in added if token.special])
    later.add_tokens([token for _, token in added if not token.special])
    later.encode_special_tokens = True
    return later
