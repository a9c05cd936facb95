"""InfLLM-V2 over whole tensors: what training and the operator run; `edge.model.attention.sparse` specifies
it.

`select_blocks` scores and selects for all queries at once, without gradients. `attend` is exact attention
over the selected blocks, differentiable in q, k and v. Shapes: q [..., heads, n, d], k and v
[..., kv heads, rows, d], whose last n rows belong to the queries; tree bool [n, n] as in `path_of` there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edge.config import SparseConfig
from edge.model.attention.key_summaries import KeySummaries, semantic_kernels
from edge.model.attention.sparse import EXPONENT_LIMIT


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, sparse: SparseConfig, tree: Tensor | None = None
) -> Tensor:
    """Selection and attention over the selected blocks -> [..., heads, n, d]."""
    return attend(q, k, v, select_blocks(q, k, sparse, tree), sparse.block_size, tree)


@torch.no_grad()
def select_blocks(
    q: Tensor,
    k: Tensor,
    sparse: SparseConfig,
    tree: Tensor | None = None,
    summaries: KeySummaries | None = None,
) -> Tensor:
    """The blocks that each query reads, shared by the heads of a group: bool [..., kv heads, n, blocks].

    summaries: those of the first rows of k; what they lack is computed.
    """
    position = query_positions(q, k, tree).unsqueeze(-1)
    blocks = -(-k.shape[-2] // sparse.block_size)
    ids = torch.arange(blocks, device=k.device)
    own = position // sparse.block_size
    visible, local = ids <= own, ids > own - sparse.local_blocks
    candidate = ~local & (ids >= sparse.init_blocks)

    scores = _pool(_kernel_scores(q, k, position, sparse, tree, summaries), blocks, sparse)
    # A stable sort, since topk promises nothing about ties: the lower id comes first.
    order = scores.masked_fill(~candidate, -1).sort(dim=-1, descending=True, stable=True).indices
    best = torch.zeros_like(scores, dtype=torch.bool)
    best.scatter_(-1, order[..., : sparse.dynamic_blocks], True)
    dense = position < sparse.dense_len
    return (best & candidate) | (visible & (local | (ids < sparse.init_blocks) | dense))


def attend(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, block_size: int, tree: Tensor | None = None
) -> Tensor:
    """Softmax attention over the rows of the selected blocks, by a mask over all rows."""
    mask = visible_rows(q, k, selected, block_size, tree)
    group = q.shape[-3] // k.shape[-3]
    # Key-value heads become batch entries, so that the heads of a group share one row of the mask.
    query = q.unflatten(-3, (-1, group)).flatten(0, -4)
    keys, values, seen = (x.flatten(0, -3).unsqueeze(1) for x in (k, v, mask))
    shape = (-1, group, -1, -1)
    out = functional.scaled_dot_product_attention(
        query, keys.expand(shape), values.expand(shape), attn_mask=seen.expand(shape)
    )
    return out.reshape(q.shape)


def visible_rows(
    q: Tensor, k: Tensor, selected: Tensor, block_size: int, tree: Tensor | None = None
) -> Tensor:
    """Which rows each query reads: bool [..., kv heads, n, rows], the selected blocks' rows on its path."""
    n, rows = q.shape[-2], k.shape[-2]
    index = torch.arange(rows, device=k.device)
    position = query_positions(q, k, tree)
    if tree is None:
        path = index <= position.unsqueeze(-1)
    else:
        path = torch.cat([tree.new_ones(n, rows - n), tree], -1)
        index = torch.cat([index[: rows - n], position])
    return selected[..., index // block_size] & path


def tree_or_none(tree: Tensor) -> Tensor | None:
    """A mask bool [n, n] as it is, or None if it is causal: then windows are the same for all queries."""
    return None if torch.equal(tree, torch.ones_like(tree).tril()) else tree


def query_positions(q: Tensor, k: Tensor, tree: Tensor | None) -> Tensor:
    """Positions of the queries, int64 [n]: rows before the call, plus place in it or depth in the tree."""
    n = q.shape[-2]
    depth = torch.arange(n, device=k.device) if tree is None else tree.sum(-1) - 1
    return k.shape[-2] - n + depth


def _kernel_scores(
    q: Tensor,
    k: Tensor,
    position: Tensor,
    sparse: SparseConfig,
    tree: Tensor | None,
    summaries: KeySummaries | None,
) -> Tensor:
    """`kernel_scores` of all queries: float32 [..., kv heads, n, fine kernels], 0 where not visible."""
    q = q.unflatten(-3, (k.shape[-3], -1))
    # Windows within these rows are the same for all queries; in a tree, later ones differ from path to path.
    shared = k.shape[-2] if tree is None else k.shape[-2] - tree.shape[-1]
    if summaries is None:
        summaries = KeySummaries.of(k[..., :shared, :], sparse)
    else:
        summaries = summaries.truncate(shared).extend(k[..., :shared, :])
    fine, visible = _logits(q, k, position, sparse.kernel_size, sparse.kernel_stride, tree, summaries.fine)
    if not fine.shape[-1]:
        return fine.sum(-3)
    top, total = _normaliser(fine, visible)
    coarse, seen = _logits(q, k, position, sparse.coarse_size, sparse.coarse_stride, tree, summaries.coarse)
    if coarse.shape[-1] and not sparse.exact_lse:
        use_coarse = seen.any(-1, keepdim=True)
        coarse_top, coarse_total = _normaliser(coarse, seen)
        top = torch.where(use_coarse, coarse_top, top)
        total = torch.where(use_coarse, coarse_total, total)
    scores = (fine - top).clamp(max=EXPONENT_LIMIT).exp() / total
    return scores.masked_fill(~visible, 0).sum(-3)


def _normaliser(logits: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and sum of exponentials over the visible kernels; (lowest float, 0) where there is none."""
    top = logits.masked_fill(~visible, torch.finfo(logits.dtype).min).amax(-1, keepdim=True)
    return top, (logits - top).clamp(max=0).exp().masked_fill(~visible, 0).sum(-1, keepdim=True)


def _logits(
    q: Tensor, k: Tensor, position: Tensor, size: int, stride: int, tree: Tensor | None, shared: Tensor
) -> tuple[Tensor, Tensor]:
    """(q . kernel / sqrt(d) float32 [..., kv heads, group, n, kernels], visible bool [n, kernels])."""
    q = q.float()
    logits = q @ shared.float().transpose(-1, -2).unsqueeze(-3)
    if tree is not None:
        rows = _paths(tree, k.shape[-2] - tree.shape[-1])[:, shared.shape[-2] * stride :]
        own = semantic_kernels(k[..., rows, :], size, stride).float()
        logits = torch.cat([logits, torch.einsum("...hgnd,...hnwd->...hgnw", q, own)], -1)
    ends = torch.arange(logits.shape[-1], device=k.device) * stride + size
    return logits * q.shape[-1] ** -0.5, ends <= position + 1


def _paths(tree: Tensor, start: int) -> Tensor:
    """Row of each position on each query's path: int64 [n, start + n]; after the query's own, any row."""
    n = tree.shape[-1]
    rows = torch.arange(start + n, device=tree.device).repeat(n, 1)
    query, ancestor = tree.nonzero(as_tuple=True)
    depth = tree.sum(-1) - 1
    rows[query, start + depth[ancestor]] = start + ancestor
    return rows


def _pool(scores: Tensor, blocks: int, sparse: SparseConfig) -> Tensor:
    """Best score of the kernels that overlap each block: [..., kernels] -> [..., blocks]."""
    step = sparse.block_size // sparse.kernel_stride
    before = sparse.kernel_size // sparse.kernel_stride - 1  # kernels that begin in the block before
    after = blocks * step - scores.shape[-1]
    return functional.pad(scores, (before, after)).unfold(-1, before + step, step).amax(-1)
