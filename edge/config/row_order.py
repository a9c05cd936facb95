"""The order of the rows of q and k in other people's files.

Here row i of a head turns with row i + head_dim / 2. Files may have the pairs elsewhere; attention does not
change as long as q and k have the same order, so rows are moved once, when they are read and written.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.config.families import scaled_family
from edge.config.rope import rotary_order
from edge.config.tensors import NetworkTensor

Rows = npt.NDArray[np.intp]


def rows_in_hf(tensor: NetworkTensor, config: ModelConfig) -> Rows | None:
    """Row of a Hugging Face tensor for every row of the network's; None: they have the same order."""
    if config.rope.rotary_dim is None:
        return None
    return _all_heads(tensor, config, rotary_order(config.head_dim, config.rope.rotary_dim))


def rows_in_gguf(tensor: NetworkTensor, config: ModelConfig) -> Rows | None:
    """Row of a GGUF tensor for every row of the network's; None: they have the same order."""
    if scaled_family(config).gguf_pairs:
        neighbours = np.arange(config.head_dim).reshape(-1, 2).T.reshape(-1)
        return _all_heads(tensor, config, neighbours)
    return rows_in_hf(tensor, config)


def inverse(rows: Rows) -> Rows:
    """The network's row for every row of a file."""
    return np.argsort(rows)


def _all_heads(tensor: NetworkTensor, config: ModelConfig, order: Rows) -> Rows | None:
    """The order of a head's rows, for all heads that a tensor has; None for a tensor without heads."""
    if tensor.role.heads is None:
        return None
    heads = 1 if tensor.role.heads == "each" else getattr(config, tensor.role.heads)
    return (np.arange(heads)[:, None] * config.head_dim + order).reshape(-1)
