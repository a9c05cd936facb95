"""Attention over packed rows: several documents in a row, and each attends to itself only.

Where documents begin is read from the positions, which are 0 there. What attention computes inside a document
is the decoder's own `Attend`, dense or sparse.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from edge.model.attention.mode import SparseAttention
from edge.model.network.decoder import Attend, dense_attention, fused_attention

LONGEST_MASKED = 1024
"""Up to this length a row goes through one masked call; longer ones a document at a time."""


def packed(attend: Attend) -> Attend:
    """The same attention for a packed batch: every document of every row alone, causally.

    The result is an `Attend` for passes without a cache: q [rows, heads, n, d], k and v
    [rows, kv_heads, n, d], mask bool [n, n] causal, positions int [rows, n], 0 where a document begins. Dense
    attention goes through PyTorch's fused kernel, and so do documents of sparse attention of up to
    `dense_len` tokens, which are dense anyhow.
    """
    if attend in (dense_attention, fused_attention):
        return PackedAttention(None)
    return PackedAttention(attend, attend.sparse.dense_len if isinstance(attend, SparseAttention) else 0)


@dataclass
class _Layout:
    """The documents of one pass, which every layer of it asks for."""

    positions: weakref.ref[Tensor]
    version: int
    lengths: list[int]
    mask: Tensor | None = None


@dataclass
class PackedAttention:
    """See `packed`. attend: None for dense. dense_length: documents up to here are dense anyhow."""

    attend: Attend | None
    dense_length: int = 0
    _last: _Layout | None = field(default=None, init=False, repr=False, compare=False)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """See `packed`."""
        if torch.compiler.is_compiling() and self.attend is None:
            return fused_attention(q, k, v, document_mask(positions).unsqueeze(-3), positions)
        layout = self._layout(positions)
        n, longest = q.shape[-2], max(layout.lengths)
        if self.attend is None or longest <= self.dense_length:
            if min(layout.lengths) == n:
                return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            if n <= LONGEST_MASKED or q.device.type != "cpu":
                if layout.mask is None:
                    layout.mask = document_mask(positions).unsqueeze(-3)
                return fused_attention(q, k, v, layout.mask, positions)
        # Splits of one tensor, not slices: the gradient of a slice is as large as what it was cut from.
        rows = [x.transpose(-2, -3).flatten(0, -3).split(layout.lengths) for x in (q, k, v)]
        places = positions.flatten().split(layout.lengths)
        seen = [
            self._document(*(x.transpose(0, 1).unsqueeze(0) for x in document), mask, place.unsqueeze(0))
            for *document, place in zip(*rows, places, strict=True)
        ]
        return (
            torch.cat([x.squeeze(0).transpose(0, 1) for x in seen])
            .reshape(q.transpose(-2, -3).shape)
            .transpose(-2, -3)
        )

    def _document(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        n = q.shape[-2]
        if self.attend is None or n <= self.dense_length:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.attend(q, k, v, mask[:n, :n], positions)

    def _layout(self, positions: Tensor) -> _Layout:
        last = self._last
        if last is None or last.positions() is not positions or last.version != positions._version:
            last = _Layout(weakref.ref(positions), positions._version, document_lengths(positions))
            self._last = last
        return last


def document_mask(positions: Tensor) -> Tensor:
    """Positions int [rows, n] -> bool [rows, n, n]: row i may see column j, of its own document."""
    document = _begins(positions).cumsum(-1)
    same = document.unsqueeze(-1) == document.unsqueeze(-2)
    return same.tril()


def document_lengths(positions: Tensor) -> list[int]:
    """Lengths of the documents of positions int [rows, n], row after row; they sum up to rows x n."""
    flat = _begins(positions).flatten()
    edges = flat.nonzero().squeeze(-1)
    return edges.diff(append=edges.new_tensor([flat.numel()])).tolist()


def _begins(positions: Tensor) -> Tensor:
    begins = positions == 0
    begins[..., 0] = True  # a row that was cut out of a document goes on with its positions
    return begins
