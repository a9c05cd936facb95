"""Where an answer begins to repeat itself: small models do, and nothing is to be learned from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_GRAM, _TIMES = 8, 3


def loop_start(tokens: Sequence[int]) -> int:
    """How many tokens stand before the one that completes `_GRAM` tokens for the third time; all without
    such.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for at in range(len(tokens) - _GRAM + 1):
        gram = tuple(tokens[at : at + _GRAM])
        counts[gram] += 1
        if counts[gram] == _TIMES:
            return at + _GRAM - 1
    return len(tokens)
