"""Attention over packed rows through PyTorch's flex_attention, which skips tiles whose queries and keys
share no document.

For GPUs, where it is compiled. On CPUs PyTorch has the forward pass only, which tests compare with
`edge.train.attention`; it was not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from edge.train.attention import document_numbers

_flex = cast(Callable[..., Tensor], flex_attention)


@dataclass(frozen=True)
class PackedFlex:
    """`edge.train.attention.packed` of dense attention with other means; for passes without a cache."""

    _masks: WeakTensorKeyDictionary = field(
        default_factory=WeakTensorKeyDictionary, repr=False, compare=False
    )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """See `packed` there; q [rows, heads, n, d]."""
        grouped = q.shape[-3] > k.shape[-3]
        if torch.compiler.is_compiling():
            return _flex(q, k, v, block_mask=document_blocks(positions), enable_gqa=grouped)
        found = self._masks.get(positions)
        if found is None:  # the same in all layers of a pass
            found = self._masks[positions] = document_blocks(positions)
        run = _compiled() if q.is_cuda else _flex
        return run(q, k, v, block_mask=found, enable_gqa=grouped)


def document_blocks(positions: Tensor) -> BlockMask:
    """Which tiles of positions int [rows, n] are read, and what is seen inside them."""
    documents, (rows, n) = document_numbers(positions), positions.shape

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (documents[row, query] == documents[row, key])

    return create_block_mask(sees, rows, None, n, n, device=positions.device, _compile=positions.is_cuda)


@cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled
