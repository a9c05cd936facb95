"""Weights on XNNPACK's int4 (8da4w): how each scheme of a bundle becomes one of its linear layers.

XNNPACK multiplies int4 (or int8) weights with activations that it quantizes to int8 per token. Its int4
format has positive bfloat16 scales, one for every group of columns, and no minimums. What a group needs
beside that, a minimum or the other sign, is the same for all its columns, so it is a small matrix times the
sums of the groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge.export.targets.executorch.codes import fits_four_bits, has_offsets, keeps_codes
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme

Matrix = QuantizedMatrix | npt.NDArray[Any]


@dataclass(frozen=True)
class PortableWeights:
    """weight = scale * code + offset, of a matrix of `bits` 4 or 8.

    codes: int8 [rows, columns], -8..7 if bits is 4. scales: float32 [rows, groups], positive. offsets:
    float32 [rows, groups], or None if all are zero.
    """

    bits: int
    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.float32] | None = None

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    def rows(self, order: npt.NDArray[np.int64]) -> PortableWeights:
        """These rows of the matrix."""
        offsets = None if self.offsets is None else self.offsets[order]
        return replace(self, codes=self.codes[order], scales=self.scales[order], offsets=offsets)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weights, float32 [rows, columns]."""
        weights = self.codes.astype(np.float32) * np.repeat(self.scales, self.group, axis=1)
        return weights if self.offsets is None else weights + np.repeat(self.offsets, self.group, axis=1)


def stacked(parts: Sequence[PortableWeights]) -> list[PortableWeights]:
    """Neighbours of one format as one matrix, above each other."""
    return [_stack(list(run)) for _, run in itertools.groupby(parts, lambda part: (part.bits, part.group))]


def _stack(parts: list[PortableWeights]) -> PortableWeights:
    offsets = None
    if any(part.offsets is not None for part in parts):
        offsets = np.concatenate(
            [np.zeros_like(part.scales) if part.offsets is None else part.offsets for part in parts]
        )
    codes, scales = (np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    return PortableWeights(parts[0].bits, codes, scales, offsets)


def portable_weights(matrix: Matrix) -> PortableWeights:
    """The matrix with its own codes where `keeps_codes` says so, else as int8 with one scale per row.

    Scales of 4-bit codes are rounded to bfloat16.
    """
    if not isinstance(matrix, QuantizedMatrix) or not keeps_codes(matrix.scheme, matrix.shape[1]):
        return byte_rows(matrix.dequantize() if isinstance(matrix, QuantizedMatrix) else matrix)
    scheme = matrix.scheme
    if not fits_four_bits(scheme):
        codes = (matrix.codes.astype(np.int16) - scheme.zero).astype(np.int8)
        return PortableWeights(8, codes, _positive(matrix.scales))
    columns, scales = matrix.shape[1], matrix.scales.astype(np.float32)
    zero, (low, high) = scheme.zero, scheme.code_range
    # Turn minus the stored code is the code of the opposite scale: zero where that stays within -8..7.
    turn = 7 + low + zero if has_offsets(scheme) else zero
    middle = (high + 1) // 2 if scheme.minimum else zero
    stored = matrix.codes.astype(np.int8).reshape(*scales.shape, -1)
    negative = scales < 0
    codes = np.where(negative[..., None], turn - stored, stored - middle).reshape(-1, columns)
    offsets = np.where(negative, scales * (turn - zero), scales * (middle - zero))
    if matrix.minimums is not None:
        offsets += matrix.minimums.astype(np.float32)
    scales = np.abs(scales)
    scales[scales == 0] = 1  # of a group of one value, with codes of zero
    codes = np.where(np.repeat(matrix.scales == 0, codes.shape[1] // scales.shape[1], axis=1), 0, codes)
    nearest = torch.from_numpy(scales).bfloat16().float().numpy()  # what XNNPACK makes of them
    return PortableWeights(4, codes.astype(np.int8), nearest, offsets if offsets.any() else None)


def byte_rows(floats: npt.NDArray[Any]) -> PortableWeights:
    """Floats [rows, columns] rounded to int8 with one scale per row."""
    rounded = quantize(floats, QuantScheme("int8"))
    return PortableWeights(8, rounded.codes, _positive(rounded.scales))


class PortableEmbedding(nn.Module):
    """Rows of an int8 table with scales (and minimums): looked up, then dequantized."""

    codes: Tensor
    scales: Tensor
    minimums: Tensor | None

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        if not isinstance(matrix, QuantizedMatrix):
            matrix = quantize(matrix, QuantScheme("int8"))
        elif matrix.scheme.code_range[1] > 127:
            matrix = quantize(matrix.dequantize(), QuantScheme("int8"))
        self.columns = matrix.shape[1]
        self.group = matrix.scheme.group or self.columns
        # A ragged last group is filled up, and cut off after the lookup.
        padding = ((0, 0), (0, -self.columns % self.group))
        codes = np.pad((matrix.codes.astype(np.int16) - matrix.scheme.zero).astype(np.int8), padding)
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("scales", torch.from_numpy(matrix.scales.astype(np.float32)))
        minimums = None if matrix.minimums is None else torch.from_numpy(matrix.minimums.astype(np.float32))
        self.register_buffer("minimums", minimums)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [n] -> float32 [n, hidden]."""
        rows = self.codes.index_select(0, tokens).float().unflatten(-1, (-1, self.group))
        rows = rows * self.scales.index_select(0, tokens).unsqueeze(-1)
        if self.minimums is not None:
            rows = rows + self.minimums.index_select(0, tokens).unsqueeze(-1)
        return rows.flatten(-2)[:, : self.columns]


def _positive(scales: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    wide = scales.astype(np.float32)
    return np.where(wide == 0, np.float32(1), wide)
