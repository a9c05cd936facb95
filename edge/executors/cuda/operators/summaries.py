"""Key summaries of sparse attention, see `kernels/cuda/summaries.py`."""

from __future__ import annotations

from dataclasses import dataclass

from edge.config import SparseConfig
from edge.errors import ConfigError
from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.operators.pages import CachePools
from edge.executors.cuda.operators.tables import BLOCK, TREE, StepTables


@dataclass(frozen=True)
class Windows:
    """Means over `size` keys; one begins at every `stride`-th."""

    size: int
    stride: int


FINE, COARSE = Windows(32, 16), Windows(128, 64)

OWN_FINE = TREE // FINE.stride
OWN = OWN_FINE + TREE // COARSE.stride
"""Windows that can end on a tree's path: first the fine ones."""

MOST_HEADS = 16
"""Query heads of a KV head whose scores are summed."""


def check_sparse(sparse: SparseConfig, group: int) -> None:
    """Raises ConfigError for constants that the kernels are not made for. group: query heads of a KV head."""
    published = (FINE.size, FINE.stride, BLOCK)
    if (sparse.kernel_size, sparse.kernel_stride, sparse.block_size) != published or sparse.use_nope:
        raise ConfigError(
            f"The CUDA kernels take sparse attention with kernel_size {FINE.size}, kernel_stride "
            f"{FINE.stride}, block_size {BLOCK} and keys after RoPE only: run this model on the CPU."
        )
    if group > MOST_HEADS:
        raise ConfigError(
            f"The CUDA kernels take sparse attention with up to {MOST_HEADS} query heads of a KV head, not "
            f"{group}: run this model on the CPU."
        )


def path_windows_bytes(rows: int, kv_heads: int, head_dim: int) -> int:
    """Of the windows that end on trees' paths: float16 [rows, kv_heads, 5, head_dim]."""
    return rows * kv_heads * OWN * head_dim * 2


def summaries(device: Device, tables: StepTables, pools: CachePools, path_windows: Address) -> None:
    """Compute the windows that rows complete, in all layers of the pools, once their keys are there.

    A causal row completes those that end with it, in their page. Rows of a tree get the windows that end on
    their path, in path_windows (see `path_windows_bytes`), of one layer only; 0 if there are no trees.
    """
    shape = pools.shape
    arguments = (pools.keys, pools.key_scales, pools.fine, pools.coarse, path_windows, *tables.of_rows)
    grid = (tables.rows, shape.kv_heads, shape.layers)
    device.launch(f"summaries.{shape.variant}", grid, (*arguments, shape.kv_heads, pools.pages))
