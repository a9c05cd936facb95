"""Log-probabilities of tokens, in the forms of OpenAI's two completion APIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.engine.completion import Chunk
from edge.text.tokenizer.base import Tokenizer

_LOWEST = -9999.0
"""What stands for a probability of 0: JSON has no infinity."""


class TokenTexts:
    """Texts of tokens. A token may be a part of a character: then its text is not all of it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def chat(self, chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
        """Entries of `logprobs.content`, one for each token."""
        return [
            {
                **self._entry(chunk.token, chunk.logprob),
                "top_logprobs": [self._entry(token, logprob) for token, logprob in chunk.top],
            }
            for chunk in chunks
            if chunk.token is not None
        ]

    def completion(self, chunks: Sequence[Chunk], offset: int) -> dict[str, list[Any]]:
        """The lists of `logprobs`. offset: characters of the text before."""
        tokens = [chunk for chunk in chunks if chunk.token is not None]
        offsets = []
        for chunk in chunks:
            if chunk.token is not None:
                offsets.append(offset)
            offset += len(chunk.text)
        return {
            "tokens": [self._text(chunk.token) for chunk in tokens],
            "token_logprobs": [_finite(chunk.logprob) for chunk in tokens],
            "top_logprobs": [
                {self._text(token): _finite(logprob) for token, logprob in chunk.top} for chunk in tokens
            ],
            "text_offset": offsets,
        }

    def _entry(self, token: int | None, logprob: float | None) -> dict[str, Any]:
        assert token is not None
        data = self._tokenizer.token_bytes(token)
        return {
            "token": data.decode("utf-8", "replace"),
            "logprob": _finite(logprob),
            "bytes": list(data),
        }

    def _text(self, token: int | None) -> str:
        assert token is not None
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LOWEST)
