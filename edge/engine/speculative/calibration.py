"""From what a draft network says of its guesses to how often such guesses are right."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # of probabilities
_PRIOR = 8.0  # guesses that the network's word is worth beside those that were tried
_REMEMBERED = 256  # guesses, after which old ones count half: texts change
_HIGHEST = 0.995


class Calibration:
    """Shared by the drafters of a model that have one network.

    Guesses whose probabilities are alike share a bucket; its estimate begins at the probability itself and
    goes to the share of its guesses that were right.
    """

    def __init__(self) -> None:
        self._tried = [0.0] * (len(_BOUNDS) + 1)
        self._right = [0.0] * (len(_BOUNDS) + 1)

    def chance(self, probability: float) -> float:
        """That a guess is right to which the network gives this probability."""
        bucket = bisect_right(_BOUNDS, probability)
        found = (self._right[bucket] + _PRIOR * probability) / (self._tried[bucket] + _PRIOR)
        return min(found, _HIGHEST)

    def learn(self, probability: float, right: bool) -> None:
        """What came of a guess."""
        bucket = bisect_right(_BOUNDS, probability)
        self._tried[bucket] += 1
        self._right[bucket] += right
        if self._tried[bucket] >= _REMEMBERED:
            self._tried[bucket] /= 2
            self._right[bucket] /= 2


@dataclass
class Guesses:
    """What was guessed behind a place: probability by token, and what was guessed behind that token."""

    probabilities: dict[int, float] = field(default_factory=dict)
    behind: dict[int, Guesses] = field(default_factory=dict)

    def follow(self, token: int, calibration: Calibration) -> Guesses | None:
        """The text goes on with `token`: learn from it; returns what was guessed behind, None if nothing
        was.
        """
        for guess, probability in self.probabilities.items():
            calibration.learn(probability, guess == token)
        return self.behind.get(token)
