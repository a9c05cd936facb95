"""The numbers that describe matrices and caches to the operators (docs/operators.md). Needs no torch."""

from __future__ import annotations

from typing import Literal

from edge.config import SparseConfig
from edge.errors import EdgeError
from edge.quant.layout import MatrixLayout

KvType = Literal["float16", "float32", "int8", "int16", "int4"]
KV_TYPES: tuple[KvType, ...] = ("float16", "float32", "int8", "int16", "int4")
"""Names of the values of `edge_kv_type`."""


def matrix_numbers(layout: MatrixLayout, rows: int, columns: int) -> list[int]:
    """The five numbers of a packed matrix; EdgeError for a layout that the operators can't compute on."""
    kernel = layout.layout.kernel
    if kernel is None:
        raise EdgeError(
            f"The operators can't compute on the layout {layout.id}; choose another quantization."
        )
    return [kernel, layout.group, int(layout.minimum), rows, columns]


def cache_numbers(
    heads: int, kv_heads: int, head_dim: int, kv_type: KvType, capacity: int, sparse: SparseConfig | None
) -> tuple[int, int, int, int, int, list[int]]:
    """heads, kv_heads, head_dim, kv_type, capacity and sparse (empty for dense), as operators take them."""
    numbers = [] if sparse is None else _sparse_numbers(sparse)
    return heads, kv_heads, head_dim, KV_TYPES.index(kv_type), capacity, numbers


def _sparse_numbers(sparse: SparseConfig) -> list[int]:
    return [
        *(sparse.kernel_size, sparse.kernel_stride, sparse.block_size, sparse.init_blocks),
        *(sparse.window_size, sparse.topk, sparse.dense_len, int(sparse.exact_lse)),
    ]
