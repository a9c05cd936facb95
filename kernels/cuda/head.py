"""Logits: the head's sums. Reference: `Decoder.logits` in `edge.model.network.decoder`."""

import triton
import triton.language as tl

from edge.kernels.entry import Entry


@triton.jit
def logits(partial, out, rows, columns, slices, BLOCK: tl.constexpr):
    """out float32 [rows, columns] = p0 + p1 + ... of partial [slices, rows, columns]."""
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    total = tl.load(partial + row.to(tl.int64) * columns + at, mask=inside, other=0.0)
    for part in range(1, slices):
        place = (part * rows + row).to(tl.int64) * columns + at
        total += tl.load(partial + place, mask=inside, other=0.0)
    tl.store(out + row.to(tl.int64) * columns + at, total, mask=inside)


ENTRIES = [
    Entry(
        "head.logits",
        logits,
        {"partial": "*fp32", "out": "*fp32", "rows": "i32", "columns": "i32", "slices": "i32"},
        {"BLOCK": 1024},
    )
]
