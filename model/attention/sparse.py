"""InfLLM-V2 block-sparse attention: the written reference, one query at a time.

The specification (InfLLM-V2, arXiv 2509.24663; constants of the MiniCPM4 report) for every other
implementation, so it is written for the reader: `select_blocks` and `attend` are the operator pair,
`reference_attention` runs them over a cache. `edge.model.attention.blocks` computes the same for training.

A query sees its *path*: the cached rows and those of its own call that come before it, in order of position,
itself last. Everything is a function of the path's rows alone. So chunks of a prompt, single tokens and the
branches of a token tree give what a prompt processed at once gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge.config import SparseConfig
from edge.model.attention.key_summaries import KeySummaries

EXPONENT_LIMIT = 80.0
"""The normaliser's maximum comes from other kernels than the score, so exponents can be positive: they are
clamped here, where a sum of exponentials over thousands of heads is still a finite float32."""


def kernel_scores(q: Tensor, summaries: KeySummaries, exact_lse: bool = False) -> Tensor:
    """Scores of the fine kernels for one query and KV head: q [group, d] -> s float32 [fine kernels].

    s[j] = sum over the group's heads h of exp(q_h . K1[j] / sqrt(d) - m_h) / Z_h, where m_h and Z_h are the
    maximum and the sum of exponentials over the coarse kernels (the LSE approximation), or over the fine ones
    with exact_lse and while no coarse kernel is complete.
    """
    scale = q.shape[-1] ** -0.5
    fine = q.float() @ summaries.fine.float().T * scale
    if not fine.shape[-1]:
        return fine.sum(0)
    use_fine = exact_lse or not summaries.coarse.shape[-2]
    normaliser = fine if use_fine else q.float() @ summaries.coarse.float().T * scale
    top = normaliser.amax(-1, keepdim=True)
    total = (normaliser - top).exp().sum(-1, keepdim=True)
    return ((fine - top).clamp(max=EXPONENT_LIMIT).exp() / total).sum(0)


def block_scores(scores: Tensor, rows: int, sparse: SparseConfig) -> Tensor:
    """The best score of the kernels that overlap each block: s [kernels] -> b [blocks of `rows` rows].

    A block that no complete kernel overlaps scores 0.
    """
    best = torch.zeros(-(-rows // sparse.block_size))
    for j, score in enumerate(scores):
        first, last = j * sparse.kernel_stride, j * sparse.kernel_stride + sparse.kernel_size - 1
        overlapped = slice(first // sparse.block_size, last // sparse.block_size + 1)
        best[overlapped] = best[overlapped].maximum(score)
    return best


def select_blocks(q: Tensor, k: Tensor, sparse: SparseConfig) -> list[int]:
    """The blocks that one query reads, ascending ids; the heads of a group share them.

    q: [group, d]. k: [rows, d], the keys on the query's path, its own last.
    """
    rows = k.shape[0]
    blocks = -(-rows // sparse.block_size)
    if rows <= sparse.dense_len:  # the query's position is rows - 1
        return list(range(blocks))
    scores = block_scores(kernel_scores(q, KeySummaries.of(k, sparse), sparse.exact_lse), rows, sparse)
    return chosen_blocks(scores, rows, sparse)


def chosen_blocks(scores: Tensor, rows: int, sparse: SparseConfig) -> list[int]:
    """What these scores [blocks] choose on a path of `rows` rows that is not dense: ascending ids."""
    blocks = -(-rows // sparse.block_size)
    local = max(blocks - sparse.local_blocks, 0)
    forced = {*range(min(sparse.init_blocks, blocks)), *range(local, blocks)}
    others = [block for block in range(blocks) if block not in forced]
    others.sort(key=lambda block: -scores[block].item())  # stable: of equal ones the lower id comes first
    return sorted(forced | set(others[: sparse.dynamic_blocks]))


def attend(q: Tensor, k: Tensor, v: Tensor, blocks: list[int], block_size: int) -> Tensor:
    """Exact softmax attention of one query over the rows of some blocks: q [group, d] -> [group, d]."""
    rows = [r for b in blocks for r in range(b * block_size, min((b + 1) * block_size, k.shape[0]))]
    weights = ((q @ k[rows].T) * q.shape[-1] ** -0.5).softmax(-1)
    return weights @ v[rows]


def path_of(i: int, start: int, tree: Tensor | None) -> list[int]:
    """Cache rows that query i of a call sees, in order of position; start rows were there before the call.

    tree: bool [n, n], row i sees column j, its own included; ancestors stand before their descendants.
    """
    own = range(i + 1) if tree is None else tree[i].nonzero().flatten().tolist()
    return [*range(start), *(start + j for j in own)]


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, sparse: SparseConfig, tree: Tensor | None = None
) -> Tensor:
    """Sparse attention of the last n rows of a cache: q [heads, n, d], k and v [kv heads, rows, d] -> like q.

    The cache holds the n queries' own rows as its last. tree: see `path_of`.
    """
    n, start = q.shape[-2], k.shape[-2] - q.shape[-2]
    group = q.shape[0] // k.shape[0]
    out = torch.empty_like(q)
    for head in range(k.shape[0]):
        heads = slice(head * group, (head + 1) * group)
        for i in range(n):
            path = path_of(i, start, tree)
            keys, values = k[head, path], v[head, path]
            blocks = select_blocks(q[heads, i], keys, sparse)
            out[heads, i] = attend(q[heads, i], keys, values, blocks, sparse.block_size)
    return out


def reference_selection(q: Tensor, k: Tensor, sparse: SparseConfig, tree: Tensor | None = None) -> Tensor:
    """The blocks that each query reads: bool [kv heads, n, blocks of all rows]; arguments as above."""
    n, start = q.shape[-2], k.shape[-2] - q.shape[-2]
    group = q.shape[0] // k.shape[0]
    chosen = torch.zeros(k.shape[0], n, -(-k.shape[-2] // sparse.block_size), dtype=torch.bool)
    for head in range(k.shape[0]):
        for i in range(n):
            keys = k[head, path_of(i, start, tree)]
            chosen[head, i, select_blocks(q[head * group : (head + 1) * group, i], keys, sparse)] = True
    return chosen
