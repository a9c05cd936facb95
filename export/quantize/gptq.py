"""GPTQ: codes chosen column by column, each column's rounding error made up for by those that follow.

Frantar et al., arXiv 2210.17323, with the order of columns by activation ("act-order") and float16 scales per
group. Groups are neighbouring columns in the matrix's own order, so that the result is an ordinary
`QuantizedMatrix`: a runtime needs no permutation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edge.errors import ExportError
from edge.scheme import QuantizedMatrix, QuantScheme
from export.quantize.scales import CODE_RANGE, ZERO_CODE, best_scales

_BLOCK = 128  # columns whose errors are gathered before they touch the columns beyond
_MOST_DAMPING = 10.0


def gptq(
    weights: Tensor, gram: Tensor, scheme: QuantScheme, *, damping: float, act_order: bool, name: str
) -> QuantizedMatrix:
    """Codes of weights float32 [rows, columns] that keep X W^T, where gram [columns, columns] = X^T X.

    damping: share of the mean diagonal that is added to the diagonal; ten times as much, repeatedly, where
    that leaves the matrix singular. Columns that no activation reaches are rounded to the nearest code.
    Raises ExportError, with the name, for activations that are not finite.
    """
    rows, columns = weights.shape
    diagonal = gram.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise ExportError(f"The activations that reach {name} are not finite; the checkpoint is damaged.")
    scales = best_scales(weights, diagonal, scheme, name)
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(columns)
    factor = _inverse_factor(gram[order][:, order], damping, name)
    group = scheme.group or columns
    low, high = CODE_RANGE[scheme.kind]
    # Columns become rows: a step then works on contiguous memory.
    left = weights.t()[order].contiguous()
    step = torch.from_numpy(scales.astype(np.float32).T).contiguous()[order // group]
    inverse = torch.where(step == 0, 0.0, 1 / step)
    codes = torch.empty_like(left)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.empty(stop - start, rows)
        for i in range(start, stop):
            torch.clamp((left[i] * inverse[i]).round_(), low, high, out=codes[i])
            error = torch.div(left[i] - codes[i] * step[i], factor[i, i], out=errors[i - start])
            left[i:stop].addr_(factor[i, i:stop], error, alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    whole = torch.empty_like(codes)
    whole[order] = codes
    stored = (whole.t() + ZERO_CODE[scheme.kind]).numpy()
    return QuantizedMatrix(scheme, stored.astype(np.int8 if scheme.kind == "int8" else np.uint8), scales)


def _inverse_factor(gram: Tensor, damping: float, name: str) -> Tensor:
    """The upper triangular U with U^T U = (gram + damping)^-1."""
    mean = gram.diagonal().mean()
    dead = gram.diagonal() == 0
    while damping <= _MOST_DAMPING:
        damped = gram.clone()
        damped.diagonal().add_(damping * mean)
        damped.diagonal()[dead] = 1.0
        factor, failed = torch.linalg.cholesky_ex(damped)
        del damped  # such a matrix is the largest thing in memory
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            del factor
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return factor
        damping *= 10
    raise ExportError(
        f"The activations that reach {name} have no usable Hessian; give another calibration text."
    )
