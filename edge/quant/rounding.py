"""Round-to-nearest quantization of float matrices: every rule by which a weight becomes a code.

Scales (and minimums) are rounded to float16 before codes are chosen, so that a code is the nearest one for
the scale that is stored. Everything is deterministic and runs in row chunks, so memory beyond the result
stays at a few megabytes. Calibrated methods (GPTQ, AWQ) are not here: they need activations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError
from edge.quant.scheme import QuantizedMatrix, QuantScheme

FLOAT16_MAX = 65504.0
TERNARY_EPSILON = 1e-5
"""Smallest ternary scale (`eps` of BitNet and BitCPM)."""
_CHUNK_WEIGHTS = 1 << 19  # 2 MB of float32: a few of them fit in a core's L2 and L3 share

Floats = npt.NDArray[np.float32]


def quantize(
    matrix: npt.NDArray[np.floating], scheme: QuantScheme, name: str = "the matrix"
) -> QuantizedMatrix:
    """Nearest codes of a finite float matrix [rows, columns] in a scheme with groups.

    * int4: scale = the value of largest magnitude / -8 (the rule of GGUF's Q4_0: the extreme gets the code
      that only one sign has); with a minimum: minimum = smallest value, scale = range / 15 (Q4_1's).
    * int8: scale = largest magnitude / 127.
    * ternary: scale = max(mean magnitude, 1e-5), code = clip(round(w / scale), -1, 1) (BitCPM). A group that
      already holds only -s, 0 and s keeps its s, so fake-quantized checkpoints pass unchanged.

    Raises CheckpointError (with `name`) when a scale does not fit in float16.
    """
    if scheme.is_float:
        raise ValueError(f"{scheme} has no codes; use to_float16 or store float32 as it is")
    rows, columns = matrix.shape
    rule = _RULES[scheme.kind, scheme.minimum]
    groups = scheme.groups(columns)
    codes = np.empty((rows, columns), np.int8 if scheme.kind == "int8" else np.uint8)
    scales = np.empty((rows, groups), np.float16)
    minimums = np.empty((rows, groups), np.float16) if scheme.minimum else None
    group = min(scheme.group or columns, columns)
    whole = columns // group * group  # the ragged last group is a matrix of one group of its own
    step = max(1, _CHUNK_WEIGHTS // columns)
    with np.errstate(over="ignore"):  # overflowing scales are found below
        for start in range(0, rows, step):
            chunk = slice(start, min(start + step, rows))
            block = np.asarray(matrix[chunk], np.float32)
            for first, last in ((0, whole), (whole, columns)):
                if first == last:
                    continue
                width = min(group, last - first)
                part = block[:, first:last].reshape(block.shape[0], -1, width)
                at = slice(first // group, first // group + part.shape[1])
                part_codes, scales[chunk, at], minimum = rule(part)
                codes[chunk, first:last] = part_codes.reshape(block.shape[0], -1)
                if minimums is not None:
                    minimums[chunk, at] = minimum
    if not np.isfinite(scales).all() or (minimums is not None and not np.isfinite(minimums).all()):
        raise CheckpointError(
            f"The weights of {name} are too large for float16 scales; the checkpoint is probably damaged."
        )
    return QuantizedMatrix(scheme, codes, scales, minimums)


def to_float16(matrix: npt.NDArray[np.floating], name: str = "the matrix") -> npt.NDArray[np.float16]:
    """The matrix rounded to float16; a finite value beyond 65504 is a CheckpointError with its name."""
    with np.errstate(over="ignore"):
        halves = matrix.astype(np.float16)
    lost = np.isinf(halves)
    if lost.any() and np.isfinite(matrix[lost]).any():
        largest = float(np.abs(matrix[lost]).max())
        raise CheckpointError(
            f"{name} holds {largest:g}, which float16 (up to {FLOAT16_MAX:g}) cannot hold; "
            "quantize it to int8 or int4 instead."
        )
    return halves


# A rule takes float32 [rows, groups, width] and returns codes of that shape, float16 scales [rows, groups]
# and minimums or None.
_Rule = Callable[
    [Floats], tuple[npt.NDArray[np.floating], npt.NDArray[np.float16], "npt.NDArray[np.float16] | None"]
]


def _inverse(scale: npt.NDArray[np.float16]) -> Floats:
    """1 / scale, 0 for a group of (almost) nothing but zeros; the shape gains a last axis."""
    wide = scale.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)[..., None]


def _int4(w: Floats) -> tuple[Floats, npt.NDArray[np.float16], None]:
    low, high = w.min(axis=-1), w.max(axis=-1)
    scale = (np.where(-low > high, low, high) / -8).astype(np.float16)
    codes = w * _inverse(scale)
    np.rint(codes, out=codes)
    codes += 8
    return np.clip(codes, 0, 15, out=codes), scale, None


def _int4_minimum(w: Floats) -> tuple[Floats, npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    minimum = w.min(axis=-1).astype(np.float16)
    scale = ((w.max(axis=-1) - minimum.astype(np.float32)) / 15).astype(np.float16)
    codes = w - minimum.astype(np.float32)[..., None]
    codes *= _inverse(scale)
    np.rint(codes, out=codes)
    return np.clip(codes, 0, 15, out=codes), scale, minimum


def _int8(w: Floats) -> tuple[Floats, npt.NDArray[np.float16], None]:
    scale = (np.maximum(w.max(axis=-1), -w.min(axis=-1)) / 127).astype(np.float16)
    codes = w * _inverse(scale)
    np.rint(codes, out=codes)
    return np.clip(codes, -127, 127, out=codes), scale, None


def _ternary(w: Floats) -> tuple[Floats, npt.NDArray[np.float16], None]:
    magnitude = np.abs(w)
    largest = magnitude.max(axis=-1)
    already = ((magnitude == 0) | (magnitude == largest[..., None])).all(axis=-1)
    mean = magnitude.mean(axis=-1, dtype=np.float32)
    scale = np.where(already & (largest > 0), largest, np.maximum(mean, TERNARY_EPSILON)).astype(np.float16)
    codes = w * _inverse(scale)
    np.rint(codes, out=codes)
    return np.clip(codes, -1, 1, out=codes) + 1, scale, None


_RULES: dict[tuple[str, bool], _Rule] = {
    ("int4", False): _int4,
    ("int4", True): _int4_minimum,
    ("int8", False): _int8,
    ("ternary", False): _ternary,
}
