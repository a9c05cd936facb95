"""Attention's shapes as libedge takes them, and which of them its kernels are built for."""

from __future__ import annotations

from edge.config import KVType, ModelConfig, SparseConfig
from edge.executors.native import library as native
from edge.executors.native.operators import EXPORTED_KV, LayerCache

_BLOCK_SIZE, _KEY_GROUP, _MOST_GROUP = 64, 16, 64  # of the sparse kernels


def sparse_constants(sparse: SparseConfig | None) -> native.Sparse:
    """The constants as libedge takes them; None is dense attention."""
    if sparse is None:
        return native.Sparse(enabled=0)
    return native.Sparse(
        enabled=1,
        kernel_size=sparse.kernel_size,
        kernel_stride=sparse.kernel_stride,
        block_size=sparse.block_size,
        init_blocks=sparse.init_blocks,
        window_size=sparse.window_size,
        topk=sparse.topk,
        dense_len=sparse.dense_len,
        exact_lse=int(sparse.exact_lse),
    )


def layer_cache(
    config: ModelConfig, capacity: int, sparse: SparseConfig | None, kv_type: KVType = EXPORTED_KV
) -> LayerCache:
    """The cache of one layer, as exported graphs hold it."""
    return LayerCache(
        kv_type=native.KV_TYPE[kv_type],
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        capacity=capacity,
        sparse=sparse_constants(sparse),
    )


def sparse_obstacle(config: ModelConfig) -> str | None:
    """Why the kernels can't run this network's sparse attention; None if they can."""
    sparse = config.sparse or SparseConfig()
    group = config.num_attention_heads // config.num_key_value_heads
    if sparse.block_size != _BLOCK_SIZE:
        return f"the native kernels need a block_size of {_BLOCK_SIZE}, not {sparse.block_size}"
    if sparse.kernel_size % _KEY_GROUP or sparse.kernel_stride % _KEY_GROUP:
        return f"the native kernels need a kernel_size and kernel_stride that are multiples of {_KEY_GROUP}"
    if group > _MOST_GROUP:
        return f"the native kernels take up to {_MOST_GROUP} query heads per KV head, not {group}"
    return None
