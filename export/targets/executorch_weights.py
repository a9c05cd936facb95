"""Weights as XNNPACK's int4 (8da4w) takes them: what becomes of each scheme of a bundle.

XNNPACK multiplies int4 (or int8) weights with activations that it quantizes to int8 per token. Its int4 format has
positive bfloat16 scales, one for every group of columns, and no minimums, so not every scheme passes unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge.quantize import quantize
from edge.scheme import QuantizedMatrix, QuantScheme

Matrix = QuantizedMatrix | npt.NDArray[Any]


@dataclass(frozen=True)
class PortableWeights:
    """A matrix as XNNPACK takes it.

    codes: int8 [rows, columns], -8..7 if bits is 4. scales: float32 [rows, groups], positive. exact: whether it
    holds the source's own codes; its scales may still have been rounded to bfloat16.
    """

    bits: int
    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    exact: bool

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weights, float32 [rows, columns]."""
        return self.codes * np.repeat(self.scales, self.codes.shape[1] // self.scales.shape[1], axis=1)


def portable_weights(matrix: Matrix) -> PortableWeights:
    """The nearest form that XNNPACK has.

    int4 and ternary keep group and codes; a group with a negative scale, whose code -8 has no opposite, and one
    with a minimum are rounded again. int8 and floats become int8 with one scale per row, as does int4 with a ragged
    last group.
    """
    if not isinstance(matrix, QuantizedMatrix) or matrix.scheme.kind == "int8":
        return _int8_rows(matrix)
    columns = matrix.shape[1]
    group = matrix.scheme.group or columns
    if columns % group or group % 32:
        return _int8_rows(matrix)
    scales = matrix.scales.astype(np.float32)
    if matrix.scheme.minimum:
        again = quantize(matrix.dequantize(), QuantScheme("int4", matrix.scheme.group))
        return replace(portable_weights(again), exact=False)
    zero = 1 if matrix.scheme.kind == "ternary" else 8
    codes = (matrix.codes.astype(np.int8) - zero).reshape(len(scales), -1, group)
    negative = scales < 0
    exact = not negative.any() or matrix.scheme.kind == "ternary"
    codes[negative], scales[negative] = _turn(codes[negative], -scales[negative])
    scales[scales == 0] = 1  # of a group of zeros
    return PortableWeights(4, codes.reshape(-1, columns), _bfloat16(scales), exact)


def _turn(
    codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes [groups, width] of a negative scale as codes of a positive one: the better of two roundings.

    The opposite of -8 either is clipped to 7, or decides the scale.
    """
    opposite = -codes.astype(np.float32)
    clipped = np.minimum(opposite, 7)
    coarse = np.rint(opposite * np.float32(7 / 8))
    wider = np.square(coarse * np.float32(8 / 7) - opposite).sum(-1) < np.square(clipped - opposite).sum(-1)
    wider &= opposite.max(-1) > 7
    chosen = np.where(wider[:, None], coarse, clipped)
    return chosen.astype(np.int8), np.where(wider, scales * np.float32(8 / 7), scales)


def _int8_rows(matrix: Matrix) -> PortableWeights:
    if isinstance(matrix, QuantizedMatrix):
        if matrix.scheme == QuantScheme("int8"):
            return PortableWeights(8, matrix.codes, _positive(matrix.scales), exact=True)
        matrix = matrix.dequantize()
    rounded = quantize(matrix, QuantScheme("int8"))
    return PortableWeights(8, rounded.codes, _positive(rounded.scales), exact=False)


def _positive(scales: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    wide = scales.astype(np.float32)
    return np.where(wide == 0, np.float32(1), wide)


def _bfloat16(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What XNNPACK will make of them."""
    return torch.from_numpy(scales).bfloat16().float().numpy()


class PortableEmbedding(nn.Module):
    """Rows of an int8 table with scales (and minimums): looked up, then dequantized."""

    codes: Tensor
    scales: Tensor
    minimums: Tensor | None

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        if not isinstance(matrix, QuantizedMatrix):
            matrix = quantize(matrix, QuantScheme("int8"))
        zero = {"int4": 0 if matrix.scheme.minimum else 8, "int8": 0, "ternary": 1}[matrix.scheme.kind]
        columns = matrix.shape[1]
        self.group = matrix.scheme.group or columns
        # A ragged last group is filled up, and cut off after the lookup.
        padding = -columns % self.group
        codes = np.pad((matrix.codes.astype(np.int16) - zero).astype(np.int8), ((0, 0), (0, padding)))
        self.columns = columns
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


def linear_weight(weights: PortableWeights) -> Tensor:
    """torchao's tensor that a linear layer lowers to XNNPACK, activations quantized per token."""
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8Tensor,
        IntxUnpackedToInt8TensorActivationQuantization,
    )

    scales = torch.from_numpy(weights.scales)
    return IntxUnpackedToInt8Tensor(
        torch.from_numpy(weights.codes),
        scales,
        torch.zeros_like(scales, dtype=torch.int8),
        torch.int4 if weights.bits == 4 else torch.int8,
        (1, weights.codes.shape[1] // scales.shape[1]),
        torch.float32,
        IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN,
    )
