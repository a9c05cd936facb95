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


def symmetric(limit: int) -> Rule:
    """Codes -limit..limit; scale = largest magnitude / limit."""

    def rule(w: Floats) -> tuple[Floats, Halves, None]:
        scale = (np.maximum(w.max(axis=-1), -w.min(axis=-1)) / limit).astype(np.float16)
        return _nearest(w, scale, -limit, limit), scale, None

    return rule


def one_sided(limit: int) -> Rule:
    """Codes -limit..limit - 1; scale = the value of largest magnitude / -limit (the rule of GGUF's Q4_0).

    The extreme gets the code that only one sign has.
    """

    def rule(w: Floats) -> tuple[Floats, Halves, None]:
        low, high = w.min(axis=-1), w.max(axis=-1)
        scale = (np.where(-low > high, low, high) / -limit).astype(np.float16)
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

    A group that already holds only -s, 0 and s keeps its s, so fake-quantized checkpoints pass unchanged.
    """
    magnitude = np.abs(w)
    largest = magnitude.max(axis=-1)
    already = ((magnitude == 0) | (magnitude == largest[..., None])).all(axis=-1)
    mean = magnitude.mean(axis=-1, dtype=np.float32)
    scale = np.where(already & (largest > 0), largest, np.maximum(mean, TERNARY_EPSILON)).astype(np.float16)
    return _nearest(w, scale, -1, 1), scale, None


def _nearest(w: Floats, scale: Halves, low: int, high: int) -> Floats:
    """w / scale rounded and clipped; 0 for a group of (almost) nothing but zeros."""
    wide = scale.astype(np.float32)
    codes = w * np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)[..., None]
    np.rint(codes, out=codes)
    return np.clip(codes, low, high, out=codes)
