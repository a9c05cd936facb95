"""A model's vocabulary as llguidance takes it: the bytes of every token, and how texts become tokens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError
from edge.text.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_MOST_TEXTS = 4096  # whose tokens are kept: grammars force the same ones again and again


class Vocabulary:
    """Made once for a tokenizer, see `vocabulary_of`; for any thread.

    size: tokens. ends: those that end an answer. native: what llguidance made of it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        llguidance = require_llguidance()
        self.size = tokenizer.vocab_size
        self.ends = tuple(sorted(tokenizer.eos_ids))
        if not self.ends:
            raise EdgeError(
                "This model names no end token, so an answer could not end where its grammar does: answer "
                "without one."
            )
        self._tokenizer = ref(tokenizer)  # which is the key that this object is kept by
        self._bytes = usable_bytes(tokenizer)
        self._greedy: LLTokenizer | None = None
        self.tokens_of = lru_cache(_MOST_TEXTS)(self._tokens_of)
        control = sorted({*tokenizer.special_tokens.values(), *self.ends})
        self.native: LLTokenizer = llguidance.LLTokenizer(_Wrapper(self, control), eos_token=list(self.ends))
        self._greedy = self.native

    def mask(self) -> npt.NDArray[np.uint32]:
        """A mask that allows nothing, uint32 [ceil(size / 32)]."""
        return np.zeros(-(-self.size // 32), np.uint32)

    def _tokens_of(self, text: str) -> Sequence[int]:
        """Tokens for exactly these bytes, as the tokenizer would cut them in the middle of a text."""
        tokenizer = self._tokenizer()
        ids = [] if tokenizer is None else tokenizer.encode(text, add_bos=False, continues=True)
        if b"".join(self._bytes[token] for token in ids) == text.encode():
            return ids
        # It normalizes, or writes a byte as a token that stands for more.
        return [] if self._greedy is None else self._greedy.greedy_tokenize(text)


class _Wrapper:
    """The attributes that `LLTokenizer` reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, control: Sequence[int]) -> None:
        self.eos_token_id = vocabulary.ends[0]
        self.tokens = vocabulary._bytes
        self.special_token_ids = control
        self._tokens_of = vocabulary.tokens_of

    def __call__(self, text: str) -> Sequence[int]:
        return self._tokens_of(text)


def usable_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """What each token stands for; empty for those that no text is made of.

    Of tokens for the same bytes the one stays that the tokenizer writes: SentencePiece has a token for every
    byte, and another for those that are a character.
    """
    found = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    control = {*tokenizer.special_tokens.values(), *tokenizer.eos_ids}
    first: dict[bytes, int] = {}
    for token, data in enumerate(found):
        if not data or token in control:
            continue
        other = first.setdefault(data, token)
        if other == token:
            continue
        kept = token if _is_written(tokenizer, data, token, other) else other
        found[other if kept == token else token] = b""
        first[data] = kept
    return found


def _is_written(tokenizer: Tokenizer, data: bytes, token: int, other: int) -> bool:
    """Whether the tokenizer writes these bytes as `token` rather than as `other`."""
    try:
        ids = tokenizer.encode(data.decode(), add_bos=False, continues=True)
    except UnicodeDecodeError:
        return False
    return ids != [other] and (ids == [token] or token > other)


_VOCABULARIES: WeakKeyDictionary[Tokenizer, Vocabulary] = WeakKeyDictionary()
_LOCK = threading.Lock()


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The tokenizer's vocabulary, made once; EdgeError without llguidance or without any end token."""
    with _LOCK:
        found = _VOCABULARIES.get(tokenizer)
        if found is None:
            found = _VOCABULARIES[tokenizer] = Vocabulary(tokenizer)
        return found


def require_llguidance() -> Any:
    """The package; EdgeError with the extra that installs it."""
    try:
        import llguidance
    except ImportError:
        raise EdgeError(
            "Answers in a given form need the package llguidance: pip install 'minicpm-edge[grammar]'."
        ) from None
    return llguidance
