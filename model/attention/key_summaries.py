"""Semantic kernels of InfLLM-V2: means of key rows, a pure function of the rows, extended as rows arrive.

Keys come after RoPE. K1[j] = mean(K[s j : s j + l]) with the kernel's stride s and size l, K2 the same four
times coarser; only windows whose rows are all there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge.config import SparseConfig


def semantic_kernels(k: Tensor, size: int, stride: int) -> Tensor:
    """Means over the complete windows of key rows: [..., rows, d] -> [..., windows, d], in k's type."""
    if k.shape[-2] < size:
        return k[..., :0, :]
    return k.unfold(-2, size, stride).mean(-1)


@dataclass(frozen=True)
class KeySummaries:
    """K1 `fine` and K2 `coarse` [..., windows, d] of the first `rows` rows of a cache."""

    fine: Tensor
    coarse: Tensor
    rows: int
    sparse: SparseConfig

    @classmethod
    def of(cls, k: Tensor, sparse: SparseConfig) -> KeySummaries:
        """The summaries of all rows of k [..., rows, d]."""
        fine = semantic_kernels(k, sparse.kernel_size, sparse.kernel_stride)
        coarse = semantic_kernels(k, sparse.coarse_size, sparse.coarse_stride)
        return cls(fine, coarse, k.shape[-2], sparse)

    def extend(self, k: Tensor) -> KeySummaries:
        """The summaries of k [..., rows, d], whose first `self.rows` rows are those seen so far.

        Reads only the rows of windows that were not complete before.
        """
        if k.shape[-2] < self.rows:
            raise ValueError(
                f"{k.shape[-2]} rows can't extend summaries of {self.rows}: truncate them first."
            )
        tail = self.fine.shape[-2] * self.sparse.kernel_stride
        fine = semantic_kernels(k[..., tail:, :], self.sparse.kernel_size, self.sparse.kernel_stride)
        tail = self.coarse.shape[-2] * self.sparse.coarse_stride
        coarse = semantic_kernels(k[..., tail:, :], self.sparse.coarse_size, self.sparse.coarse_stride)
        return KeySummaries(
            torch.cat([self.fine, fine], -2), torch.cat([self.coarse, coarse], -2), k.shape[-2], self.sparse
        )

    def truncate(self, rows: int) -> KeySummaries:
        """The summaries after all rows but the first `rows` were dropped from the cache."""
        fine = complete_windows(rows, self.sparse.kernel_size, self.sparse.kernel_stride)
        coarse = complete_windows(rows, self.sparse.coarse_size, self.sparse.coarse_stride)
        return KeySummaries(
            self.fine[..., :fine, :], self.coarse[..., :coarse, :], min(rows, self.rows), self.sparse
        )


def complete_windows(rows: int, size: int, stride: int) -> int:
    """How many windows of `size` at multiples of `stride` end within `rows` rows."""
    return 0 if rows < size else (rows - size) // stride + 1
