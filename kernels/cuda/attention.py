"""Softmax attention over pages of keys and values, dense or over the blocks that sparse attention selected.

Reference: `dense_attention` in `edge.model.network.decoder` and `attend` in `edge.model.attention.sparse`.

A row's blocks, of 64 path positions each, are taken in splits of one size, which follows from their number
alone. Within a split the softmax is kept block by block; splits are merged one after another. So decode, with
a program for each split, and prefill, which walks along all of them, give a row the same bits, whatever is
beside it in a launch. Powers are of 2.
"""

import triton
import triton.language as tl

from edge.executors.cuda.operators import attention as operator
from edge.executors.cuda.operators.pages import HEAD_DIMS
from edge.executors.cuda.operators.tables import TREE
from edge.kernels.entry import Entry
from edge.kernels.paths import (
    BLOCK,
    OF_ROWS,
    VARIANTS,
    Variant,
    cache_rows,
    first_own,
    row_of_page,
    rows_of_pages,
)

SPLITS, SPLIT_BLOCKS = tl.constexpr(operator.SPLITS), tl.constexpr(operator.SPLIT_BLOCKS)
MERGED = tl.constexpr(4)  # splits that are on their way to `combine` at a time


@triton.jit
def blocks_of_splits(blocks):
    """Blocks of each split of a row that reads so many: the least 4 * 2^k that makes at most 64 splits."""
    ones = tl.maximum(blocks - 1, 0) // (SPLITS * SPLIT_BLOCKS)
    for shift in tl.static_range(4):  # all bits below the highest, of up to 16
        ones |= ones >> (1 << shift)
    return (ones + 1) * SPLIT_BLOCKS


@triton.jit
def columns(pool, HALF: tl.constexpr):
    """Columns [1, HALF] of the two parts in which rows are taken: of float16 pools the first and the second
    half, of int8 ones, which are read in pairs, the even and the odd ones.
    """
    i = tl.arange(0, HALF)[None, :]
    if pool.dtype.element_ty == tl.int16:
        first, second = 2 * i, 2 * i + 1
    else:
        first, second = i, HALF + i
    return first, second


@triton.jit
def load_parts(pool, scales, start, index, inside, HALF: tl.constexpr, MASKED: tl.constexpr):
    """Both parts of rows start + index [n] as float16 [n, HALF]; if MASKED, those not inside are 0, whatever
    stands there.

    int8 n is rounded to what a float16 cache would hold. It is made float16 by its bits, as conversions are
    slow: those of 1024 + n, less 1024 and the sign's 128.
    """
    i = tl.arange(0, HALF)[None, :]
    mask = None
    other = None
    if MASKED:
        mask = inside[:, None]
        other = 0.0
    if pool.dtype.element_ty == tl.int16:
        pairs = tl.load(pool + start * HALF + (index[:, None] * HALF + i), mask=mask, other=other)
        scale = tl.load(scales + start + index[:, None], mask=mask, other=other)
        first = (((pairs & 0xFF) ^ 0x6480).to(tl.float16, bitcast=True) - 1152.0) * scale
        second = (((pairs >> 8 & 0xFF) ^ 0x6480).to(tl.float16, bitcast=True) - 1152.0) * scale
    else:
        at = pool + start * (2 * HALF) + (index[:, None] * (2 * HALF) + i)
        first = tl.load(at, mask=mask, other=other)
        second = tl.load(at + HALF, mask=mask, other=other)
    return first, second


@triton.jit
def add_block(q0, q1, k0, k1, v0, v1, scale, top, total, sums0, sums1, seen, MASKED: tl.constexpr):
    """Take 64 keys and values into the softmax of each row of q: (top [M], total [M, 16], sums [M, d / 2] of
    both parts of the values), float32: the maximum of the logits, and sums of powers below it.
    """
    logits = tl.dot(q1, tl.trans(k1), tl.dot(q0, tl.trans(k0)))
    if MASKED:
        logits = tl.where(seen, logits, float("-inf"))
    raised = tl.maximum(top, tl.max(logits, 1) * scale)
    weights = tl.exp2(tl.fma(logits, scale, -raised[:, None])).to(tl.float16)
    shrunk = tl.exp2(top - raised)[:, None]
    # By a tensor core, whose sum has one order, however threads share the weights.
    total = tl.dot(weights, tl.full((BLOCK, 16), 1.0, tl.float16), total * shrunk)
    return raised, total, tl.dot(weights, v0, sums0 * shrunk), tl.dot(weights, v1, sums1 * shrunk)


@triton.jit
def merge(top, total, sums0, sums1, next_top, next_total, next0, next1):
    """The softmax of what was merged so far and of the next split: top, total [M], sums [M, d / 2] twice."""
    raised = tl.maximum(top, next_top)
    shrunk, next_shrunk = tl.exp2(top - raised), tl.exp2(next_top - raised)
    # Fused by name: a compiler that may choose need not choose alike in decode and prefill.
    total = tl.fma(total, shrunk, next_total * next_shrunk)
    sums0 = tl.fma(sums0, shrunk[:, None], next0 * next_shrunk[:, None])
    sums1 = tl.fma(sums1, shrunk[:, None], next1 * next_shrunk[:, None])
    return raised, total, sums0, sums1


@triton.jit
def block_id(selected, j, listed, SPARSE: tl.constexpr):
    """The j-th block of a row: of its selection, if that is `listed`, else of all."""
    id = j
    if SPARSE:
        id = tl.where(listed, tl.load(selected + tl.where(listed, j, 0)), j)
    return id


@triton.jit
def attend(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    selected,
    counts,
    sequences,
    before,
    path,
    is_tree,
    ancestors,
    page_table,
    max_pages,
    tiles,
    parts,
    tops,
    out,
    heads,
    kv_heads,
    tile_heads,
    capacity,
    scale,
    HEAD_DIM: tl.constexpr,
    M: tl.constexpr,
    TREE: tl.constexpr,
    SPARSE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """M / tile_heads rows and tile_heads heads of a group by each program.

    SPLIT: one row and one split of its blocks [rows, head tiles, splits], to parts and tops; else the rows of
    a tile [tiles, head tiles], to out. See the wrappers.
    """
    if SPLIT:
        row = tl.program_id(0)
        count = 1
    else:
        row = tl.load(tiles + tl.program_id(0) * 2)
        count = tl.load(tiles + tl.program_id(0) * 2 + 1)
    group = heads // kv_heads
    head_tiles = tl.cdiv(group, tile_heads)
    kv_head = tl.program_id(1) // head_tiles
    i = tl.arange(0, M)
    head = tl.program_id(1) % head_tiles * tile_heads + i % tile_heads
    used = (i // tile_heads < count) & (head < group)
    rows = row + tl.minimum(i // tile_heads, count - 1)
    place = rows.to(tl.int64) * heads + kv_head * group + head
    HALF: tl.constexpr = HEAD_DIM // 2
    d0, d1 = columns(keys, HALF)
    of_heads = place[:, None] * HEAD_DIM

    # A tile's rows are in one block of positions, so they have as many blocks, and splits of one size.
    sequence = tl.load(sequences + row)
    first_last = tl.load(path + row)
    blocks = first_last // BLOCK + 1
    listed = False
    if SPARSE:
        index = row.to(tl.int64) * kv_heads + kv_head
        length = tl.load(counts + index)
        selected += index * capacity
        listed = length >= 0
        blocks = tl.where(listed, length, blocks)
    blocks = tl.where(sequence < 0, 0, blocks)
    size = blocks_of_splits(blocks)
    begin = 0
    end = blocks
    if SPLIT:
        begin = tl.program_id(2) * size
        end = tl.minimum(begin + size, blocks)
        if begin >= end:
            return
    elif blocks == 0:
        zeros = tl.zeros((M, HALF), tl.float16)
        tl.store(out + of_heads + d0, zeros, mask=used[:, None])
        tl.store(out + of_heads + d1, zeros, mask=used[:, None])
        return
    # Blocks whose keys are seen by all rows, and stand as they are cached, come first.
    own = first_own(before, is_tree, row)
    whole = tl.minimum(first_last + 1, own) // BLOCK
    plain = whole
    if SPARSE:
        plain = tl.where(listed, blocks, whole)
        for back in tl.static_range(1, 3):  # the others are two at most
            id = tl.load(selected + tl.where(listed, tl.maximum(blocks - back, 0), 0))
            plain -= (listed & (blocks >= back) & (id >= whole)).to(tl.int32)
    q0 = tl.load(q + of_heads + d0, mask=used[:, None], other=0.0)
    q1 = tl.load(q + of_heads + d1, mask=used[:, None], other=0.0)
    table = page_table + sequence * max_pages
    n = tl.arange(0, BLOCK)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M, 16), tl.float32)
    sums0 = tl.zeros((M, HALF), tl.float32)
    sums1 = tl.zeros((M, HALF), tl.float32)
    all_top = top
    all_total = tl.zeros((M,), tl.float32)
    all0 = sums0
    all1 = sums1
    # A block's id is looked up two blocks ahead, and its page one, so that no load waits for another.
    start = row_of_page(table, block_id(selected, begin, listed, SPARSE) * BLOCK, kv_head, kv_heads)
    following = block_id(selected, tl.minimum(begin + 1, end - 1), listed, SPARSE)
    for j in range(begin, tl.minimum(end, plain)):
        k0, k1 = load_parts(keys, key_scales, start, n, None, HALF, False)
        v0, v1 = load_parts(values, value_scales, start, n, None, HALF, False)
        start = row_of_page(table, following * BLOCK, kv_head, kv_heads)
        following = block_id(selected, tl.minimum(j + 2, end - 1), listed, SPARSE)
        top, total, sums0, sums1 = add_block(
            q0, q1, k0, k1, v0, v1, scale, top, total, sums0, sums1, None, False
        )
        if not SPLIT and (j + 1) % size == 0:
            all_top, all_total, all0, all1 = merge(
                all_top, all_total, all0, all1, top, tl.max(total, 1), sums0, sums1
            )
            top = tl.full((M,), float("-inf"), tl.float32)
            total = tl.zeros((M, 16), tl.float32)
            sums0 = tl.zeros((M, HALF), tl.float32)
            sums1 = tl.zeros((M, HALF), tl.float32)
    # Blocks that some rows see a part of, or of which a part is a tree's; of causal rows it is the last one.
    last = tl.load(path + row + count - 1)
    lasts = tl.load(path + rows)
    for j in tl.range(tl.maximum(begin, plain), end, num_stages=1):
        position = block_id(selected, j, listed, SPARSE) * BLOCK + n
        inside = position <= last
        slots = cache_rows(position, last, own, ancestors + row * TREE)
        at = rows_of_pages(table, slots, inside, kv_head, kv_heads)
        k0, k1 = load_parts(keys, key_scales, 0, at, inside, HALF, True)
        v0, v1 = load_parts(values, value_scales, 0, at, inside, HALF, True)
        seen = position[None, :] <= lasts[:, None]
        top, total, sums0, sums1 = add_block(
            q0, q1, k0, k1, v0, v1, scale, top, total, sums0, sums1, seen, True
        )
    one_total = tl.max(total, 1)
    if SPLIT:
        split = place * tl.num_programs(2) + tl.program_id(2)
        of_split = parts + split[:, None] * HEAD_DIM
        tl.store(of_split + d0, sums0, mask=used[:, None])
        tl.store(of_split + d1, sums1, mask=used[:, None])
        tl.store(tops + split * 2, top, mask=used)
        tl.store(tops + split * 2 + 1, one_total, mask=used)
    else:
        if (plain < blocks) | (blocks % size != 0):
            all_top, all_total, all0, all1 = merge(
                all_top, all_total, all0, all1, top, one_total, sums0, sums1
            )
        share = (1.0 / all_total)[:, None]
        tl.store(out + of_heads + d0, (all0 * share).to(tl.float16), mask=used[:, None])
        tl.store(out + of_heads + d1, (all1 * share).to(tl.float16), mask=used[:, None])


@triton.jit
def combine(
    parts,
    tops,
    out,
    counts,
    sequences,
    path,
    heads,
    kv_heads,
    splits,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    SPARSE: tl.constexpr,
):
    """Merge a row's splits, of some heads of a group by each program [rows, head tiles]; dead rows are 0."""
    row = tl.program_id(0)
    group = heads // kv_heads
    head_tiles = tl.cdiv(group, HEADS)
    kv_head = tl.program_id(1) // head_tiles
    head = tl.program_id(1) % head_tiles * HEADS + tl.arange(0, HEADS)
    blocks = tl.load(path + row) // BLOCK + 1
    if SPARSE:
        length = tl.load(counts + row.to(tl.int64) * kv_heads + kv_head)
        blocks = tl.where(length >= 0, length, blocks)
    blocks = tl.where(tl.load(sequences + row) < 0, 0, blocks)
    used = tl.cdiv(blocks, blocks_of_splits(blocks))
    HALF: tl.constexpr = HEAD_DIM // 2
    d = tl.arange(0, HALF)[None, :]
    first = row.to(tl.int64) * heads + kv_head * group
    place = first + tl.minimum(head, group - 1)
    top = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    sums0 = tl.zeros((HEADS, HALF), tl.float32)
    sums1 = tl.zeros((HEADS, HALF), tl.float32)
    for start in range(0, used, MERGED):
        for i in tl.static_range(MERGED):
            # After the last split comes it again, with no weight.
            split = place * splits + tl.minimum(start + i, used - 1)
            next_top = tl.where(start + i < used, tl.load(tops + split * 2), float("-inf"))
            next_total = tl.load(tops + split * 2 + 1)
            at = parts + split[:, None] * HEAD_DIM + d
            top, total, sums0, sums1 = merge(
                top, total, sums0, sums1, next_top, next_total, tl.load(at), tl.load(at + HALF)
            )
    share = (1.0 / tl.where(total > 0.0, total, 1.0))[:, None]
    at = out + (first + head)[:, None] * HEAD_DIM + d
    tl.store(at, (sums0 * share).to(tl.float16), mask=(head < group)[:, None])
    tl.store(at + HALF, (sums1 * share).to(tl.float16), mask=(head < group)[:, None])


ATTEND = {
    **{"selected": "*i32", "counts": "*i32"},
    **OF_ROWS,
    **{"tiles": "*i32", "parts": "*fp32", "tops": "*fp32", "out": "*fp16"},
    **dict.fromkeys(("heads", "kv_heads", "tile_heads", "capacity"), "i32"),
    "scale": "fp32",
}


def pools_in_pairs(variant: Variant) -> dict[str, str]:
    """Types of `CachePools.rows` here: int8 codes are read two at a time."""
    return {name: "*i16" if kind == "*i8" else kind for name, kind in variant.pools.items()}


KINDS = [("", False), (".sparse", True)]
ENTRIES = [
    *(
        Entry(
            f"attention.{kind}{sparse_name}.{variant.name}",
            attend,
            {"q": "*fp16", **pools_in_pairs(variant), **ATTEND},
            {"HEAD_DIM": variant.head_dim, "M": m, "TREE": TREE, "SPARSE": sparse, "SPLIT": kind == "decode"},
            stages=2 if m == operator.PREFILL_TILES[128] else 3,
            registers=200 if variant.head_dim == 128 and m == operator.DECODE_HEADS else None,
        )
        for variant in VARIANTS
        for sparse_name, sparse in KINDS
        for kind, m in (
            ("decode", operator.DECODE_HEADS),
            ("prefill", operator.DECODE_HEADS if sparse else operator.PREFILL_TILES[variant.head_dim]),
        )
    ),
    *(
        Entry(
            f"attention.combine{sparse_name}.d{head_dim}",
            combine,
            {
                **{"parts": "*fp32", "tops": "*fp32", "out": "*fp16"},
                **dict.fromkeys(("counts", "sequences", "path"), "*i32"),
                **dict.fromkeys(("heads", "kv_heads", "splits"), "i32"),
            },
            {"HEAD_DIM": head_dim, "HEADS": operator.COMBINED_HEADS, "SPARSE": sparse},
        )
        for head_dim in HEAD_DIMS
        for sparse_name, sparse in KINDS
    ),
]
