"""Attention over packed rows: several documents in a row, and each attends to itself only.

Where documents begin is read from the positions, which are 0 there. What attention computes inside a document
is the decoder's own `Attend`, dense or sparse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from edge.model.attention.mode import SparseAttention
from edge.model.network.decoder import Attend, dense_attention, fused_attention

LONGEST_MASKED = 768
"""Rows of up to so many tokens go through one masked call, longer ones a document at a time: what is faster
on CPUs for 2 to 8 documents a row. GPUs were not measured."""


def packed(attend: Attend) -> Attend:
    """The same attention for a packed batch: every document of every row alone, causally.

    The result is an `Attend`: q [rows, heads, n, d], k and v [rows, kv_heads, n, d], mask bool [n, n] causal,
    positions int [rows, n], or [n] for all rows, 0 where a document begins. Dense attention goes through
    PyTorch's fused kernel, and so do documents of sparse attention of up to `dense_len` tokens, which are
    dense anyhow. With a cache there is one document, and `attend` is asked for it.
    """
    if attend in (dense_attention, fused_attention):
        return PackedAttention(None)
    return PackedAttention(attend, attend.sparse.dense_len if isinstance(attend, SparseAttention) else 0)


@dataclass(frozen=True)
class _Documents:
    """The documents of one pass, which every layer of it asks for.

    rows: the shape of the batch. version: of the positions. mask: None where none is needed.
    """

    rows: torch.Size
    version: int
    lengths: list[int]
    mask: Tensor | None

    @classmethod
    def of(cls, positions: Tensor, rows: torch.Size, version: int = 0) -> _Documents:
        lengths, n = document_lengths(positions.expand(*rows, -1)), positions.shape[-1]
        masked = n <= LONGEST_MASKED and min(lengths) < n
        return cls(rows, version, lengths, document_mask(positions).unsqueeze(-3) if masked else None)


@dataclass(frozen=True)
class PackedAttention:
    """See `packed`. attend: None for dense. dense_length: documents of up to so many tokens are so anyhow."""

    attend: Attend | None
    dense_length: int = 0
    _passes: WeakTensorKeyDictionary = field(
        default_factory=WeakTensorKeyDictionary, repr=False, compare=False
    )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """See `packed`."""
        if k.shape[-2] != q.shape[-2]:
            return (self.attend or fused_attention)(q, k, v, mask, positions)
        if self.attend is None and torch.compiler.is_compiling():
            # Lengths that depend on data would break the graph, the mask doesn't.
            return fused_attention(q, k, v, document_mask(positions).unsqueeze(-3), positions)
        documents = self._documents(positions, q.shape[:-3])
        n, longest = q.shape[-2], max(documents.lengths)
        if self.attend is None or longest <= self.dense_length:
            if min(documents.lengths) == n:
                return _causal(q, k, v)
            if documents.mask is not None:
                return fused_attention(q, k, v, documents.mask, positions)
        # Splits of one tensor, not slices: the gradient of a slice is as large as what it was cut from.
        queries, keys, values = (
            x.transpose(-2, -3).flatten(0, -3).transpose(0, 1).split(documents.lengths, 1) for x in (q, k, v)
        )
        places = positions.expand(*q.shape[:-3], n).flatten().split(documents.lengths)
        alone = map(self._alone, queries, keys, values, repeat(mask), places)
        return torch.cat(list(alone), 1).transpose(0, 1).reshape(q.transpose(-2, -3).shape).transpose(-2, -3)

    def _alone(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """One document: q [heads, n, d], k and v [kv heads, n, d] -> [heads, n, d]."""
        n = q.shape[-2]
        if self.attend is None or n <= self.dense_length:
            return _causal(q, k, v)
        return self.attend(q, k, v, mask[:n, :n], positions)

    def _documents(self, positions: Tensor, rows: torch.Size) -> _Documents:
        if positions.is_inference():  # has no version, so nobody can say that it didn't change
            return _Documents.of(positions, rows)
        found = self._passes.get(positions)
        if found is None or (found.version, found.rows) != (positions._version, rows):
            found = _Documents.of(positions, rows, positions._version)
            self._passes[positions] = found
        return found


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.dim() == 3:  # the fused kernels are for batches, without one PyTorch takes the plain formula
        return _causal(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)).squeeze(0)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def document_mask(positions: Tensor) -> Tensor:
    """Positions int [rows, n] -> bool [rows, n, n]: row i may see column j, of its own document."""
    document = document_numbers(positions)
    same = document.unsqueeze(-1) == document.unsqueeze(-2)
    return same.tril()


def document_numbers(positions: Tensor) -> Tensor:
    """Positions int [..., n] -> the number of each token's document in its row, alike."""
    return _begins(positions).cumsum(-1)


def document_lengths(positions: Tensor) -> list[int]:
    """Lengths of the documents of positions int [rows, n], row after row; they sum up to rows x n."""
    flat = _begins(positions).flatten()
    edges = flat.nonzero().squeeze(-1)
    return edges.diff(append=edges.new_tensor([flat.numel()])).tolist()


def _begins(positions: Tensor) -> Tensor:
    begins = positions == 0
    begins[..., 0] = True  # a row that was cut out of a document goes on with its positions
    return begins
