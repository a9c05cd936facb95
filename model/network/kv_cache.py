"""KV caches of the PyTorch network: one that grows, and one of a fixed size whose shapes never change.

Rows are in the order in which tokens came. `Decoder.trunk` gives every layer's new rows to `update` and then
calls `advance` once, so a pass that fails leaves the length as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from edge.config import ModelConfig


class KVCache(Protocol):
    """The keys and values of one sequence, or of a batch of sequences of one length."""

    @property
    def length(self) -> int | Tensor:
        """Rows in use."""

    def columns(self, n: int) -> int:
        """Rows that attention is given while n tokens are appended."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new rows k, v [..., kv_heads, n, head_dim] of a layer; returns all its rows."""

    def advance(self, n: int) -> None:
        """Count the n rows that every layer has stored."""


class GrowingCache:
    """Holds exactly the rows in use; every pass makes longer tensors."""

    def __init__(self, config: ModelConfig) -> None:
        self.length = 0
        self._rows: list[tuple[Tensor, Tensor] | None] = [None] * config.num_hidden_layers

    def columns(self, n: int) -> int:
        """The rows in use and the new ones."""
        return self.length + n

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache.update`."""
        before = self._rows[layer]
        if before is not None:
            # Rows of a pass that failed may lie beyond the length.
            old_k, old_v = (part[..., : self.length, :] for part in before)
            k, v = torch.cat([old_k, k], dim=-2), torch.cat([old_v, v], dim=-2)
        self._rows[layer] = k, v
        return k, v

    def advance(self, n: int) -> None:
        """See `KVCache.advance`."""
        self.length += n

    def truncate(self, n: int) -> None:
        """Drop all rows after the first n."""
        self.keep(n, ())

    def keep(self, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""
        chosen = torch.tensor([*range(n), *rows], dtype=torch.long)
        for layer, parts in enumerate(self._rows):
            if parts is not None:
                k, v = (part.index_select(-2, chosen.to(part.device)) for part in parts)
                self._rows[layer] = k, v
        self.length = n + len(rows)


class StaticCache(nn.Module):
    """Buffers for `capacity` rows, written in place; the length is a tensor, so one graph serves every step.

    batch: leading sizes of the tokens, for example (2,). An index beyond the capacity is an IndexError.
    """

    keys: Tensor
    values: Tensor
    length: Tensor

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        batch: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.capacity = capacity
        shape = (
            config.num_hidden_layers,
            *batch,
            config.num_key_value_heads,
            capacity,
            config.head_dim,
        )
        self.register_buffer("keys", torch.zeros(shape, dtype=dtype), persistent=False)
        self.register_buffer("values", torch.zeros(shape, dtype=dtype), persistent=False)
        self.register_buffer("length", torch.zeros((), dtype=torch.long), persistent=False)

    def columns(self, n: int) -> int:
        """Always the capacity: the mask hides what is not filled."""
        return self.capacity

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache.update`."""
        rows = self.length + torch.arange(k.shape[-2], device=k.device)
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(-2, rows, k)
        values.index_copy_(-2, rows, v)
        return keys, values

    def advance(self, n: int) -> None:
        """See `KVCache.advance`."""
        self.length.add_(n)

    def truncate(self, n: int) -> None:
        """Forget all rows after the first n."""
        self.length.fill_(n)
