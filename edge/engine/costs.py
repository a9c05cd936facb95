"""V(n, depth): what a pass of n rows costs, learned from the passes that are run.

The scheduler chooses from it how many rows of a prompt may ride beside sequences that decode, and the
speculator how many rows of drafts are worth their time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import median_low

import numpy as np
import numpy.typing as npt

DEPTHS = (1024, 4096, 16384, 65536)
"""Depths up to which passes are kept apart, in rows of the longest cache."""

Shape = Mapping[int, float]
"""What numbers of rows cost beside one row."""

USUAL: Shape = {1: 1.0, 2: 1.2, 4: 1.55, 8: 2.3, 16: 4.2}
"""As far as nothing was measured: between int8 and int16 activations on CPUs. More rows cost in proportion to
the last.
"""

_LARGEST_SHAPE = 64
_MOST_UNUSUAL = 1.5  # times what is usual
_CURVE_ROWS = 512
_CURVE_LIFE = 32  # passes
_HOPE = 0.5  # of the rise between two sizes that were seen, what those between them are taken to cost
_MOST_ROWS = 4096
_SAMPLES = 5  # of the latest passes of one size; their lower median counts, as hiccups only add
_LIFE = 100  # passes after which a size that was not run again is forgotten: it may have had bad luck


@dataclass
class _Size:
    """seconds: of the latest passes of this size. turn: of the last one."""

    seconds: list[float] = field(default_factory=list)
    turn: int = 0


class Curve:
    """V(n) at one depth: seconds of passes of 1 to 512 rows, never less for more rows."""

    def __init__(self, seconds: npt.NDArray[np.float64]) -> None:
        self._seconds = seconds.tolist()  # of which few are read, again and again
        self._least: dict[int, float] = {}
        self._shared: dict[tuple[int, float, int], int] = {}

    def extra(self, rows: int, most: int) -> list[float]:
        """Seconds of a pass of `rows` rows, and those of 1, 2, ... up to `most` more."""
        rows = min(rows, len(self._seconds) - most)
        return self._seconds[rows - 1 : rows + most]

    def least_share(self, rows: int, most: int) -> float:
        """Of the cost of a pass of `rows` rows, what one of up to `most` further ones adds at least."""
        found = self._least.get(rows)
        if found is None:
            one, *more = self.extra(rows, most)
            least = min((seconds - one) / count for count, seconds in enumerate(more, 1))
            found = self._least[rows] = least / one
        return found

    def most_sharing(self, rows: int, share: float, most: int) -> int:
        """The most rows, up to `most`, that can pay beside `rows` others and nothing else, if together they
        bring no more than this share of the cost of those, and none more than the ones before it: the last j
        of n bring j / n of it at most. 1 at least.
        """
        found = self._shared.get((rows, share, most))
        if found is None:
            seconds = self.extra(rows, most)
            whole = share * seconds[0]
            pays = [
                n
                for n in range(2, most + 1)
                if all(seconds[n] - seconds[n - j] <= whole * j / n for j in range(1, n + 1))
            ]
            found = self._shared[rows, share, most] = max(pays, default=1)
        return found


class PassCosts:
    """Seconds of a pass by its rows and the depth of the caches that it reads; for one thread at a time."""

    def __init__(self, shapes: Sequence[Shape] = ()) -> None:
        """shapes: what `shapes` has told of an earlier run on this machine."""
        self._sizes: list[dict[int, _Size]] = [{} for _ in (*DEPTHS, None)]
        self._usual = [_believed(shape) for shape in shapes] or [{} for _ in self._sizes]
        self._turn = 0
        self._curves: dict[int, tuple[int, int, Curve]] = {}

    @property
    def has_passes(self) -> bool:
        """Whether any was seen."""
        return self._turn > 0

    @property
    def shapes(self) -> list[Shape]:
        """What was seen of up to 64 rows, by depth, and what was known before of others."""
        found: list[Shape] = []
        for sizes, usual in zip(self._sizes, self._usual, strict=True):
            seconds = {rows: median_low(size.seconds) for rows, size in sorted(sizes.items())}
            one = seconds.get(1)
            few = {} if one is None else {rows: each / one for rows, each in seconds.items()}
            found.append({**usual, **{rows: cost for rows, cost in few.items() if rows <= _LARGEST_SHAPE}})
        return found

    def record(self, rows: int, depth: int, seconds: float) -> None:
        """A pass of so many rows took so long."""
        self._turn += 1
        sizes = self._sizes[bisect_left(DEPTHS, depth)]
        size = sizes.setdefault(rows, _Size())
        size.seconds = [*size.seconds, seconds][-_SAMPLES:]
        size.turn = self._turn
        for old in [rows for rows, each in sizes.items() if each.turn < self._turn - _LIFE]:
            if len(sizes) > 2 or (old <= _LARGEST_SHAPE and len(sizes) > 1):
                del sizes[old]

    def seconds(self, rows: int, depth: int) -> float | None:
        """What a pass of so many rows will take; None before the first.

        On a line between the numbers of rows that were seen at this depth, or at the nearest that was; beyond
        them as such numbers of rows usually are to each other.
        """
        place = self._nearest(depth)
        if place is None:
            return None
        sizes, usual = self._sizes[place], self._usual[place]
        counts = sorted(sizes)
        at = bisect_left(counts, rows)
        if 0 < at < len(counts):
            low, high = counts[at - 1], counts[at]
            below = median_low(sizes[low].seconds)
            return below + (median_low(sizes[high].seconds) - below) * (rows - low) / (high - low)
        nearest = counts[min(at, len(counts) - 1)]
        return median_low(sizes[nearest].seconds) * _beside_one(rows, usual) / _beside_one(nearest, usual)

    def curve(self, depth: int) -> Curve | None:
        """All numbers of rows at this depth; None before the first pass. Made anew after some passes only."""
        place = self._nearest(depth)
        if place is None:
            return None
        sizes = self._sizes[place]
        kept = self._curves.get(place)
        if kept is None or kept[1] != len(sizes) or self._turn >= kept[0] + _CURVE_LIFE:
            kept = (self._turn, len(sizes), self._drawn(sizes, self._usual[place]))
            self._curves[place] = kept
        return kept[2]

    def _drawn(self, sizes: Mapping[int, _Size], usual: Shape) -> Curve:
        counts = sorted(sizes)
        seen = [median_low(sizes[rows].seconds) for rows in counts]
        shape = _drawn_shape(tuple(sorted(usual.items())))
        inside = _hopeful(counts, seen, len(shape))
        low, high = min(counts[0], len(shape)), min(counts[-1], len(shape))
        inside[: low - 1] = seen[0] * shape[: low - 1] / shape[low - 1]
        inside[high:] = seen[-1] * shape[high:] / shape[high - 1]
        return Curve(np.maximum.accumulate(inside))

    def is_fresh(self, rows: int, depth: int) -> bool:
        """Whether a pass of just so many rows was seen at this depth not long ago."""
        size = self._sizes[bisect_left(DEPTHS, depth)].get(rows)
        return size is not None and size.turn >= self._turn - _LIFE

    def _nearest(self, depth: int) -> int | None:
        """Where the passes are that are most like those at this depth."""
        own = bisect_left(DEPTHS, depth)
        seen = [at for at, sizes in enumerate(self._sizes) if sizes]
        return min(seen, key=lambda at: abs(at - own)) if seen else None

    def rows_within(self, seconds: float, depth: int) -> int:
        """The most rows whose pass takes no longer than `seconds`, 1 at least."""

        def too_long(rows: int) -> bool:
            cost = self.seconds(rows, depth)
            return cost is not None and cost > seconds

        return max(1, bisect_left(range(1, _MOST_ROWS + 1), True, key=too_long))


def _believed(shape: Shape) -> Shape:
    """What an earlier run has told: where other programs had disturbed it, guesses would never pay again, and
    so never be measured anew.
    """
    return {rows: min(cost, _MOST_UNUSUAL * _beside_one(rows, USUAL)) for rows, cost in shape.items()}


def _hopeful(counts: Sequence[int], seen: Sequence[float], most: int) -> npt.NDArray[np.float64]:
    """Seconds of 1 to `most` rows where some were seen. What lies between them is taken to be cheaper than on
    a line, so that it is tried: costs rise in steps, and the best size is just below one.
    """
    rows = np.arange(1, most + 1)
    below = np.asarray(seen)[np.clip(np.searchsorted(counts, rows, "right") - 1, 0, None)]
    return below + _HOPE * np.maximum(0, np.interp(rows, counts, seen) - below)


@cache
def _drawn_shape(shape: tuple[tuple[int, float], ...]) -> npt.NDArray[np.float64]:
    """What 1 to 512 rows cost beside one."""
    return np.array([_beside_one(rows, dict(shape)) for rows in range(1, _CURVE_ROWS + 1)])


def _beside_one(rows: int, shape: Shape) -> float:
    """What so many rows cost beside one; where the shape does not reach, as it usually goes on."""
    counts = sorted({1, *shape})
    at = bisect_left(counts, rows)
    if at == len(counts):
        last = counts[-1]
        if shape is USUAL:
            return USUAL[last] * rows / last
        return shape.get(last, 1.0) * _beside_one(rows, USUAL) / _beside_one(last, USUAL)
    if counts[at] == rows:
        return shape.get(rows, 1.0)
    low, high = counts[at - 1], counts[at]
    below = shape.get(low, 1.0)
    return below + (shape[high] - below) * (rows - low) / (high - low)
