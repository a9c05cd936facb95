"""silu(gate) * up of the product with both. Reference: `edge.model.network.decoder.MLP`."""

import triton
import triton.language as tl

from edge.executors.cuda.operators.swiglu import BLOCK
from edge.kernels.entry import Entry
from edge.kernels.linear import summed


@triton.jit
def swiglu(partials, x, slices, rows, columns, BLOCK: tl.constexpr):
    """x[row] = silu(gate) * up, one program for BLOCK columns of a row. partials float32 [slices, rows, 2 *
    columns], gate before up; x float16 [rows, columns].
    """
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    at = row * 2 * columns + column
    gate = summed(partials, slices, rows * 2 * columns, at, inside)
    up = summed(partials, slices, rows * 2 * columns, at + columns, inside)
    tl.store(x + row * columns + column, (gate * tl.sigmoid(gate) * up).to(tl.float16), mask=inside)


ENTRIES = [
    Entry(
        "swiglu",
        swiglu,
        {"partials": "*fp32", "x": "*fp16", **dict.fromkeys(("slices", "rows", "columns"), "i32")},
        {"BLOCK": BLOCK},
        aligned=("columns",),
    )
]
