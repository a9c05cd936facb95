"""The grid that codes are chosen from: per-group scales that fit the weights which matter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

_SHRINKING = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 1.05)
_CHUNK_WEIGHTS = 1 << 22


def best_scales(
    weights: Tensor, importance: Tensor, scheme: QuantScheme, name: str
) -> npt.NDArray[np.float16]:
    """float16 scales [rows, groups] for weights float32 [rows, columns].

    Of every group's round-to-nearest scale and smaller ones, the one whose rounding errors weigh least;
    importance [columns] is the weight of a column's squared error.
    """
    rows, columns = weights.shape
    scales = quantize(weights.numpy(), scheme, name).scales
    group = scheme.group or columns
    padding = -columns % group
    weight = functional.pad(importance, (0, padding)).view(-1, group)
    low, high = scheme.code_range
    for chunk in _chunks(rows, columns):
        parts = functional.pad(weights[chunk], (0, padding)).unflatten(1, (-1, group))
        first = torch.from_numpy(scales[chunk].astype(np.float32))
        best, least = first, torch.full_like(first, torch.inf)
        for factor in _SHRINKING:
            scale = (first * factor).half().float()
            inverse = torch.where(scale == 0, 0.0, 1 / scale).unsqueeze(-1)
            rounded = (parts * inverse).round_().clamp_(low, high).mul_(scale.unsqueeze(-1))
            error = rounded.sub_(parts).square_().mul_(weight).sum(-1)
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        scales[chunk] = best.numpy().astype(np.float16)
    return scales


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK_WEIGHTS // columns)
    return (slice(start, start + step) for start in range(0, rows, step))
