"""RoPE and the writing of keys and values, see `kernels/cuda/rope.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.operators.pages import CachePools
from edge.executors.cuda.operators.tables import StepTables


def angles(
    device: Device,
    tables: StepTables,
    inverse_frequency: Address,
    into: Address,
    *,
    head_dim: int,
    scale: float,
) -> None:
    """Cosines and sines of a pass: into float32 [rows, head_dim], first scale * cos, then scale * sin.

    inverse_frequency: float32 [head_dim / 2], with scale from `edge.config.rope.rope_parameters`; zeros and 1
    for layers that do not rotate.
    """
    arguments = (tables.positions, inverse_frequency, into, scale)
    device.launch(f"rope.angles.d{head_dim}", (tables.rows, 1, 1), arguments)


def rope(
    device: Device,
    tables: StepTables,
    pools: CachePools,
    partial: Address,
    angles: Address,
    q: Address,
    *,
    slices: int,
    heads: int,
) -> None:
    """Rotate queries and keys; queries to q, keys and values into the pages of one layer.

    partial: float32 [slices, rows, (heads + 2 kv_heads) * head_dim], sums that are added in order; queries,
    keys, values. angles: see above. q: float16 [rows, heads, head_dim]. Of dead rows nothing is written.
    """
    shape = pools.shape
    arguments = (partial, angles, q, *pools.rows, tables.sequences, tables.slots, tables.page_table)
    sizes = (tables.max_pages, slices, heads, shape.kv_heads)
    grid = (tables.rows, heads + 2 * shape.kv_heads, 1)
    device.launch(f"rope.{shape.variant}", grid, (*arguments, *sizes))
