"""Scores of blocks in sparse attention (InfLLM-V2), of one row and KV head; `kernels/cuda/selection.py` picks
the best. Reference: `kernel_scores` and `block_scores` in `edge.model.attention.sparse`.

Windows are taken in chunks of one size, whose sums are merged in order: what a row gets is a function of its
path alone. Powers are of 2: logits come times log2(e).
"""

import triton
import triton.language as tl

from edge.executors.cuda.operators import scores as operator
from edge.executors.cuda.operators.pages import HEAD_DIMS
from edge.executors.cuda.operators.summaries import MOST_HEADS
from edge.kernels.entry import Entry
from edge.kernels.paths import BLOCK, OF_ROWS, PAGE, first_own
from edge.kernels.summaries import COARSE_SIZE, COARSE_STRIDE, FINE_SIZE, FINE_STRIDE, OWN, OWN_FINE

CHUNK, BLOCKS = tl.constexpr(operator.CHUNK), tl.constexpr(operator.BLOCKS)
EXPONENT_LIMIT = tl.constexpr(operator.EXPONENT_LIMIT * 1.4426950408889634)


@triton.jit
def complete(rows, SIZE: tl.constexpr, STRIDE: tl.constexpr):
    """Windows that end within so many rows."""
    return tl.where(rows < SIZE, 0, (rows - SIZE) // STRIDE + 1)


@triton.jit
def load_windows(
    pool, of_path, pages, j, count, own, kv_head, kv_heads, HEAD_DIM: tl.constexpr, STRIDE: tl.constexpr
):
    """Windows j [n] as float16 [n, HEAD_DIM], 0 unless 0 <= j < count. Those that end after path position
    `own` are of_path's.
    """
    d = tl.arange(0, HEAD_DIM)[None, :]
    place = j + 1  # of the stride in which a window ends
    of_tree = place - own // STRIDE
    inside = (j >= 0) & (j < count)
    stored = inside & (of_tree < 0)
    page = tl.load(pages + place // (PAGE // STRIDE), mask=stored, other=0).to(tl.int64)
    index = (page * kv_heads + kv_head) * (PAGE // STRIDE) + place % (PAGE // STRIDE)
    windows = tl.load(pool + index[:, None] * HEAD_DIM + d, mask=stored[:, None], other=0.0)
    if own // STRIDE < count + 1:
        theirs = inside & (of_tree >= 0)
        windows += tl.load(of_path + of_tree[:, None] * HEAD_DIM + d, mask=theirs[:, None], other=0.0)
    return windows


@triton.jit
def load_queries(q, row, kv_head, heads, group, HEAD_DIM: tl.constexpr, HEADS: tl.constexpr):
    """The heads of a group: float16 [HEADS, HEAD_DIM], 0 after the group's."""
    head = tl.arange(0, HEADS)
    at = q + (row.to(tl.int64) * heads + kv_head * group + head)[:, None] * HEAD_DIM
    return tl.load(at + tl.arange(0, HEAD_DIM)[None, :], mask=(head < group)[:, None], other=0.0)


@triton.jit
def normaliser_windows(rows, exact_lse):
    """(windows that a row's normaliser sums over, whether they are the fine ones)."""
    fine = complete(rows, FINE_SIZE, FINE_STRIDE)
    coarse = complete(rows, COARSE_SIZE, COARSE_STRIDE)
    use_fine = (exact_lse != 0) | (coarse == 0)
    return tl.where(use_fine, fine, coarse), use_fine


@triton.jit
def normalisers(
    q,
    fine,
    coarse,
    of_paths,
    parts,
    sequences,
    before,
    path,
    is_tree,
    ancestors,
    page_table,
    max_pages,
    heads,
    kv_heads,
    scale,
    dense_len,
    exact_lse,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
):
    """parts float32 [rows, heads, chunks, 2] = maximum and sum of powers over a chunk of the windows of the
    normaliser; one program each [rows, kv_heads, chunks]. See the wrapper.
    """
    row, kv_head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, rows = tl.load(sequences + row), tl.load(path + row) + 1
    count, use_fine = normaliser_windows(rows, exact_lse)
    if (sequence < 0) | (rows <= dense_len) | (chunk * CHUNK >= count):
        return
    group = heads // kv_heads
    own = first_own(before, is_tree, row)
    table = page_table + sequence * max_pages
    of_path = of_paths + (row * kv_heads + kv_head) * OWN * HEAD_DIM
    j = chunk * CHUNK + tl.arange(0, CHUNK)
    if use_fine:
        windows = load_windows(fine, of_path, table, j, count, own, kv_head, kv_heads, HEAD_DIM, FINE_STRIDE)
    else:
        of_path += OWN_FINE * HEAD_DIM
        windows = load_windows(
            coarse, of_path, table, j, count, own, kv_head, kv_heads, HEAD_DIM, COARSE_STRIDE
        )
    queries = load_queries(q, row, kv_head, heads, group, HEAD_DIM, HEADS)
    logits = tl.dot(queries, tl.trans(windows)) * scale
    logits = tl.where((j < count)[None, :], logits, float("-inf"))
    top = tl.max(logits, 1)
    total = tl.sum(tl.exp2(logits - top[:, None]), 1)
    head = tl.arange(0, HEADS)
    into = parts + ((row.to(tl.int64) * heads + kv_head * group + head) * tl.num_programs(2) + chunk) * 2
    tl.store(into, top, mask=head < group)
    tl.store(into + 1, total, mask=head < group)


@triton.jit
def scores(
    q,
    fine,
    of_paths,
    parts,
    block_scores,
    sequences,
    before,
    path,
    is_tree,
    ancestors,
    page_table,
    max_pages,
    heads,
    kv_heads,
    chunks,
    blocks,
    scale,
    dense_len,
    exact_lse,
    local_blocks,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
):
    """block_scores float32 [rows, kv_heads, blocks] of those before the local ones; some consecutive ones by
    each program [rows, kv_heads, blocks / BLOCKS]. See the wrapper.
    """
    row, kv_head, first = tl.program_id(0), tl.program_id(1), tl.program_id(2) * BLOCKS
    sequence, rows = tl.load(sequences + row), tl.load(path + row) + 1
    end = tl.cdiv(rows, BLOCK) - local_blocks
    if (sequence < 0) | (rows <= dense_len) | (first >= end):
        return
    group = heads // kv_heads
    head = tl.arange(0, HEADS)
    count, _ = normaliser_windows(rows, exact_lse)
    used = tl.cdiv(count, CHUNK)
    top = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    for start in range(0, used, CHUNK):
        chunk = start + tl.arange(0, CHUNK)
        inside = (head < group)[:, None] & (chunk < used)[None, :]
        at = (
            parts
            + ((row.to(tl.int64) * heads + kv_head * group + head)[:, None] * chunks + chunk[None, :]) * 2
        )
        tops = tl.load(at, mask=inside, other=float("-inf"))
        raised = tl.maximum(top, tl.max(tops, 1))
        raised = tl.where(head < group, raised, 0.0)
        totals = tl.load(at + 1, mask=inside, other=0.0) * tl.exp2(tops - raised[:, None])
        total = total * tl.exp2(top - raised) + tl.sum(totals, 1)
        top = raised
    share = tl.where(head < group, 1.0 / tl.where(head < group, total, 1.0), 0.0)

    own = first_own(before, is_tree, row)
    table = page_table + sequence * max_pages
    of_path = of_paths + (row * kv_heads + kv_head) * OWN * HEAD_DIM
    windows_of_row = complete(rows, FINE_SIZE, FINE_STRIDE)
    queries = load_queries(q, row, kv_head, heads, group, HEAD_DIM, HEADS)
    block = first + tl.arange(0, BLOCKS)
    best = tl.zeros((BLOCKS,), tl.float32)
    # The windows that overlap a block begin in it, or one stride before it.
    for begin in tl.static_range(-1, BLOCK // FINE_STRIDE):
        j = block * (BLOCK // FINE_STRIDE) + begin
        windows = load_windows(
            fine, of_path, table, j, windows_of_row, own, kv_head, kv_heads, HEAD_DIM, FINE_STRIDE
        )
        exponents = tl.dot(queries, tl.trans(windows)) * scale - top[:, None]
        weights = tl.exp2(tl.minimum(exponents, EXPONENT_LIMIT)) * share[:, None]
        score = tl.sum(weights, 0)
        best = tl.maximum(best, tl.where((j >= 0) & (j < windows_of_row), score, 0.0))
    into = block_scores + (row.to(tl.int64) * kv_heads + kv_head) * blocks + block
    tl.store(into, best, mask=block < end)


ENTRIES = [
    entry
    for head_dim in HEAD_DIMS
    for entry in (
        Entry(
            f"scores.normalisers.d{head_dim}",
            normalisers,
            {
                **{"q": "*fp16", "fine": "*fp16", "coarse": "*fp16", "of_paths": "*fp16", "parts": "*fp32"},
                **OF_ROWS,
                **{
                    "heads": "i32",
                    "kv_heads": "i32",
                    "scale": "fp32",
                    "dense_len": "i32",
                    "exact_lse": "i32",
                },
            },
            {"HEAD_DIM": head_dim, "HEADS": MOST_HEADS},
        ),
        Entry(
            f"scores.d{head_dim}",
            scores,
            {
                **{
                    "q": "*fp16",
                    "fine": "*fp16",
                    "of_paths": "*fp16",
                    "parts": "*fp32",
                    "block_scores": "*fp32",
                },
                **OF_ROWS,
                **dict.fromkeys(("heads", "kv_heads", "chunks", "blocks"), "i32"),
                **{"scale": "fp32", "dense_len": "i32", "exact_lse": "i32", "local_blocks": "i32"},
            },
            {"HEAD_DIM": head_dim, "HEADS": MOST_HEADS},
        ),
    )
]
