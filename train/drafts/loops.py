"""Where an answer begins to repeat itself: small models do, and nothing is to be learned from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_GRAM, _TIMES = 8, 3


def loop_start(tokens: Sequence[int], known: Sequence[int] = ()) -> int:
    """How many tokens stand before the one that completes `_GRAM` tokens for the third time, which do not
    stand in `known`; all without such.
    """
    counts = Counter[tuple[int, ...]]()
    allowed = set(_grams(known))
    for at, gram in enumerate(_grams(tokens)):
        counts[gram] += 1
        if counts[gram] == _TIMES and gram not in allowed:
            return at + _GRAM - 1
    return len(tokens)


def _grams(tokens: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(tokens[at : at + _GRAM]) for at in range(len(tokens) - _GRAM + 1)]
