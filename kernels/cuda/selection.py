"""The blocks that a row reads in sparse attention: the first ones, the local ones, and the best between.

Reference: `select_blocks` in `edge.model.attention.sparse`; of equal scores the lower id comes first.
"""

import triton
import triton.language as tl

from edge.executors.cuda.operators.selection import WIDTHS
from edge.kernels.entry import Entry
from edge.kernels.paths import BLOCK


@triton.jit
def kth_largest(values, k):
    """The k-th largest of values int32 [n] that are not negative; 0 if fewer than k are positive."""
    threshold = 0
    for bit in tl.static_range(31):
        raised = threshold | (1 << (30 - bit))
        threshold = tl.where(tl.sum((values >= raised).to(tl.int32), 0) >= k, raised, threshold)
    return threshold


@triton.jit
def select(
    block_scores,
    selected,
    counts,
    sequences,
    path,
    kv_heads,
    blocks,
    capacity,
    dense_len,
    init_blocks,
    local_blocks,
    dynamic_blocks,
    WIDTH: tl.constexpr,
):
    """One row and KV head by each program [rows, kv_heads]; see the wrapper."""
    row, kv_head = tl.program_id(0), tl.program_id(1)
    index = row.to(tl.int64) * kv_heads + kv_head
    rows = tl.load(path + row) + 1
    if tl.load(sequences + row) < 0:
        tl.store(counts + index, 0)
        return
    if rows <= dense_len:
        tl.store(counts + index, -1)
        return
    count = tl.cdiv(rows, BLOCK)
    local = tl.maximum(count - local_blocks, 0)
    first = tl.minimum(init_blocks, local)
    id = tl.arange(0, WIDTH)
    candidate = (id >= first) & (id < local)
    # Floats that are not negative compare as their bits do.
    score = tl.load(block_scores + index * blocks + id, mask=candidate, other=0.0).to(tl.int32, bitcast=True)
    score = tl.where(candidate, score, -1)
    wanted = tl.minimum(dynamic_blocks, local - first)
    threshold = kth_largest(score, wanted)
    above = score > threshold
    equal = candidate & (score == threshold)
    ties = wanted - tl.sum(above.to(tl.int32), 0)
    chosen = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= ties))
    read = (chosen | (id < first) | (id >= local)) & (id < count)
    place = tl.cumsum(read.to(tl.int32), 0)
    tl.store(selected + index * capacity + place - 1, id, mask=read)
    tl.store(counts + index, tl.max(place, 0))


ENTRIES = [
    Entry(
        f"selection.b{width}",
        select,
        {
            **{
                "block_scores": "*fp32",
                "selected": "*i32",
                "counts": "*i32",
                "sequences": "*i32",
                "path": "*i32",
            },
            **dict.fromkeys(("kv_heads", "blocks", "capacity", "dense_len"), "i32"),
            **dict.fromkeys(("init_blocks", "local_blocks", "dynamic_blocks"), "i32"),
        },
        {"WIDTH": width},
        warps=4 if width < 2048 else 8,
    )
    for width in WIDTHS
]
