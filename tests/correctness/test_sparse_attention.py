"""The native block-sparse attention against the written reference in `model.sparse_attention`."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch

from edge.config import SparseConfig
from edge.errors import NativeError
from edge.executors.native import ThreadPool, sparse_constants
from edge.native import library as native
from model.sparse_attention import reference_attention, reference_selection

SPARSE = SparseConfig(init_blocks=1, window_size=128, topk=4, dense_len=-1)
VARIANTS = {
    "plain": SPARSE,
    "exact": replace(SPARSE, exact_lse=True),
    "dense-first": replace(SPARSE, dense_len=620),
    "no-init": replace(SPARSE, init_blocks=0, topk=3),
    "init-only": replace(SPARSE, init_blocks=2, topk=2),
    "one-local": replace(SPARSE, window_size=64, topk=6),
    "wide-kernels": replace(SPARSE, kernel_size=64, kernel_stride=32),
    "one-stride": replace(SPARSE, kernel_size=16, kernel_stride=16),
}
SHAPES = [(8, 1, 64), (4, 2, 64), (16, 1, 128), (3, 3, 64), (6, 2, 80)]  # heads, KV heads, head_dim
TOLERANCES = {"float32": 2e-5, "float16": 1e-4, "int8": 2e-3}  # outputs are about 1


class Operator:
    """edge_sparse_attention over numpy arrays, on its own threads."""

    def __init__(self, threads: int = 2) -> None:
        self.pool = ThreadPool(threads)

    def __call__(self, q, k, v, sparse, kv_type="float32", tree=None, tier="portable"):
        """(out [heads, n, d], one set of blocks per KV head and query) of torch tensors."""
        heads, n, d = q.shape
        attention = native.Attention(
            size=ctypes.sizeof(native.Attention),
            heads=heads,
            kv_heads=k.shape[0],
            head_dim=d,
            kv_type=native.KV_TYPE[kv_type],
            sparse=sparse_constants(sparse),
        )
        queries = np.ascontiguousarray(q.numpy().transpose(1, 0, 2))
        keys, values = (np.ascontiguousarray(x.numpy()) for x in (k, v))
        masks = None if tree is None else tree_bits(tree)
        out = np.full_like(queries, np.nan)
        width = sparse.topk + sparse.local_blocks
        selected = np.full((n, k.shape[0], width), -2, np.int32)
        status = native.library().edge_sparse_attention(
            *(ctypes.byref(self.pool.parallel), tier.encode(), ctypes.byref(attention), k.shape[1], n),
            *(queries.ctypes.data, keys.ctypes.data, values.ctypes.data),
            *(None if masks is None else masks.ctypes.data, out.ctypes.data, selected.ctypes.data),
        )
        native.check(status)
        blocks = [[row[row >= 0].tolist() for row in selected[:, head]] for head in range(k.shape[0])]
        return torch.from_numpy(out.transpose(1, 0, 2).copy()), blocks


def tree_bits(tree):
    return (tree.numpy().astype(np.uint64) << np.arange(tree.shape[-1], dtype=np.uint64)).sum(-1, dtype=np.uint64)


def tree_mask(parents):
    mask = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            mask[row] = mask[parent]
        mask[row, row] = True
    return mask


def random_qkv(shape, n: int, rows: int, seed: int = 0):
    """q [heads, n, d] large enough for pointed scores, k and v [kv heads, rows, d]; float16 values."""
    heads, kv_heads, d = shape
    make = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(heads, n, d, generator=make)
    k, v = (torch.randn(kv_heads, rows, d, generator=make).half().float() for _ in range(2))
    return q, k, v


def assert_same_blocks(found, wanted):
    """wanted: bool [KV heads, n, blocks]; a query without blocks was dense."""
    compared = 0
    for head, queries in enumerate(found):
        for i, blocks in enumerate(queries):
            if blocks:
                assert blocks == wanted[head, i].nonzero().flatten().tolist(), (head, i)
                compared += 1
    return compared


@pytest.fixture(scope="module")
def operator():
    return Operator()


@pytest.mark.parametrize("sparse", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(operator, shape, sparse: SparseConfig):
    """Float32 all the way: the same blocks, the same values."""
    q, k, v = random_qkv(shape, 21, 1031)
    out, blocks = operator(q, k, v, sparse)
    assert assert_same_blocks(blocks, reference_selection(q, k, sparse)) == shape[1] * 21
    torch.testing.assert_close(out, reference_attention(q, k, v, sparse), rtol=2e-5, atol=2e-5)
