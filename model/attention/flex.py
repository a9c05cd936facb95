"""Attention over selected blocks through PyTorch's flex_attention, which skips tiles that no query reads.

For devices where it compiles with a backward pass: PyTorch has one for GPUs and none for CPUs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

TILE = 128
"""Queries and rows per tile of flex_attention."""


def block_mask(selected: Tensor, group: int, rows: int, block_size: int) -> BlockMask:
    """The mask of a causal pass: selected bool [batch, kv heads, n, blocks] of a cache of `rows` rows.

    A tile is read if any of its queries reads any of its blocks; inside it every query sees its own blocks.
    """
    if TILE % block_size:
        raise ValueError(
            f"flex_attention has tiles of {TILE} rows, which blocks of {block_size} don't divide."
        )
    _, _, n, blocks = selected.shape
    start = rows - n

    def sees(b: Tensor, head: Tensor, query: Tensor, row: Tensor) -> Tensor:
        return (row <= query + start) & selected[b, head // group, query, row // block_size]

    per_tile = TILE // block_size
    padded = pad(selected, (0, -blocks % per_tile, 0, -n % TILE))
    tiles = (
        padded.unflatten(-1, (-1, per_tile))
        .unflatten(-3, (-1, TILE))
        .any(-1)
        .any(-2)
        .repeat_interleave(group, 1)
    )
    count = tiles.sum(-1, dtype=torch.int32)
    order = tiles.int().argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return BlockMask.from_kv_blocks(count, order, BLOCK_SIZE=TILE, mask_mod=sees, seq_lengths=(n, rows))


def flex_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    block_size: int,
    tree: Tensor | None = None,
    flex: Callable[..., Tensor] = flex_attention,
) -> Tensor:
    """`edge.model.attention.blocks.attend` with other means; flex: flex_attention, usually compiled.

    Raises ValueError for a token tree, which training doesn't have.
    """
    if tree is not None:
        raise ValueError("flex_attention is for training, without token trees.")
    group = q.shape[-3] // k.shape[-3]
    queries, keys, values, chosen = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v, selected))
    mask = block_mask(chosen, group, k.shape[-2], block_size)
    return flex(queries, keys, values, block_mask=mask, enable_gqa=group > 1).reshape(q.shape)
