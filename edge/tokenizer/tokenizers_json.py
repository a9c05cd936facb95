"""Hugging Face's `tokenizer.json` through the `tokenizers` package: byte-level BPE and converted SentencePiece.

The package encodes plain text; control tokens are cut out here, so that text from a user cannot inject them, and
decoding goes by the bytes of each token, so that a stream never shows half a character.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from edge.config import ModelConfig
from edge.errors import TokenizerError
from edge.tokenizer.segments import AddedToken, SegmentTokenizer, Vocabulary
from edge.tokenizer.settings import TokenizerSettings

_SPACE = "▁"


class TokenizersTokenizer(SegmentTokenizer):
    """A `tokenizer.json` whose decoder is ByteLevel (GPT-2, Llama 3, SmolLM, Qwen) or SentencePiece's (Metaspace)."""

    def __init__(self, data: bytes, settings: TokenizerSettings, config: ModelConfig) -> None:
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_buffer(data)
        except (ValueError, TypeError) as error:
            raise TokenizerError(
                f"tokenizer.json cannot be read ({' '.join(str(error).split())}); get the model's files again."
            ) from None
        # A prompt is never cut or padded here, whatever its author's training pipeline did.
        backend.no_truncation()
        backend.no_padding()
        self._byte_level, strip = _decoder_kind(backend)
        own = {
            token_id: AddedToken(token_id, token.content, token.special, token.lstrip, token.rstrip)
            for token_id, token in backend.get_added_tokens_decoder().items()
        }
        added = settings.merged(own.values())
        _add_missing(backend, [token for token in added if token.id not in own and not token.special])
        backend.encode_special_tokens = True
        self._backend = backend
        self._size = backend.get_vocab_size(with_added_tokens=False)
        if self._size > config.vocab_size:
            raise TokenizerError(
                f"tokenizer.json has {self._size} tokens, but the model's vocabulary only {config.vocab_size}; use "
                "the tokenizer files that belong to this model."
            )
        first_id = _first_special_id(data, settings)
        bos = self._id(settings.bos) if settings.bos else None
        if bos is None:
            bos = config.bos_token_id if first_id is None else first_id
        eos = {self._id(text) for text in settings.eos} - {None}
        super().__init__(
            Vocabulary(
                size=config.vocab_size,
                added=added,
                bos_id=bos,
                eos_ids=frozenset({*config.eos_token_ids, *settings.eos_ids, *eos}),  # type: ignore[arg-type]
                unk_id=self._id(settings.unk) if settings.unk else None,
                add_bos=settings.add_bos if settings.add_bos is not None else bos is not None and first_id == bos,
                strip_leading_space=strip,
            )
        )
