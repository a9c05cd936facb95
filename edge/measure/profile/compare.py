"""Two profiles side by side: the ratio of their speeds, with bootstrap confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.measure.profile.schema import Profile, ProfileError, Row

_RESAMPLES = 5000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Ratio:
    """Speed of `after` over speed of `before` (above 1 is faster), from the medians; low, high: its 95 %
    interval.
    """

    before: Row
    after: Row
    ratio: float
    low: float
    high: float

    def is_slower(self, by: float) -> bool:
        """Whether it is slower by more than the share `by`, and certainly slower at all."""
        return self.ratio < 1 - by and self.high < 1


@dataclass(frozen=True)
class Comparison:
    """ratios: of the tests that both have; only_before, only_after: the others."""

    ratios: tuple[Ratio, ...]
    only_before: tuple[Row, ...]
    only_after: tuple[Row, ...]


def compare(before: Profile, after: Profile) -> Comparison:
    """Match the rows of two profiles by what was measured. ProfileError if none match."""
    old = {row.key: row for row in before.results}
    new = {row.key: row for row in after.results}
    ratios = tuple(_ratio(row, new[key]) for key, row in old.items() if key in new)
    if not ratios:
        raise ProfileError(
            "The two profiles have no test in common: measure the same model, sizes and settings."
        )
    return Comparison(
        ratios,
        tuple(row for key, row in old.items() if key not in new),
        tuple(row for key, row in new.items() if key not in old),
    )


def _ratio(before: Row, after: Row) -> Ratio:
    a, b = np.asarray(before.samples), np.asarray(after.samples)
    if not (a.size and b.size and (a > 0).all() and (b > 0).all()):
        raise ProfileError(f"A {before.test} test has no usable samples: measure again.")
    rng = np.random.default_rng(0)
    ratios = _resampled(b, rng) / _resampled(a, rng)
    low, high = (float(value) for value in np.percentile(ratios, _INTERVAL))
    return Ratio(before, after, float(np.median(b) / np.median(a)), low, high)


def _resampled(samples: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Medians of samples drawn again with replacement."""
    drawn = rng.choice(samples, (_RESAMPLES, samples.size))
    medians: npt.NDArray[np.float64] = np.median(drawn, axis=1)
    return medians
