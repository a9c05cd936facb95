"""Rules by which a group of weights becomes a scale and codes. A kind of scheme names its own.

A rule takes float32 [rows, groups, width] and returns whole codes of that shape counted from zero (from the
minimum, if it has one), float16 scales [rows, groups], and float16 minimums or None. Scales are rounded to
float16 before codes are chosen, so that a code is the nearest one for the scale that is stored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Rule = Callable[[Floats], "tuple[Floats, Halves, Halves | None]"]

TERNARY_EPSILON = 1e-5
"""Smallest ternary scale (`eps` of BitNet and BitCPM)."""
HALF_STEPS = 2.0**24
"""Steps of the smallest float16 numbers in 1."""
CUT_BELOW = 2.0**-21
"""One-sided scales below are cut, not rounded."""


def symmetric(limit: int) -> Rule:
    """Codes -limit..limit; scale = largest magnitude / limit."""

    def rule(w: Floats) -> tuple[Floats, Halves, None]:
        scale = (np.maximum(w.max(axis=-1), -w.min(axis=-1)) / limit).astype(np.float16)
        return _nearest(w, scale, -limit, limit), scale, None

    return rule


def one_sided(limit: int) -> Rule:
    """Codes -limit..limit - 1; scale = the value of largest magnitude / -limit (the rule of GGUF's Q4_0).

    The extreme gets the code that only one sign has, so weights that the rule made pass unchanged a second
    time. Scales so small that rounding could change that (below 2^-21) are cut to float16 instead.
    """

    def rule(w: Floats) -> tuple[Floats, Halves, None]:
        low, high = w.min(axis=-1), w.max(axis=-1)
        wide = np.where(-low > high, low, high) / np.float32(-limit)
        cut = np.trunc(wide * HALF_STEPS) / HALF_STEPS
        scale = np.where(np.abs(wide) < CUT_BELOW, cut, wide).astype(np.float16)
        return _nearest(w, scale, -limit, limit - 1), scale, None

    return rule


def above_minimum(largest: int) -> Rule:
    """Codes 0..largest over the smallest value; scale = range / largest (the rule of GGUF's Q4_1)."""

    def rule(w: Floats) -> tuple[Floats, Halves, Halves]:
        minimum = w.min(axis=-1).astype(np.float16)
        scale = ((w.max(axis=-1) - minimum.astype(np.float32)) / largest).astype(np.float16)
        return _nearest(w - minimum.astype(np.float32)[..., None], scale, 0, largest), scale, minimum

    return rule


def ternary(w: Floats) -> tuple[Floats, Halves, None]:
    """Codes -1, 0, 1; scale = max(mean magnitude, 1e-5), code = clip(round(w / scale), -1, 1) (BitCPM).

    The mean is summed by halves: an order that training finds the same sums in (`edge.train.quantized`).

    A group that already holds only -s, 0 and s keeps its s, so fake-quantized checkpoints pass unchanged.
    """
    magnitude = np.abs(w)
    largest = magnitude.max(axis=-1)
    already = ((magnitude == 0) | (magnitude == largest[..., None])).all(axis=-1)
    mean = _sum_by_halves(magnitude) / np.float32(w.shape[-1])
    scale = np.where(already & (largest > 0), largest, np.maximum(mean, TERNARY_EPSILON)).astype(np.float16)
    return _nearest(w, scale, -1, 1), scale, None


def _sum_by_halves(values: Floats) -> Floats:
    """Sums over the last axis: its second half is added to its first until one value is left."""
    while (width := values.shape[-1]) > 1:
        kept = (width + 1) // 2
        added = values[..., :kept].copy()
        added[..., : width - kept] += values[..., kept:]
        values = added
    return values[..., 0]


def _nearest(w: Floats, scale: Halves, low: int, high: int) -> Floats:
    """w / scale rounded and clipped; 0 for a group of (almost) nothing but zeros."""
    wide = scale.astype(np.float32)
    codes = w * np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)[..., None]
    np.rint(codes, out=codes)
    return np.clip(codes, low, high, out=codes)
