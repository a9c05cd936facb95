"""Rows and pages of the KV cache that move: a tree's rows that are kept, pages that get a second owner."""

import triton
import triton.language as tl

from edge.executors.cuda.operators.tables import TREE
from edge.kernels.entry import Entry
from edge.kernels.paths import PAGE, VARIANTS, rows_of_pages


@triton.jit
def copy(pool, source, target, pages, words, COUNT: tl.constexpr):
    """Page `source` of a pool of int32 [layers, pages, words] to page `target`; programs
    [words / COUNT, layers].
    """
    layer = pool + tl.program_id(1).to(tl.int64) * pages * words
    at = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    inside = at < words
    content = tl.load(layer + source.to(tl.int64) * words + at, mask=inside)
    tl.store(layer + target.to(tl.int64) * words + at, content, mask=inside)


@triton.jit
def move_rows(pool, scales, sources, targets, inside, HEAD_DIM: tl.constexpr):
    """Rows of a pool to other places, which may be places of other sources: all are read before any is
    written.
    """
    d = tl.arange(0, HEAD_DIM)[None, :]
    rows = tl.load(pool + sources[:, None] * HEAD_DIM + d, mask=inside[:, None])
    if pool.dtype.element_ty == tl.int8:
        factors = tl.load(scales + sources, mask=inside)
    tl.debug_barrier()
    tl.store(pool + targets[:, None] * HEAD_DIM + d, rows, mask=inside[:, None])
    if pool.dtype.element_ty == tl.int8:
        tl.store(scales + targets, factors, mask=inside)


@triton.jit
def move(
    keys,
    values,
    key_scales,
    value_scales,
    page_table,
    sequences,
    before,
    kept,
    counts,
    max_pages,
    pages,
    kv_heads,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The kept rows of one sequence, KV head and layer by each program [moves, kv_heads, layers]; see the
    wrapper.
    """
    index, head, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(sequences + index)
    if sequence < 0:
        return
    row = tl.arange(0, ROWS)
    inside = row < tl.load(counts + index)
    table = page_table + sequence * max_pages
    first = layer.to(tl.int64) * pages * kv_heads * PAGE
    slots = tl.load(kept + index * ROWS + row, mask=inside, other=0)
    sources = first + rows_of_pages(table, slots, inside, head, kv_heads)
    targets = first + rows_of_pages(table, tl.load(before + index) + row, inside, head, kv_heads)
    move_rows(keys, key_scales, sources, targets, inside, HEAD_DIM)
    move_rows(values, value_scales, sources, targets, inside, HEAD_DIM)


ENTRIES = [
    Entry(
        "pages.copy",
        copy,
        {"pool": "*i32", **dict.fromkeys(("source", "target", "pages", "words"), "i32")},
        {"COUNT": 4096},
        aligned=("words",),
    ),
    *(
        Entry(
            f"pages.move.{variant.name}",
            move,
            {
                **variant.pools,
                **dict.fromkeys(("page_table", "sequences", "before", "kept", "counts"), "*i32"),
                **dict.fromkeys(("max_pages", "pages", "kv_heads"), "i32"),
            },
            {"HEAD_DIM": variant.head_dim, "ROWS": TREE},
        )
        for variant in VARIANTS
    ),
]
