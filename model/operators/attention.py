"""The custom operators of torch's `edge` namespace, which only files called model/ops*.py define.

The ones of a packed decoder layer, which native code, ExecuTorch and ONNX Runtime implement under the same
name and schema, are in `edge.model.operators.linear` and `edge.model.operators.cache`; those of this file
work on plain tensors. The CPU implementation is plain PyTorch, so that exported graphs run without native
code. There is no gradient: training calls `edge.model.attention.blocks` (`edge.model.attention.mode`
chooses).

Shapes:

* q [batch, heads, n, d];
* caches [batch, kv heads, capacity, d], valid up to row start + n: the queries' own rows are in already;
* start int64 [1]: rows before this call;
* tree bool [n, n]: row i sees column j, its own included, ancestors before descendants; by default causal;
* fine and coarse [batch, kv heads, windows, d]: summaries of the cache as `extend_key_summaries` fills them,
  of the rows before a tree, or of all rows if there is none; without them they are computed from the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge.config import SparseConfig
from edge.model.attention import blocks as block_attention
from edge.model.attention.key_summaries import KeySummaries, complete_windows, semantic_kernels


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor, tree: Tensor | None, sparse: SparseConfig
) -> Tensor:
    """`block_sparse_attention` with the constants of a config and any or no batch dimensions."""
    out: Tensor = block_sparse_attention(
        *(x.reshape(-1, *x.shape[-3:]) for x in (q, k, v)),
        start,
        tree,
        None,
        None,
        sparse.kernel_size,
        sparse.kernel_stride,
        sparse.init_blocks,
        sparse.block_size,
        sparse.window_size,
        sparse.topk,
        sparse.dense_len,
        sparse.exact_lse,
    )
    return out.reshape(q.shape)


@torch.library.custom_op("edge::block_sparse_attention", mutates_args=())
def block_sparse_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    start: Tensor,
    tree: Tensor | None,
    fine: Tensor | None,
    coarse: Tensor | None,
    kernel_size: int,
    kernel_stride: int,
    init_blocks: int,
    block_size: int,
    window_size: int,
    topk: int,
    dense_len: int,
    exact_lse: bool,
) -> Tensor:
    """InfLLM-V2 attention of n queries over a cache (`edge.model.attention.sparse`) -> [batch, heads, n, d].

    Raises ConfigError for constants that contradict each other, ValueError for shapes that do.
    """
    sparse = SparseConfig(
        kernel_size=kernel_size,
        kernel_stride=kernel_stride,
        init_blocks=init_blocks,
        block_size=block_size,
        window_size=window_size,
        topk=topk,
        dense_len=dense_len,
        exact_lse=exact_lse,
    )
    if k_cache.shape != v_cache.shape or q.shape[::3] != k_cache.shape[::3]:
        raise ValueError(f"q, keys and values do not fit: {_shapes(q, k_cache, v_cache)}.")
    if q.shape[1] % k_cache.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads can't share {k_cache.shape[1]} KV heads evenly.")
    rows = _rows(k_cache, start, q.shape[2])
    k, v = k_cache[:, :, :rows], v_cache[:, :, :rows]
    if (fine is None) != (coarse is None):
        raise ValueError("Give both the fine and the coarse summaries, or none.")
    summaries = None
    if fine is not None and coarse is not None:
        summarized = rows if tree is None else rows - q.shape[2]
        whole = KeySummaries(fine, coarse, k_cache.shape[2], sparse)
        summaries = whole.truncate(summarized)
    if tree is not None:
        n = q.shape[2]
        if tree.shape != (n, n):
            raise ValueError(f"The tree of {n} tokens must be [{n}, {n}], not {_shapes(tree)}.")
        tree = block_attention.tree_or_none(tree)
    selected = block_attention.select_blocks(q, k, sparse, tree, summaries)
    return block_attention.attend(q, k, v, selected, block_size, tree)


@block_sparse_attention.register_fake
def _(q: Tensor, k_cache: Tensor, v_cache: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@torch.library.custom_op("edge::extend_key_summaries", mutates_args=("fine", "coarse"))
def extend_key_summaries(
    k_cache: Tensor,
    start: Tensor,
    n: int,
    fine: Tensor,
    coarse: Tensor,
    kernel_size: int,
    kernel_stride: int,
) -> None:
    """Write the windows that rows start .. start + n of a cache complete into fine and coarse, in place.

    A pure function of the rows: after a roll-back, a call with the smaller start writes later windows again.
    Not for the rows of a token tree, whose windows belong to paths.
    """
    rows = _rows(k_cache, start, n)
    for kernels, factor in ((fine, 1), (coarse, 4)):
        size, stride = factor * kernel_size, factor * kernel_stride
        before, after = complete_windows(rows - n, size, stride), complete_windows(rows, size, stride)
        if after > kernels.shape[-2]:
            raise ValueError(
                f"{rows} rows have {after} windows of {size}, but there is room for {kernels.shape[-2]}."
            )
        new = semantic_kernels(k_cache[:, :, before * stride : rows], size, stride)
        kernels[:, :, before:after] = new


@extend_key_summaries.register_fake
def _(*_: object) -> None:
    return None


def _rows(cache: Tensor, start: Tensor, n: int) -> int:
    rows = int(start.item()) + n
    if not n <= rows <= cache.shape[-2]:
        raise ValueError(f"Rows {rows - n} to {rows} lie outside a cache of {cache.shape[-2]} rows.")
    return rows


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
