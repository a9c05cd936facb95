"""Key summaries of sparse attention: means over windows of 32 rows, one of which begins at every 16th, and of
128 at every 64th. Reference: `edge.model.attention.key_summaries`.
"""

import triton
import triton.language as tl

from edge.executors.cuda.operators import summaries as operator
from edge.kernels.entry import Entry
from edge.kernels.paths import OF_ROWS, PAGE, VARIANTS, cache_rows, first_own, load_rows, rows_of_pages

FINE_SIZE, FINE_STRIDE = tl.constexpr(operator.FINE.size), tl.constexpr(operator.FINE.stride)
COARSE_SIZE, COARSE_STRIDE = tl.constexpr(operator.COARSE.size), tl.constexpr(operator.COARSE.stride)
OWN_FINE, OWN = tl.constexpr(operator.OWN_FINE), tl.constexpr(operator.OWN)


@triton.jit
def mean(
    keys, scales, pages, kv_head, kv_heads, own, ancestors, end, HEAD_DIM: tl.constexpr, SIZE: tl.constexpr
):
    """Of the SIZE keys before path position `end`: float32 [HEAD_DIM]. own: see `first_own`."""
    total = tl.zeros((16, HEAD_DIM), tl.float32)
    for part in tl.static_range(SIZE // 32):
        at = end - SIZE + part * 32 + tl.arange(0, 32)
        slots = cache_rows(at, end - 1, own, ancestors)
        index = rows_of_pages(pages, slots, at >= 0, kv_head, kv_heads)
        # A tensor core's sum has one order, however threads share the rows.
        total = tl.dot(tl.full((16, 32), 1.0, tl.float16), load_rows(keys, scales, index, HEAD_DIM), total)
    return tl.max(total, 0) * (1.0 / SIZE)


@triton.jit
def store_window(
    window,
    pool,
    of_path,
    pages,
    kv_head,
    kv_heads,
    end,
    start,
    is_own,
    HEAD_DIM: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """A window that ends before path position `end`: to its page, or among those of one path."""
    into = of_path + (end // STRIDE - 1 - start // STRIDE) * HEAD_DIM
    if not is_own:
        page = tl.load(pages + (end - 1) // PAGE).to(tl.int64)
        into = pool + ((page * kv_heads + kv_head) * (PAGE // STRIDE) + (end - 1) % PAGE // STRIDE) * HEAD_DIM
    tl.store(into + tl.arange(0, HEAD_DIM), window.to(tl.float16))


@triton.jit
def summaries(
    keys,
    key_scales,
    fine,
    coarse,
    of_paths,
    sequences,
    before,
    path,
    is_tree,
    ancestors,
    page_table,
    max_pages,
    kv_heads,
    pages,
    HEAD_DIM: tl.constexpr,
    TREE: tl.constexpr,
):
    """The windows that one row completes, by each program [rows, kv_heads, layers]: of a causal row one that
    ends with it, of a tree's row those that end on its path. See the wrapper.
    """
    row, kv_head, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(sequences + row)
    if sequence < 0:
        return
    rows = tl.load(path + row) + 1
    own = first_own(before, is_tree, row)
    is_own = own < rows
    start = tl.minimum(own, rows - 1)  # windows that end before it are there already
    ancestors += row * TREE
    table = page_table + sequence * max_pages
    heads_before = layer.to(tl.int64) * pages * kv_heads
    keys += heads_before * PAGE * HEAD_DIM
    key_scales += heads_before * PAGE
    fine += heads_before * (PAGE // FINE_STRIDE) * HEAD_DIM
    coarse += heads_before * (PAGE // COARSE_STRIDE) * HEAD_DIM
    of_path = of_paths + (row * kv_heads + kv_head) * OWN * HEAD_DIM
    for stride in range(start // FINE_STRIDE + 1, rows // FINE_STRIDE + 1):
        end = stride * FINE_STRIDE
        if end >= FINE_SIZE:
            window = mean(
                keys, key_scales, table, kv_head, kv_heads, own, ancestors, end, HEAD_DIM, FINE_SIZE
            )
            store_window(
                window, fine, of_path, table, kv_head, kv_heads, end, start, is_own, HEAD_DIM, FINE_STRIDE
            )
        if (end >= COARSE_SIZE) & (end % COARSE_STRIDE == 0):
            window = mean(
                keys, key_scales, table, kv_head, kv_heads, own, ancestors, end, HEAD_DIM, COARSE_SIZE
            )
            of_coarse = of_path + OWN_FINE * HEAD_DIM
            store_window(
                window,
                coarse,
                of_coarse,
                table,
                kv_head,
                kv_heads,
                end,
                start,
                is_own,
                HEAD_DIM,
                COARSE_STRIDE,
            )


ENTRIES = [
    Entry(
        f"summaries.{variant.name}",
        summaries,
        {
            "keys": variant.pools["keys"],
            **dict.fromkeys(("key_scales", "fine", "coarse", "of_paths"), "*fp16"),
            **OF_ROWS,
            **dict.fromkeys(("kv_heads", "pages"), "i32"),
        },
        {"HEAD_DIM": variant.head_dim, "TREE": operator.TREE},
    )
    for variant in VARIANTS
]
