"""The gated MLP's middle. Reference: `MLP` in `edge.model.network.decoder`."""

import triton
import triton.language as tl

from edge.kernels.entry import Entry


@triton.jit
def swiglu(partial, x, rows, columns, slices, BLOCK: tl.constexpr):
    """x = silu(gate) * up, float16 [rows, columns]; gate and up are the halves of each row of the sum of
    partial float32 [slices, rows, 2 * columns]. A program a row and block.
    """
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    gate = tl.zeros((BLOCK,), tl.float32)
    up = tl.zeros((BLOCK,), tl.float32)
    for part in range(slices):
        place = partial + (part * rows + row).to(tl.int64) * (2 * columns) + at
        gate += tl.load(place, mask=inside, other=0.0)
        up += tl.load(place + columns, mask=inside, other=0.0)
    values = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(x + row.to(tl.int64) * columns + at, values.to(tl.float16), mask=inside)


BLOCK = 1024

ENTRIES = [
    Entry(
        "swiglu",
        swiglu,
        {"partial": "*fp32", "x": "*fp16", "rows": "i32", "columns": "i32", "slices": "i32"},
        {"BLOCK": BLOCK},
    )
]
