"""How deep guesses are worth making, where each costs a step of a network."""

from __future__ import annotations

_AT_FIRST = 4
_MORE = 2  # guesses, where all of them were chosen
_PATIENCE = 8  # passes before more are made again than were enough


class Reach:
    """As deep as guesses were chosen lately. What one more row of the pass would bring is known only when the
    whole tree is, so whether a step pays can't be told before it; now and then a deeper one is tried.
    """

    def __init__(self) -> None:
        self.depth = _AT_FIRST
        self._enough, self._since = 0, _PATIENCE

    def learn(self, chosen: int, made: int) -> None:
        """Of guesses `made` so many deep, those down to `chosen` were verified."""
        self._since += 1
        if chosen < made:
            self._enough, self._since = chosen, 0
            self.depth = max(chosen, self.depth - 1, 1)
        elif made < self._enough or self._since > _PATIENCE:
            self.depth = max(self.depth, made + _MORE)
