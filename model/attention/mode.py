"""From `--attention` to what the layers of the network call: `edge.config.attention` decides, this plugs it
in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edge.config import SparseConfig
from edge.config.attention import AttentionMode, resolve_attention
from edge.model.attention.blocks import attend, select_blocks, tree_or_none
from edge.model.network.decoder import Attend, Decoder, dense_attention
from edge.model.operators import attention as ops

AttendBlocks = Callable[[Tensor, Tensor, Tensor, Tensor, int, Tensor | None], Tensor]
"""`edge.model.attention.blocks.attend`, or another function that computes the same."""


@dataclass(frozen=True)
class SparseAttention:
    """The decoder's `Attend` by InfLLM-V2: one operator in graphs, differentiable PyTorch elsewhere.

    Blocks and `dense_len` count rows on a query's path, which the mask describes, not rotary positions.
    """

    sparse: SparseConfig
    attend_blocks: AttendBlocks = attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """See `Attend`. The mask's columns: rows before the pass, its n tokens, spare rows that none sees."""
        n = q.shape[-2]
        past = mask[0].sum() - 1  # the first token of a pass sees what was before, and itself
        gradient = q.requires_grad or k.requires_grad or v.requires_grad
        if torch.compiler.is_exporting() or (torch.compiler.is_compiling() and not gradient):
            tree = mask.index_select(1, past + torch.arange(n, device=mask.device))
            return ops.sparse_attention(q, k, v, past.reshape(1), tree, self.sparse)
        start = int(past)
        rows = start + n
        k, v, tree_ = k[..., :rows, :], v[..., :rows, :], tree_or_none(mask[:, start:rows])
        selected = select_blocks(q, k, self.sparse, tree_)
        return self.attend_blocks(q, k, v, selected, self.sparse.block_size, tree_)


def use_attention_mode(decoder: Decoder, mode: AttentionMode = "auto") -> SparseConfig | None:
    """Switch every layer to a mode; returns the constants that are active, None for dense.

    Raises ConfigError where sparse was asked for and can't run.
    """
    sparse = resolve_attention(decoder.config, mode, context=decoder.context)
    decoder.use_attention(attend_function(sparse))
    return sparse


def attend_function(sparse: SparseConfig | None) -> Attend:
    """What the layers call: by these constants, or dense."""
    return dense_attention if sparse is None else SparseAttention(sparse)
