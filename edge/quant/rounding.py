"""Round-to-nearest quantization of float matrices, by the rule of each kind (`edge.quant.rules`).

Everything is deterministic and runs in row chunks, so memory beyond the result stays at a few megabytes.
Calibrated methods (GPTQ, AWQ) are not here: they need activations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError
from edge.quant.scheme import QuantizedMatrix, QuantScheme

FLOAT16_MAX = 65504.0
_CHUNK_WEIGHTS = 1 << 19  # 2 MB of float32: a few of them fit in a core's L2 and L3 share


def quantize(
    matrix: npt.NDArray[np.floating], scheme: QuantScheme, name: str = "the matrix"
) -> QuantizedMatrix:
    """Nearest codes of a finite float matrix [rows, columns] in a scheme with groups.

    Raises CheckpointError (with `name`) when a scale does not fit in float16.
    """
    if scheme.is_float:
        raise ValueError(f"{scheme} has no codes; use to_float16 or store float32 as it is")
    rows, columns = matrix.shape
    kind = scheme.declared
    rule = kind.minimum_rule if scheme.minimum else kind.rule
    assert rule is not None
    groups = scheme.groups(columns)
    codes = np.empty((rows, columns), scheme.dtype)
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
                codes[chunk, first:last] = part_codes.reshape(block.shape[0], -1) + scheme.zero
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
