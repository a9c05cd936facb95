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
    cache_rows,
    first_own,
    load_rows,
    load_rows_inside,
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
def add_block(q, k, v, scale, top, total, values, seen, MASKED: tl.constexpr):
    """Take 64 keys and values into the softmax of each row of q: (top [M], total [M, 16], values [M, d]),
    float32: the maximum of the logits, and the sums of powers and of values below it.
    """
    logits = tl.dot(q, tl.trans(k))
    if MASKED:
        logits = tl.where(seen, logits, float("-inf"))
    raised = tl.maximum(top, tl.max(logits, 1) * scale)
    weights = tl.exp2(tl.fma(logits, scale, -raised[:, None])).to(tl.float16)
    shrunk = tl.exp2(top - raised)[:, None]
    # By a tensor core, whose sum has one order, however threads share the weights.
    total = tl.dot(weights, tl.full((BLOCK, 16), 1.0, tl.float16), total * shrunk)
    return raised, total, tl.dot(weights, v, values * shrunk)


@triton.jit
def merge(top, total, values, next_top, next_total, next_values):
    """The softmax of what was merged so far and of the next split: top, total [M], values [M, d]."""
    raised = tl.maximum(top, next_top)
    shrunk, next_shrunk = tl.exp2(top - raised), tl.exp2(next_top - raised)
    # Fused by name: a compiler that may choose would not always choose alike.
    total = tl.fma(total, shrunk, next_total * next_shrunk)
    values = tl.fma(values, shrunk[:, None], next_values * next_shrunk[:, None])
    return raised, total, values


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
    d = tl.arange(0, HEAD_DIM)[None, :]
    query = tl.load(q + place[:, None] * HEAD_DIM + d, mask=used[:, None], other=0.0)

    # A tile's rows are in one block of positions, so they have as many blocks, and splits of one size.
    sequence = tl.load(sequences + row)
    first_last = tl.load(path + row)
    own = first_own(before, is_tree, row)
    blocks = first_last // BLOCK + 1
    plain = tl.minimum(first_last + 1, own) // BLOCK  # those before it are seen whole, and as they are cached
    listed = False
    if SPARSE:
        index = row.to(tl.int64) * kv_heads + kv_head
        length = tl.load(counts + index)
        selected += index * capacity
        listed = length >= 0
        if listed:
            blocks = length
            seen_whole = length
            for back in tl.static_range(1, 3):  # the others are two at most
                id = tl.load(selected + tl.maximum(length - back, 0))
                seen_whole -= ((length >= back) & (id >= plain)).to(tl.int32)
            plain = seen_whole
    blocks = tl.where(sequence < 0, 0, blocks)
    size = blocks_of_splits(blocks)
    begin = 0
    end = blocks
    if SPLIT:
        begin = tl.program_id(2) * size
        end = tl.minimum(begin + size, blocks)
        if begin >= end:
            return

    table = page_table + sequence * max_pages
    n = tl.arange(0, BLOCK)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M, 16), tl.float32)
    sums = tl.zeros((M, HEAD_DIM), tl.float32)
    all_top = top
    all_total = tl.zeros((M,), tl.float32)
    all_sums = sums
    for j in range(begin, tl.minimum(end, plain)):
        block = j
        if SPARSE:
            block = tl.where(listed, tl.load(selected + tl.where(listed, j, 0)), j)
        at = row_of_page(table, block * BLOCK, kv_head, kv_heads) + n
        k = load_rows(keys, key_scales, at, HEAD_DIM)
        v = load_rows(values, value_scales, at, HEAD_DIM)
        top, total, sums = add_block(query, k, v, scale, top, total, sums, None, False)
        if not SPLIT and (j + 1) % size == 0:
            all_top, all_total, all_sums = merge(all_top, all_total, all_sums, top, tl.max(total, 1), sums)
            top = tl.full((M,), float("-inf"), tl.float32)
            total = tl.zeros((M, 16), tl.float32)
            sums = tl.zeros((M, HEAD_DIM), tl.float32)
    # Blocks that some rows see a part of, or of which a part is a tree's; of causal rows it is the last one.
    last = tl.load(path + row + count - 1)
    lasts = tl.load(path + rows)
    for j in tl.range(tl.maximum(begin, plain), end, num_stages=1):
        block = j
        if SPARSE:
            block = tl.where(listed, tl.load(selected + tl.where(listed, j, 0)), j)
        position = block * BLOCK + n
        inside = position <= last
        slots = cache_rows(position, last, own, ancestors + row * TREE)
        at = rows_of_pages(table, slots, inside, kv_head, kv_heads)
        k = load_rows_inside(keys, key_scales, at, inside, HEAD_DIM)
        v = load_rows_inside(values, value_scales, at, inside, HEAD_DIM)
        seen = position[None, :] <= lasts[:, None]
        top, total, sums = add_block(query, k, v, scale, top, total, sums, seen, True)
    one_total = tl.max(total, 1)
    if SPLIT:
        split = place * tl.num_programs(2) + tl.program_id(2)
        tl.store(parts + split[:, None] * HEAD_DIM + d, sums, mask=used[:, None])
        tl.store(tops + split * 2, top, mask=used)
        tl.store(tops + split * 2 + 1, one_total, mask=used)
    else:
        if (plain < blocks) | (blocks % size != 0):
            all_top, all_total, all_sums = merge(all_top, all_total, all_sums, top, one_total, sums)
        result = all_sums * tl.where(all_total > 0.0, 1.0 / all_total, 0.0)[:, None]
        tl.store(out + place[:, None] * HEAD_DIM + d, result.to(tl.float16), mask=used[:, None])


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
    d = tl.arange(0, HEAD_DIM)[None, :]
    first = row.to(tl.int64) * heads + kv_head * group
    place = first + tl.minimum(head, group - 1)
    top = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    sums = tl.zeros((HEADS, HEAD_DIM), tl.float32)
    for start in range(0, used, MERGED):
        for i in tl.static_range(MERGED):
            # After the last split comes it again, with no weight.
            split = place * splits + tl.minimum(start + i, used - 1)
            next_top = tl.where(start + i < used, tl.load(tops + split * 2), float("-inf"))
            next_total = tl.load(tops + split * 2 + 1)
            next_sums = tl.load(parts + split[:, None] * HEAD_DIM + d)
            top, total, sums = merge(top, total, sums, next_top, next_total, next_sums)
    result = sums * tl.where(total > 0.0, 1.0 / total, 0.0)[:, None]
    into = out + (first + head)[:, None] * HEAD_DIM + d
    tl.store(into, result.to(tl.float16), mask=(head < group)[:, None])


ATTEND = {
    **{"selected": "*i32", "counts": "*i32"},
    **OF_ROWS,
    **{"tiles": "*i32", "parts": "*fp32", "tops": "*fp32", "out": "*fp16"},
    **dict.fromkeys(("heads", "kv_heads", "tile_heads", "capacity"), "i32"),
    "scale": "fp32",
}
KINDS = [("", False), (".sparse", True)]
ENTRIES = [
    *(
        Entry(
            f"attention.{kind}{sparse_name}.{variant.name}",
            attend,
            {"q": "*fp16", **variant.pools, **ATTEND},
            {"HEAD_DIM": variant.head_dim, "M": m, "TREE": TREE, "SPARSE": sparse, "SPLIT": kind == "decode"},
            warps=4,
            stages=stages,
        )
        for variant in VARIANTS
        for sparse_name, sparse in KINDS
        for kind, m, stages in (
            ("decode", operator.DECODE_HEADS, 3),
            ("prefill", operator.DECODE_HEADS if sparse else operator.PREFILL_TILE, 2),
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
