"""Operators on rows of a layer: embedding, RoPE's table, norms and linear operators over packed weights.

What `kernels/include/edge_operators.h` computes, under the same names. Shapes and common arguments:

* x float32 [..., columns];
* weights uint8 [bytes] in the canonical layout of `edge.quant.packing`;
* matrix: five numbers, which are kind (`edge_kind`: 1 f16, 2 int8, 3 int4, 4 ternary), group, minimum (0 or
  1), rows and columns; `PackedShape.numbers` makes them;
* activations: 0 int8, quantized per token and block as the kernels do; 1 float32; 2 int16, which is int8
  and what that leaves as int8 again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edge.model.operators.arguments import matrix_numbers
from edge.model.operators.schema import operator
from edge.quant.layout import NATIVE, PAD_COLUMNS, MatrixLayout
from edge.quant.packing import dequantize

_LAYOUTS = {layout.kernel: layout for layout in NATIVE if layout.operator is not None}
MATRIX_NUMBERS = 5
_INT8, _FLOAT32 = 0, 1
_LARGEST_BLOCK = 128  # most columns that share one scale of activations


@dataclass(frozen=True)
class PackedShape:
    """Layout and shape of a packed matrix."""

    layout: MatrixLayout
    rows: int
    columns: int

    @property
    def numbers(self) -> list[int]:
        """The five numbers that describe it to an operator."""
        return matrix_numbers(self.layout, self.rows, self.columns)

    @classmethod
    def of(cls, numbers: Sequence[int]) -> PackedShape:
        """The inverse of `numbers`; ValueError for another count of them."""
        if len(numbers) != MATRIX_NUMBERS:
            raise ValueError(f"A matrix is described by {MATRIX_NUMBERS} numbers, not {len(numbers)}.")
        kind, group, minimum, rows, columns = numbers
        if kind not in _LAYOUTS:
            raise ValueError(f"Kind {kind} is no kind of matrix; use 1 to {len(_LAYOUTS)}.")
        return cls(MatrixLayout(_LAYOUTS[kind], group, bool(minimum)), rows, columns)

    @classmethod
    def all_of(cls, numbers: Sequence[int]) -> list[PackedShape]:
        """Of several matrices, one after another."""
        step = MATRIX_NUMBERS
        return [cls.of(numbers[at : at + step]) for at in range(0, len(numbers), step)]

    @property
    def activation_block(self) -> int:
        """Columns that share one scale of rounded activations."""
        group = self.layout.group or -(-self.columns // PAD_COLUMNS) * PAD_COLUMNS
        if group <= _LARGEST_BLOCK:
            return group
        return next((block for block in (128, 64) if group % block == 0), PAD_COLUMNS)

    def weights(self, packed: Tensor) -> Tensor:
        """The packed matrix as float32 [rows, columns]; BundleError if its size is wrong."""
        return torch.from_numpy(dequantize(packed.numpy(), self.layout, self.rows, self.columns).copy())

    def product(self, x: Tensor, packed: Tensor, activations: int) -> Tensor:
        """x [..., columns] times the transposed matrix -> [..., rows]."""
        if x.shape[-1] != self.columns:
            raise ValueError(f"The matrix takes {self.columns} columns, not {x.shape[-1]}.")
        if activations != _FLOAT32 and not self.layout.is_float:
            kept = rounded_activations(x, self.activation_block)
            x = kept if activations == _INT8 else kept + rounded_activations(x - kept, self.activation_block)
        return functional.linear(x, self.weights(packed))


def rounded_activations(x: Tensor, block: int) -> Tensor:
    """x [..., columns] as int8 codes with a scale per block of columns keep it."""
    blocks = functional.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
    peak = blocks.abs().amax(-1, keepdim=True)
    scale = peak / 127
    codes = torch.where(peak > 0, (blocks * (127 / peak)).round(), 0)
    return (codes * scale).flatten(-2)[..., : x.shape[-1]]


def _rows_like(x: Tensor, columns: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], columns), dtype=torch.float32)


@operator(
    "embedding(Tensor tokens, Tensor weight, int[] matrix, float scale) -> Tensor",
    lambda tokens, weight, matrix, scale: tokens.new_empty((*tokens.shape, matrix[4]), dtype=torch.float32),
)
def embedding(tokens: Tensor, weight: Tensor, matrix: Sequence[int], scale: float) -> Tensor:
    """Rows `tokens` (int64 [...]) of the matrix, times `scale` -> [..., columns]."""
    return PackedShape.of(matrix).weights(weight)[tokens] * scale


@operator(
    "rope_table(Tensor positions, Tensor inverse_frequency, float scale) -> Tensor",
    lambda positions, inverse_frequency, scale: inverse_frequency.new_empty(
        (*positions.shape, 2, inverse_frequency.shape[0])
    ),
)
def rope_table(positions: Tensor, inverse_frequency: Tensor, scale: float) -> Tensor:
    """Cosines and sines of positions (int64 [...]) x frequencies [half], times `scale` -> [..., 2, half].

    Those of a frequency of 0 are 1 and 0: a pair that is not rotated is left as it is.
    """
    angles = positions.float().unsqueeze(-1) * inverse_frequency
    return torch.stack([angles.cos(), angles.sin()], -2) * torch.where(inverse_frequency == 0, 1.0, scale)


@operator(
    "rms_norm(Tensor x, Tensor norm, float eps, float scale) -> Tensor",
    lambda x, norm, eps, scale: _rows_like(x, x.shape[-1]),
)
def rms_norm(x: Tensor, norm: Tensor, eps: float, scale: float) -> Tensor:
    """x / rms(x) * norm * scale, of rows."""
    return functional.rms_norm(x, norm.shape, norm, eps) * scale


@operator(
    "rms_norm_linear(Tensor x, Tensor norm, Tensor[] weights, int[] matrices, float eps, float scale, "
    "int activations) -> Tensor",
    lambda x, norm, weights, matrices, eps, scale, activations: _rows_like(x, sum(matrices[3::5])),
)
def rms_norm_linear(
    x: Tensor,
    norm: Tensor,
    weights: Sequence[Tensor],
    matrices: Sequence[int],
    eps: float,
    scale: float,
    activations: int,
) -> Tensor:
    """Products of the normalised rows with up to 8 matrices, side by side -> [..., sum of rows].

    matrices: five numbers of each. scale: on the normalised rows.
    """
    shapes = PackedShape.all_of(matrices)
    if len(shapes) != len(weights):
        raise ValueError(f"{len(weights)} weights come with the shapes of {len(shapes)}.")
    h = rms_norm(x, norm, eps, scale)
    return torch.cat([s.product(h, w, activations) for s, w in zip(shapes, weights, strict=True)], -1)


@operator(
    "rms_norm_swiglu(Tensor x, Tensor norm, Tensor gate, Tensor up, int[] matrices, float eps, "
    "int activations) -> Tensor",
    lambda x, norm, gate, up, matrices, eps, activations: _rows_like(x, matrices[3]),
)
def rms_norm_swiglu(
    x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, matrices: Sequence[int], eps: float, activations: int
) -> Tensor:
    """silu(gate h) * (up h) of the normalised rows h -> [..., rows].

    matrices: the five numbers of gate and of up.
    """
    gate_shape, up_shape = PackedShape.all_of(matrices)
    h = rms_norm(x, norm, eps, 1.0)
    return functional.silu(gate_shape.product(h, gate, activations)) * up_shape.product(h, up, activations)


@operator(
    "linear(Tensor x, Tensor weight, int[] matrix, Tensor? residual, float scale, int activations) -> Tensor",
    lambda x, weight, matrix, residual, scale, activations: _rows_like(x, matrix[3]),
)
def linear(
    x: Tensor,
    weight: Tensor,
    matrix: Sequence[int],
    residual: Tensor | None,
    scale: float,
    activations: int,
) -> Tensor:
    """residual + scale * (x times the transposed matrix) -> [..., rows].

    Without a residual it is the product alone, and scale must be 1.
    """
    if residual is None and scale != 1:
        raise ValueError(f"A scale of {scale} needs a residual to add the product to.")
    product = PackedShape.of(matrix).product(x, weight, activations)
    return product if residual is None else residual + scale * product
