"""Thinking before an answer: free up to its closing mark, no longer than its budget; then the form."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from edge.engine.constraints.constraint import Constraint
from edge.text.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class ThinkingBudget:
    """How long a model may think.

    most_tokens: between the marks. closing: token ids that are written then, the closing mark at their end;
    words before it let a model know that time is up.
    """

    most_tokens: int
    closing: tuple[int, ...]


class AfterThinking:
    """A `Constraint` that holds for what follows the thinking. No answer ends while a model thinks."""

    def __init__(
        self,
        constraint: Constraint | None,
        ends: int | str,
        tokenizer: Tokenizer,
        *,
        opens: int | None = None,
        budget: ThinkingBudget | None = None,
    ) -> None:
        """constraint: of the rest, None if that is free. ends: the closing mark, a token or a text. opens:
        the token that begins the thinking, if the model may; None where the prompt has begun it already.
        """
        self._constraint, self._tokenizer, self._opens, self._budget = constraint, tokenizer, opens, budget
        token = tokenizer.token_id(ends) if isinstance(ends, str) else ends
        is_control = token in tokenizer.special_tokens.values()
        self._end = token if token is not None and (is_control or not isinstance(ends, str)) else None
        self._mark = b"" if self._end is not None or not isinstance(ends, str) else ends.encode()
        self._tail = b""  # bytes that the mark may have begun with
        self._free = np.full(-(-tokenizer.vocab_size // 32), 0xFFFFFFFF, np.uint32)
        _clear(self._free, tokenizer.eos_ids)
        self._thinks = opens is None
        self._may_open = opens is not None
        self._thought = 0  # tokens
        self._closing: deque[int] = deque()
        self._check_budget()

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        """See `Constraint`."""
        if self._closing:
            return _only(self._free, self._closing[0])
        if self._thinks:
            mask = self._free.copy()
            if self._mark:
                _clear(mask, self._crossing())
            return mask
        inner = None if self._constraint is None else self._constraint.allowed()
        if inner is None or not self._may_open or self._opens is None:
            return inner
        mask = inner.copy()
        mask[self._opens // 32] |= np.uint32(1 << self._opens % 32)
        return mask

    def advance(self, token: int) -> None:
        """See `Constraint`."""
        if self._thinks:
            self._think(token)
        elif self._may_open and token == self._opens:
            self._thinks, self._may_open = True, False
            self._check_budget()
        else:
            self._may_open = False
            if self._constraint is not None:
                self._constraint.advance(token)

    def forced(self) -> Sequence[int]:
        """See `Constraint`."""
        if self._closing:
            return tuple(self._closing)
        if self._thinks or self._may_open or self._constraint is None:
            return ()
        return self._constraint.forced()

    def fits(self, tokens: Sequence[int]) -> int:
        """See `Constraint`. Guesses fit up to the end of the thinking."""
        if not (self._thinks or self._may_open):
            return len(tokens) if self._constraint is None else self._constraint.fits(tokens)
        if self._closing:
            return _alike(tokens, self._closing)
        ends = self._tokenizer.eos_ids
        return next((at for at, token in enumerate(tokens) if token in ends), len(tokens))

    @property
    def is_complete(self) -> bool:
        """See `Constraint`."""
        return not self._thinks and (self._constraint is None or self._constraint.is_complete)

    def _think(self, token: int) -> None:
        if self._closing:
            self._closing.popleft()
            self._thinks = len(self._closing) > 0
            return
        self._thought += 1
        if self._end is not None:
            self._thinks = token != self._end
        else:
            text = self._tail + self._tokenizer.token_bytes(token)
            self._thinks = self._mark not in text
            self._tail = text[1 - len(self._mark) :] if len(self._mark) > 1 else b""
        self._check_budget()

    def _check_budget(self) -> None:
        if self._thinks and self._budget is not None and self._thought >= self._budget.most_tokens:
            self._closing.extend(self._budget.closing)

    def _crossing(self) -> Sequence[int]:
        """Tokens that would end the thinking and have text of the answer behind the mark, too."""
        found = [*_tokens_beyond(self._tokenizer, self._mark)]
        for begun in range(1, len(self._mark)):
            if self._tail.endswith(self._mark[:begun]):
                found += _tokens_beyond(self._tokenizer, self._mark[begun:])
        return found


class LimitedThinking:
    """A `Constraint` that ends in time what an answer thinks between marks that are plain text.

    The answer begins to think by itself, and its form, if there is one, has a place for that.
    """

    def __init__(
        self,
        constraint: Constraint | None,
        marks: tuple[str, str],
        tokenizer: Tokenizer,
        budget: ThinkingBudget,
    ) -> None:
        """constraint: of the whole answer. marks: around its thinking."""
        self._constraint, self._tokenizer, self._budget = constraint, tokenizer, budget
        self._opening, self._mark = (mark.encode() for mark in marks)
        self._text = b""  # that may hold the mark, or the beginning of one
        self._waits, self._thinks = True, False
        self._thought = 0  # tokens
        self._closing: deque[int] = deque()
        self._free = np.full(-(-tokenizer.vocab_size // 32), 0xFFFFFFFF, np.uint32)
        _clear(self._free, tokenizer.eos_ids)

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        """See `Constraint`."""
        if self._closing:
            return _only(self._free, self._closing[0])
        if self._constraint is not None:
            return self._constraint.allowed()
        return self._free.copy() if self._thinks else None

    def advance(self, token: int) -> None:
        """See `Constraint`."""
        if self._constraint is not None:
            self._constraint.advance(token)
        if self._closing:
            self._closing.popleft()
            self._thinks = len(self._closing) > 0
        elif self._thinks:
            self._thought += 1
            self._text += self._tokenizer.token_bytes(token)
        elif self._waits:
            self._begin(self._text + self._tokenizer.token_bytes(token))
        if self._thinks and not self._closing:
            self._thinks = self._mark not in self._text
            self._text = self._text[-len(self._mark) :]
            if self._thinks and self._thought >= self._budget.most_tokens:
                self._closing.extend(self._budget.closing)

    def forced(self) -> Sequence[int]:
        """See `Constraint`."""
        if self._closing:
            return tuple(self._closing)
        return () if self._constraint is None else self._constraint.forced()

    def fits(self, tokens: Sequence[int]) -> int:
        """See `Constraint`. Guesses do not see the end of the budget."""
        if self._closing:
            return _alike(tokens, self._closing)
        return len(tokens) if self._constraint is None else self._constraint.fits(tokens)

    @property
    def is_complete(self) -> bool:
        """See `Constraint`."""
        return not self._thinks and (self._constraint is None or self._constraint.is_complete)

    def _begin(self, text: bytes) -> None:
        """Whether the answer, of which this is all, thinks."""
        begun = text.lstrip()
        self._thinks = begun.startswith(self._opening)
        self._waits = not self._thinks and self._opening.startswith(begun)
        self._text = begun[len(self._opening) :] if self._thinks else text


def _alike(tokens: Sequence[int], closing: Iterable[int]) -> int:
    """How many of the first tokens are those of the closing."""
    pairs = zip(tokens, closing, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), len(tokens))


def _tokens_beyond(tokenizer: Tokenizer, mark: bytes) -> tuple[int, ...]:
    """Tokens that begin with the mark and go on with more than space."""
    kept = _BEYOND.setdefault(tokenizer, {})
    if mark not in kept:
        pieces = ((token, tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
        kept[mark] = tuple(
            token for token, data in pieces if data.startswith(mark) and data[len(mark) :].strip()
        )
    return kept[mark]


_BEYOND: WeakKeyDictionary[Tokenizer, dict[bytes, tuple[int, ...]]] = WeakKeyDictionary()


def _clear(mask: npt.NDArray[np.uint32], tokens: Sequence[int] | frozenset[int]) -> None:
    for token in tokens:
        mask[token // 32] &= ~np.uint32(1 << token % 32)


def _only(like: npt.NDArray[np.uint32], token: int) -> npt.NDArray[np.uint32]:
    mask = np.zeros_like(like)
    mask[token // 32] = 1 << token % 32
    return mask
