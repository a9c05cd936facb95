"""How likely it is that a text goes on as it did where the same tokens stood before."""

from __future__ import annotations

from edge.engine.speculative.suffix_automaton import COUNTED

_LENGTHS = (1, 2, 3, 4, 6, 9, 16, 24)  # of matches: the least of each bucket
_COUNTS = (1, 2, 3, 5)
_RATIOS = 6  # of fifths; the last one is of a text that has gone on in one way only
_SOURCES = 2
_PRIOR = 8.0  # guesses that the formula is worth beside those that were tried
_REMEMBERED = 512  # guesses, after which old ones count half: texts change
_HIGHEST = 0.995


def _bucket(bounds: tuple[int, ...], value: int) -> int:
    return sum(value >= bound for bound in bounds) - 1


_LENGTH = [max(0, _bucket(_LENGTHS, n)) for n in range(COUNTED + 1)]
_COUNT = [max(0, _bucket(_COUNTS, n)) for n in range(_COUNTS[-1] + 1)]
# Occurrences that something else would have had, by source and length: a match of one token is weak evidence,
# one of 20 is not, and what others have said is weaker than what stands in the same sequence.
_UNSEEN = (
    [4.0 * max(1, n) ** -1.5 for n in range(COUNTED + 1)],
    [12.0 / max(1, n) for n in range(COUNTED + 1)],
)


class MatchChances:
    """Learns from what came of guesses; one for all sequences of a model.

    A guess is that a token follows a match of some length, behind which it came `count` of `total` times.
    Guesses that are alike in these share a bucket, whose estimate begins at count / (total + u), where u is
    4 / length^1.5 for the sequence itself and 12 / length for others, and goes to the share of its guesses
    that were right.
    """

    def __init__(self) -> None:
        buckets = _SOURCES * len(_LENGTHS) * len(_COUNTS) * _RATIOS
        self._tried, self._right = [0.0] * buckets, [0.0] * buckets

    def bucket(self, source: int, length: int, count: int, total: int) -> int:
        """Where a guess belongs. source: 0, the sequence itself, or 1, others. length: at most COUNTED."""
        fifths = count * (_RATIOS - 1) // total
        at = source * len(_LENGTHS) + _LENGTH[length]
        return (at * len(_COUNTS) + _COUNT[min(count, _COUNTS[-1])]) * _RATIOS + fifths

    def chance(self, bucket: int, source: int, length: int, count: int, total: int) -> float:
        """That the guess is right."""
        formula = count / (total + _UNSEEN[source][length])
        found = (self._right[bucket] + _PRIOR * formula) / (self._tried[bucket] + _PRIOR)
        return found if found < _HIGHEST else _HIGHEST

    def learn(self, bucket: int, right: bool) -> None:
        """What came of a guess."""
        self._tried[bucket] += 1
        self._right[bucket] += right
        if self._tried[bucket] >= _REMEMBERED:
            self._tried[bucket] /= 2
            self._right[bucket] /= 2
