"""Rows of an int4 KV cache as the native kernels round them (`kernels/src/tiers/codes.h`), in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = torch.tensor([-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127])
"""What the sixteen codes stand for, times a row's scale."""
_TOPS = (2.2, 2.7, 3.2)  # what the highest may be in standard deviations: the best for a row is kept
_LANES = 16


def rotated(x: Tensor) -> Tensor:
    """Rows [..., n] rotated; n: a multiple of 16. The rotation is its own inverse."""
    size = x.shape[-1]
    power = size & -size
    lanes = torch.arange(_LANES)
    turned = (lanes & lanes >> 1 & 1) != (lanes >> 2 & lanes >> 3 & 1)
    signs = torch.where(turned, -1.0, 1.0)
    x = x.unflatten(-1, (size // power, power // _LANES, _LANES)) * signs
    for axis, length in ((-1, _LANES), (-2, power // _LANES)):
        x = torch.movedim(torch.movedim(x, axis, -1) @ _hadamard(length), -1, axis)
    x = x * signs
    if size > power:
        x = x - 2 * x.mean(-3, keepdim=True)
    return x.flatten(-3)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [..., n] and scales [..., 1] of rows [..., n]."""
    x = rotated(x)
    deviation = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    middles = (LEVELS[1:] + LEVELS[:-1]) / 2 / 127
    codes, scale = torch.zeros_like(x, dtype=torch.long), torch.zeros_like(deviation)
    kept = torch.full_like(deviation, -1)
    for top in _TOPS:
        tried = torch.where(deviation > 0, torch.bucketize(x / deviation / top, middles), 0)
        levels = LEVELS[tried].to(x.dtype)
        product = (x * levels).sum(-1, keepdim=True)
        factor = product / levels.square().sum(-1, keepdim=True)
        better = product * factor > kept
        kept = torch.where(better, product * factor, kept)
        codes, scale = torch.where(better, tried, codes), torch.where(better, factor, scale)
    return codes.to(torch.uint8), scale


def values_of(codes: Tensor, scales: Tensor) -> Tensor:
    """The rows that codes and scales stand for, in float32."""
    return rotated(LEVELS[codes.long()] * scales)


def _hadamard(size: int) -> Tensor:
    """Orthonormal and symmetric; size: a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / 2**0.5
    return matrix
