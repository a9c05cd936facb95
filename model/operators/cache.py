"""Operators on a layer's KV cache, which is changed in place and stands as the native kernels read it.

What `kernels/include/edge_operators.h` computes, under the same names. Shapes and common arguments:

* cache uint8 [bytes] (`edge.model.operators.cache_pages.LayerCache`), zeros at first;
* start int64 [1]: rows before this call, of n tokens of one sequence;
* tree: None or empty for causal order, else int64 [n], n <= 64: bit j of row i is set if token i sees token j
  of this call, its own bit included, ancestors before descendants;
* heads, kv_heads, head_dim, kv_type (0 float16, 1 float32, 2 int8, 3 int16, 4 int4), capacity in tokens;
* sparse: empty for dense attention, or kernel_size, kernel_stride, block_size, init_blocks, window_size,
  topk, dense_len, exact_lse.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from edge.model.attention import blocks as block_attention
from edge.model.network.rope import rotate
from edge.model.operators.cache_pages import LayerCache
from edge.model.operators.schema import operator

_SHAPE = "int heads, int kv_heads, int head_dim, int kv_type, int capacity, int[] sparse"
_MAX_TREE = 64


@operator(
    f"kv_append(Tensor qkv, Tensor rope, Tensor start, Tensor(a!) cache, Tensor? tree, {_SHAPE}) -> Tensor",
    lambda qkv, rope, start, cache, tree, heads, kv_heads, head_dim, *_: qkv.new_empty(
        (*qkv.shape[:-1], heads * head_dim)
    ),
)
def kv_append(
    qkv: Tensor,
    rope: Tensor,
    start: Tensor,
    cache: Tensor,
    tree: Tensor | None,
    heads: int,
    kv_heads: int,
    head_dim: int,
    kv_type: int,
    capacity: int,
    sparse: Sequence[int],
) -> Tensor:
    """Rotate and store keys and values, extend the summaries, and return the rotated queries.

    qkv [..., n, (heads + 2 kv_heads) head_dim]; rope [..., n, 2, head_dim / 2] from `rope_table`. A tree's
    rows belong to paths: they complete no summaries. -> [..., n, heads head_dim]
    """
    layer = LayerCache.of(heads, kv_heads, head_dim, kv_type, capacity, sparse)
    rows = qkv.reshape(-1, heads + 2 * kv_heads, head_dim).transpose(0, 1)
    past = _past(layer, cache, start, rows.shape[1])
    cos, sin = rope.reshape(-1, 2, head_dim // 2).unbind(1)
    rotated = rotate(rows[: heads + kv_heads], cos, sin)
    layer.write(cache, rotated[heads:], rows[heads + kv_heads :], past)
    if _paths(tree, rows.shape[1]) is None:
        layer.extend_summaries(cache, past, past + rows.shape[1])
    return rotated[:heads].transpose(0, 1).reshape(*qkv.shape[:-1], heads * head_dim).contiguous()


@operator(
    f"paged_attention(Tensor queries, Tensor start, Tensor cache, Tensor? tree, {_SHAPE}) -> Tensor",
    lambda queries, *_: torch.empty_like(queries, memory_format=torch.contiguous_format),
)
def paged_attention(
    queries: Tensor,
    start: Tensor,
    cache: Tensor,
    tree: Tensor | None,
    heads: int,
    kv_heads: int,
    head_dim: int,
    kv_type: int,
    capacity: int,
    sparse: Sequence[int],
) -> Tensor:
    """Dense or block-sparse attention of the queries of rows start .. start + n, after their `kv_append`.

    queries [..., n, heads head_dim] -> the same shape.
    """
    layer = LayerCache.of(heads, kv_heads, head_dim, kv_type, capacity, sparse)
    q = queries.reshape(-1, heads, head_dim).transpose(0, 1)
    n = q.shape[1]
    past = _past(layer, cache, start, n)
    keys, values = layer.read(cache, past + n)
    paths = _paths(tree, n)
    if layer.sparse is None:
        selected, block = torch.ones(kv_heads, n, 1, dtype=torch.bool), past + n
    else:
        summaries = layer.summaries(cache, past + n if paths is None else past)
        block = layer.sparse.block_size
        selected = block_attention.select_blocks(q, keys, layer.sparse, paths, summaries)
    out = block_attention.attend(q, keys, values, selected, block, paths)
    return out.transpose(0, 1).reshape(queries.shape).contiguous()


@operator(
    f"kv_keep(Tensor rows, Tensor start, Tensor(a!) cache, {_SHAPE}) -> Tensor",
    lambda rows, start, *_: torch.empty_like(start),
)
def kv_keep(
    rows: Tensor,
    start: Tensor,
    cache: Tensor,
    heads: int,
    kv_heads: int,
    head_dim: int,
    kv_type: int,
    capacity: int,
    sparse: Sequence[int],
) -> Tensor:
    """After the first `start` rows keep the given ones (int64 [count], absolute, ascending), drop the rest.

    Makes the summaries those of the rows that remain, and returns their number, int64 [1].
    """
    layer = LayerCache.of(heads, kv_heads, head_dim, kv_type, capacity, sparse)
    past = _past(layer, cache, start, rows.numel())
    kept = [past - 1, *rows.tolist(), capacity]
    if any(before >= after for before, after in pairwise(kept)):
        raise ValueError(f"Rows to keep must ascend from {past} to below {capacity}: {rows.tolist()}.")
    layer.move(cache, rows, past)
    layer.extend_summaries(cache, past, past + rows.numel())
    return start + rows.numel()


def _past(layer: LayerCache, cache: Tensor, start: Tensor, n: int) -> int:
    past = int(start.item())
    if past < 0 or past + n > layer.capacity:
        raise ValueError(f"{n} more tokens after {past} do not fit a cache of {layer.capacity} tokens.")
    if cache.dtype != torch.uint8 or cache.numel() != layer.bytes:
        raise ValueError(f"The cache must be uint8 [{layer.bytes}], not {cache.dtype} {list(cache.shape)}.")
    return past


def _paths(tree: Tensor | None, n: int) -> Tensor | None:
    """bool [n, n] of a tree's masks, or None."""
    if tree is None or tree.numel() == 0:
        return None
    if tree.shape != (n,) or n > _MAX_TREE:
        raise ValueError(f"A tree of {n} tokens has {n} masks, and at most {_MAX_TREE}: {list(tree.shape)}.")
    paths = (tree.unsqueeze(-1) >> torch.arange(n) & 1).bool()
    if not torch.equal(paths, paths.tril()) or not paths.diagonal().all():
        raise ValueError("A tree's token must see itself and nothing after it.")
    return paths
