"""How a row finds the keys on its path, in pages; for the kernels that read the KV cache.

Reference: `path_of` in `edge.model.attention.sparse`. Everything is in terms of path positions, so a tree's
row reads what the same tokens would as a plain sequence, in the same order.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from edge.executors.cuda.operators import tables
from edge.executors.cuda.operators.pages import HEAD_DIMS, CacheShape

PAGE = tl.constexpr(tables.PAGE)
BLOCK = tl.constexpr(tables.BLOCK)
NEVER = tl.constexpr(1 << 30)


@dataclass(frozen=True)
class Variant:
    """What tells caches apart: head_dim, and whether rows are int8. name: as ids have it."""

    name: str
    head_dim: int
    int8: bool

    @property
    def pools(self) -> dict[str, str]:
        """Types of `CachePools.rows`."""
        rows = "*i8" if self.int8 else "*fp16"
        return {"keys": rows, "values": rows, "key_scales": "*fp16", "value_scales": "*fp16"}


VARIANTS = [
    Variant(CacheShape(1, 1, head_dim, int8).variant, head_dim, int8)
    for int8 in (False, True)
    for head_dim in HEAD_DIMS
]

OF_ROWS = {
    **dict.fromkeys(("sequences", "before", "path", "is_tree", "ancestors", "page_table"), "*i32"),
    "max_pages": "i32",
}
"""Types of `StepTables.of_rows`."""


@triton.jit
def first_own(before, is_tree, row):
    """Path position from which on a row's keys are those of its own tree; of causal rows there is none."""
    return tl.where(tl.load(is_tree + row) != 0, tl.load(before + row), NEVER)


@triton.jit
def cache_rows(at, last, own, ancestors):
    """Cache rows of path positions `at` [n] of one row, any number where they are after `last`.

    own: see `first_own`. ancestors: of the row.
    """
    of_tree = (at >= own) & (at <= last)
    return tl.where(of_tree, own + tl.load(ancestors + at - own, mask=of_tree, other=0), at)


@triton.jit
def row_of_page(pages, slot, kv_head, kv_heads):
    """Where cache row `slot` stands in a pool of rows; int64. pages: the sequence's row of the page table."""
    page = tl.load(pages + slot // PAGE).to(tl.int64)
    return (page * kv_heads + kv_head) * PAGE + slot % PAGE


@triton.jit
def rows_of_pages(pages, slots, inside, kv_head, kv_heads):
    """The same of several rows [n], of those `inside`."""
    page = tl.load(pages + slots // PAGE, mask=inside, other=0).to(tl.int64)
    return (page * kv_heads + kv_head) * PAGE + slots % PAGE


@triton.jit
def load_rows(pool, scales, index, HEAD_DIM: tl.constexpr):
    """Rows of a pool as float16 [n, HEAD_DIM]; int8 ones are rounded to what a float16 cache would hold."""
    rows = tl.load(pool + index[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])
    if pool.dtype.element_ty == tl.int8:
        rows = rows.to(tl.float16) * tl.load(scales + index)[:, None]
    return rows
