"""What guesses have given in all sequences: how long one that is unlucky may go on."""

from __future__ import annotations

_LEARNED = 0.02  # share of the newest pass in the mean
_PASSES = 40  # of the mean gain, which a sequence may lose: eight passes say little beside all before
_MOST_LOST = 3.0  # tokens' time, whatever others have won


class TrackRecord:
    """Shared by the sequences of one model."""

    def __init__(self) -> None:
        self._mean = 0.0  # tokens that a pass with guesses has won, less what they cost

    def learn(self, gained: float) -> None:
        """A pass with guesses won so many tokens, less what they cost, in the time of plain tokens."""
        self._mean += _LEARNED * (gained - self._mean)

    @property
    def patience(self) -> float:
        """Tokens' time that a sequence may lose before its guesses rest, 0 where guesses have not paid."""
        return min(_MOST_LOST, max(0.0, _PASSES * self._mean))
