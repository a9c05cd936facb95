"""V(n, depth): what a pass of n rows costs, learned from the passes that are run.

The scheduler chooses from it how many rows of a prompt may ride beside sequences that decode, and the
speculator how many rows of drafts are worth their time.
"""

from __future__ import annotations

from bisect import bisect_left

DEPTHS = (1024, 4096, 16384, 65536)
"""Depths up to which passes are kept apart, in rows of the longest cache."""

_MOST_ROWS = 4096
_WEIGHT = 0.2  # of the newest pass in the running mean: some ten passes count


class PassCosts:
    """Seconds of a pass by its rows and the depth of the caches that it reads; for one thread at a time."""

    def __init__(self) -> None:
        self._seconds: list[dict[int, float]] = [{} for _ in (*DEPTHS, None)]

    def record(self, rows: int, depth: int, seconds: float) -> None:
        """A pass of so many rows took so long."""
        costs = self._seconds[bisect_left(DEPTHS, depth)]
        before = costs.get(rows, seconds)
        costs[rows] = before + _WEIGHT * (seconds - before)

    def seconds(self, rows: int, depth: int) -> float | None:
        """What a pass of so many rows will take; None before the first.

        On a line between the numbers of rows that were seen at this depth, or at the nearest that was;
        beyond the largest of them in proportion to it.
        """
        own = bisect_left(DEPTHS, depth)
        seen = [at for at, costs in enumerate(self._seconds) if costs]
        if not seen:
            return None
        costs = self._seconds[min(seen, key=lambda at: abs(at - own))]
        sizes = sorted(costs)
        at = bisect_left(sizes, rows)
        if at == 0:
            return costs[sizes[0]]
        low = sizes[at - 1]
        if at == len(sizes):
            return costs[low] * rows / low
        high = sizes[at]
        return costs[low] + (costs[high] - costs[low]) * (rows - low) / (high - low)

    def rows_within(self, seconds: float, depth: int) -> int:
        """The most rows whose pass takes no longer than `seconds`, 1 at least."""

        def too_long(rows: int) -> bool:
            cost = self.seconds(rows, depth)
            return cost is not None and cost > seconds

        return max(1, bisect_left(range(1, _MOST_ROWS + 1), True, key=too_long))
