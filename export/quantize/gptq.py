"""GPTQ: codes chosen column by column, each column's rounding error made up for by those that follow.

Frantar et al., arXiv 2210.17323, with the order of columns by activation ("act-order") and float16 scales per
group. Groups are neighbouring columns in the matrix's own order, so that the result is an ordinary
`QuantizedMatrix`: a runtime needs no permutation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edge.errors import ExportError
from edge.export.quantize.scales import best_scales
from edge.quant.scheme import QuantizedMatrix, QuantScheme

_BLOCK = 128  # columns whose errors are gathered before they touch the columns beyond
_MOST_DAMPING = 10.0


@dataclass(frozen=True)
class Hessian:
    """What GPTQ needs to know of the inputs; matrices that read the same ones share it.

    diagonal [columns]: before damping. order [columns]: in which they are quantized. factor [columns,
    columns]: in that order, the upper triangular U with U^T U = (gram + damping)^-1.
    """

    diagonal: Tensor
    order: Tensor
    factor: Tensor


def gptq(weights: Tensor, hessian: Hessian, scheme: QuantScheme, name: str) -> QuantizedMatrix:
    """Codes of weights float32 [rows, columns] that keep X W^T.

    Columns that no activation reaches are rounded to the nearest code.
    """
    rows, columns = weights.shape
    order, factor = hessian.order, hessian.factor
    scales = best_scales(weights, hessian.diagonal, scheme, name)
    group = scheme.group or columns
    low, high = scheme.code_range
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
    stored = (whole.t() + scheme.zero).numpy()
    return QuantizedMatrix(scheme, stored.astype(scheme.dtype), scales)


def invert(gram: Tensor, *, damping: float, act_order: bool, name: str) -> Hessian:
    """The Hessian of inputs X with gram [columns, columns] = X^T X.

    damping: share of the mean diagonal that is added to the diagonal; ten times as much, repeatedly, where
    that leaves the matrix singular. act_order: columns with the largest activations first.
    Raises ExportError, with the name of a matrix, for activations that are not finite.
    """
    diagonal = gram.diagonal().clone()
    if not bool(torch.isfinite(diagonal).all()):
        raise ExportError(f"The activations that reach {name} are not finite; the checkpoint is damaged.")
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(len(diagonal))
    failed, mean = torch.empty((), dtype=torch.int32), diagonal.mean()
    while damping <= _MOST_DAMPING:
        # In place where it can be: such a matrix is the largest thing in memory.
        factor = gram[order][:, order]
        factor.diagonal().add_(damping * mean)
        factor.diagonal()[diagonal[order] == 0] = 1.0
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if not failed:
            factor = torch.cholesky_inverse(factor)
            torch.linalg.cholesky_ex(factor, upper=True, out=(factor, failed))
            if not failed:
                return Hessian(diagonal, order, factor)
        damping *= 10
    raise ExportError(
        f"The activations that reach {name} have no usable Hessian; give another calibration text."
    )
