"""Scores of blocks in sparse attention, see `kernels/cuda/scores.py`."""

from __future__ import annotations

import math

from edge.config import SparseConfig
from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.operators.pages import CachePools
from edge.executors.cuda.operators.summaries import COARSE, FINE
from edge.executors.cuda.operators.tables import BLOCK, StepTables

CHUNK = 128
"""Windows of a normaliser by one program."""

BLOCKS = 32
"""Blocks that one program scores."""

EXPONENT_LIMIT = 80.0
"""Of `edge.model.attention.sparse`: no score is above exp(80) times the heads of a group."""

LOG2E = math.log2(math.e)


def chunks(blocks: int, sparse: SparseConfig) -> int:
    """Chunks of a normaliser of rows of up to so many blocks: their sums are kept apart."""
    windows = FINE if sparse.exact_lse else COARSE
    return -(-blocks * BLOCK // windows.stride // CHUNK)


def scores(
    device: Device,
    tables: StepTables,
    pools: CachePools,
    sparse: SparseConfig,
    q: Address,
    path_windows: Address,
    parts: Address,
    block_scores: Address,
    *,
    heads: int,
) -> None:
    """The score of every block that a row's selection may choose.

    pools: of one layer. q: float16 [rows, heads, head_dim]. path_windows: as `summaries` has left them.
    parts: scratch, float32 [rows, heads, chunks, 2]. block_scores: float32 [rows, kv_heads, tables.blocks];
    those of dense rows, and of blocks that are read anyway, may not be written.
    """
    shape = pools.shape
    most, groups = chunks(tables.blocks, sparse), (tables.rows, shape.kv_heads)
    scale, exact = shape.head_dim**-0.5 * LOG2E, int(sparse.exact_lse)
    device.launch(
        f"scores.normalisers.d{shape.head_dim}",
        (*groups, most),
        (
            *(q, pools.fine, pools.coarse, path_windows, parts, *tables.of_rows),
            *(heads, shape.kv_heads, scale, sparse.dense_len, exact),
        ),
    )
    device.launch(
        f"scores.d{shape.head_dim}",
        (*groups, -(-tables.blocks // BLOCKS)),
        (
            *(q, pools.fine, path_windows, parts, block_scores, *tables.of_rows),
            *(heads, shape.kv_heads, most, tables.blocks),
            *(scale, sparse.dense_len, exact, sparse.local_blocks),
        ),
    )
