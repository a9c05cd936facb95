"""Soft prompts: rows behind a sequence that begin with trained embeddings and see a trained prefix.

BiTA, arXiv 2401.12522, section 3.1. `edge.executors.soft` says what they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from edge.config import ModelConfig


class SoftRows(NamedTuple):
    """The soft rows of a pass.

    embeddings: [..., s, hidden], before the embedding's scale. keys, values: of the prefix that they see,
    [layers, kv_heads, prefix, head_dim].
    """

    embeddings: Tensor
    keys: Tensor
    values: Tensor

    def before(self, layer: int, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """k, v [..., kv_heads, m, d] and mask [..., n, m] with the prefix before the rows, which the last s
        rows see.
        """
        n, soft, prefix = mask.shape[-2], self.embeddings.shape[-2], self.keys.shape[-2]
        shows = (torch.arange(n, device=mask.device) >= n - soft).unsqueeze(-1)
        shows = shows.expand(*mask.shape[:-1], prefix)
        joined = []
        for own, rows in ((self.keys, k), (self.values, v)):
            each = own[layer].to(rows.dtype).expand(*rows.shape[:-3], *own.shape[1:])
            joined.append(torch.cat([each, rows], dim=-2))
        return joined[0], joined[1], torch.cat([shows, mask], dim=-1)


class SoftPrompt(nn.Module):
    """What is trained; parameters have the names and shapes of its file."""

    def __init__(self, config: ModelConfig, count: int, prefix: int) -> None:
        """count: embeddings. prefix: rows of keys and values."""
        super().__init__()
        rows = (config.num_hidden_layers, prefix, config.num_key_value_heads, config.head_dim)
        self.mask_embeddings = nn.Parameter(torch.zeros(count, config.hidden_size))
        self.prefix_keys = nn.Parameter(torch.zeros(rows))
        self.prefix_values = nn.Parameter(torch.zeros(rows))

    def rows(self, numbers: Tensor) -> SoftRows:
        """Soft rows with the embeddings of these numbers, int [..., s]."""
        keys, values = self.prefix_keys.transpose(1, 2), self.prefix_values.transpose(1, 2)
        return SoftRows(self.mask_embeddings[numbers], keys, values)
