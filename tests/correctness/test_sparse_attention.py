"""The native block-sparse attention against the written reference in `edge.model.attention.sparse`."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch

from edge.config import SparseConfig
from edge.errors import NativeError
from edge.executors.native import library as native
from edge.executors.native.library import cpu_tiers
from edge.executors.native.pool import ThreadPool
from edge.executors.native.shapes import sparse_constants
from edge.model.attention.blocks import attend, query_positions, select_blocks
from edge.model.attention.sparse import reference_attention, reference_selection
from edge.model.operators import int4_rows

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
SHAPES = [(4, 2, 64), (16, 1, 128), (3, 3, 64), (6, 2, 80)]  # heads, KV heads, head_dim
CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # float32 against float32, outputs of about 1
# Largest difference from attention over the stored rows, whose values are about 1; beside integers queries
# and softmax weights are rounded to 16 bits, and a few codes of 8 bits the other way.
TOLERANCES = {"float32": 2e-5, "float16": 2e-5, "int8": 1e-2, "int16": 1e-3, "int4": 1e-2}


class Operator:
    """edge_attention over numpy arrays, on its own threads."""

    def __init__(self, threads: int = 2) -> None:
        self.pool = ThreadPool(threads)

    def __call__(self, q, k, v, sparse, kv_type="float32", tree=None, tier=None):
        """(out [heads, n, d], one set of blocks per KV head and query) of torch tensors."""
        heads, n, d = q.shape
        rows = k.shape[1]
        queries, keys, values = (np.ascontiguousarray(x.numpy().transpose(1, 0, 2)) for x in (q, k, v))
        masks = None if tree is None else tree_bits(tree)
        out = np.full_like(queries, np.nan)
        selected = np.full((n, k.shape[0], sparse.topk + sparse.local_blocks), -2, np.int32)
        status = native.library().edge_attention(
            *(ctypes.byref(self.pool.parallel), tier and tier.encode()),
            *(native.KV_TYPE[kv_type], heads, k.shape[0], d, ctypes.byref(sparse_constants(sparse))),
            *(queries.ctypes.data, keys.ctypes.data, values.ctypes.data, n, rows - n),
            *(None if masks is None else masks.ctypes.data, out.ctypes.data, selected.ctypes.data),
        )
        native.check(status)
        blocks = [[row[row >= 0].tolist() for row in selected[:, head]] for head in range(k.shape[0])]
        return torch.from_numpy(out.transpose(1, 0, 2).copy()), blocks


def tree_bits(tree):
    return (tree.numpy().astype(np.uint64) << np.arange(tree.shape[-1], dtype=np.uint64)).sum(
        -1, dtype=np.uint64
    )


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


def as_mask(blocks, rows: int):
    """Selections as bool [KV heads, n, blocks]."""
    mask = torch.zeros(len(blocks), len(blocks[0]), -(-rows // SPARSE.block_size), dtype=torch.bool)
    for head, queries in enumerate(blocks):
        for i, selected in enumerate(queries):
            mask[head, i, selected] = True
    return mask


def assert_equals_reference(operator, q, k, v, sparse, tree=None, **options):
    """Float32 all the way: the same blocks, the same values. A dense query has no blocks."""
    out, blocks = operator(q, k, v, sparse, tree=tree, **options)
    wanted = select_blocks(q, k, sparse, tree)
    is_sparse = query_positions(q, k, tree) >= sparse.dense_len
    assert is_sparse.any()
    assert torch.equal(as_mask(blocks, k.shape[1]), wanted & is_sparse.unsqueeze(-1))
    torch.testing.assert_close(out, attend(q, k, v, wanted, sparse.block_size, tree), **CLOSE)


@pytest.fixture(scope="module")
def operator():
    return Operator()


@pytest.mark.parametrize("sparse", VARIANTS.values(), ids=VARIANTS)
def test_equals_the_reference(operator, sparse: SparseConfig):
    assert_equals_reference(operator, *random_qkv((8, 1, 64), 21, 1031), sparse)


@pytest.mark.parametrize("sparse", ["plain", "exact"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_group_and_head_dim(operator, shape, sparse: str):
    assert_equals_reference(operator, *random_qkv(shape, 21, 1031), VARIANTS[sparse])


def test_equals_the_written_reference(operator):
    """The same against the specification itself, one query at a time."""
    q, k, v = random_qkv((8, 2, 64), 3, 700)
    out, blocks = operator(q, k, v, SPARSE)
    assert torch.equal(as_mask(blocks, 700), reference_selection(q, k, SPARSE))
    torch.testing.assert_close(out, reference_attention(q, k, v, SPARSE), **CLOSE)


@pytest.mark.parametrize("tier", cpu_tiers())
@pytest.mark.parametrize("sparse", ["plain", "exact", "no-init", "wide-kernels"])
def test_from_the_first_token(operator, sparse: str, tier: str):
    """Every length from 1 on: no window, no coarse window, a ragged last block; several tiles of queries."""
    variant = replace(VARIANTS[sparse], topk=max(1, VARIANTS[sparse].init_blocks + 1), window_size=64)
    assert_equals_reference(operator, *random_qkv((4, 2, 64), 517, 517), variant, tier=tier)


def test_many_windows(operator):
    """Several chunks of windows, coarse and fine, and the published constants."""
    sparse = SparseConfig(dense_len=-1)
    assert_equals_reference(operator, *random_qkv((8, 1, 64), 2, 30_011), sparse)
    assert_equals_reference(operator, *random_qkv((8, 1, 64), 2, 30_011), replace(sparse, exact_lse=True))


def test_ties_go_to_the_lower_block(operator):
    q, k, v = random_qkv((4, 1, 64), 1, 1000)
    _, blocks = operator(q, torch.ones_like(k), v, SPARSE)
    assert blocks == [[[0, 1, 2, 3, 14, 15]]]


@pytest.mark.parametrize("tier", cpu_tiers())
def test_weights_of_almost_nothing_still_order_the_blocks(operator, tier: str):
    """One window, in the first block, is e^65 above all others; of those the best ones are meant as ever."""
    q, k, v = random_qkv((4, 1, 64), 1, 1000)
    q[:] = q[:1].clone()
    k[:, :48] = q[0] * (65 * 8 / q[0].square().sum())
    _, blocks = operator(q, k, v, VARIANTS["exact"], tier=tier)
    assert torch.equal(as_mask(blocks, 1000), select_blocks(q, k, VARIANTS["exact"]))
    assert blocks[0][0] != [0, 1, 2, 3, 14, 15]


@pytest.mark.parametrize("tier", cpu_tiers())
def test_scores_far_above_the_normaliser_do_not_overflow(operator, tier: str):
    """One fine window towers over the coarse ones around it."""
    q, k, v = random_qkv((4, 1, 64), 1, 1000)
    q[:] = 30.0
    k[:, 320:352] = 3.0
    k[:, 280:312] = k[:, 360:392] = -3.0
    out, blocks = operator(q, k, v, SPARSE, tier=tier)
    assert torch.isfinite(out).all() and 5 in blocks[0][0]
    assert torch.equal(as_mask(blocks, 1000), select_blocks(q, k, SPARSE))


@pytest.mark.parametrize("sparse", ["plain", "exact", "dense-first", "one-local", "wide-kernels"])
@pytest.mark.parametrize("before", [0, 100, 640, 1000])
def test_trees(operator, before: int, sparse: str):
    """Windows and blocks that end inside the tree are those of each path."""
    generator = np.random.default_rng(before)
    parents = [-1, *(int(generator.integers(max(0, row - 4), row)) for row in range(1, 64))]
    q, k, v = random_qkv((8, 2, 64), 64, before + 64)
    variant = replace(VARIANTS[sparse], dense_len=min(VARIANTS[sparse].dense_len, before + 9))
    assert_equals_reference(operator, q, k, v, variant, tree=tree_mask(parents))


def test_a_chain_is_no_tree(operator):
    """Bit for bit: windows of a path are computed as those of the cache are."""
    q, k, v = random_qkv((8, 2, 64), 40, 1000)
    chain = tree_mask(list(range(-1, 39)))
    for kv_type in ("float32", "float16", "int8", "int16", "int4"):
        plain, blocks = operator(q, k, v, SPARSE, kv_type)
        tree, tree_blocks = operator(q, k, v, SPARSE, kv_type, tree=chain)
        assert torch.equal(tree, plain) and tree_blocks == blocks


@pytest.mark.parametrize("tier", cpu_tiers())
@pytest.mark.parametrize("kv_type", ["float32", "float16", "int8", "int16", "int4"])
def test_number_types(operator, kv_type: str, tier: str):
    """Of the stored rows: nearly the same blocks, and exact attention over those that were selected."""
    q, k, v = random_qkv((8, 2, 64), 40, 1031)
    out, blocks = operator(q, k, v, SPARSE, kv_type, tier=tier)
    if kv_type == "int8":
        k, v = (stored_as_int8(x) for x in (k, v))
    if kv_type == "int4":
        k, v = (int4_rows.values_of(*int4_rows.quantize(x)) for x in (k, v))
    mask = as_mask(blocks, 1031)
    assert (mask == select_blocks(q, k, SPARSE)).float().mean() > 0.995
    wanted = attend(q, k, v, mask, SPARSE.block_size)
    torch.testing.assert_close(out, wanted, rtol=0, atol=TOLERANCES[kv_type])


def stored_as_int8(x):
    peak = x.abs().amax(-1, keepdim=True)
    return (x * (127 / peak)).round() * (peak / 127)


@pytest.mark.parametrize("threads", [1, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 21])
def test_threads_do_not_matter(operator, n: int, threads: int):
    """A few queries are spread over the threads in pieces, more of them as a whole."""
    q, k, v = random_qkv((8, 1, 64), n, 9000)
    for sparse in (SPARSE, VARIANTS["exact"]):
        wanted, blocks = operator(q, k, v, sparse, "float16")
        found, same = Operator(threads)(q, k, v, sparse, "float16")
        assert torch.equal(found, wanted) and same == blocks


@pytest.mark.parametrize("n", [1, 4, 5, 64])
def test_batches_do_not_matter(operator, n: int):
    """The last query alone gives what it gives beside others."""
    q, k, v = random_qkv((8, 2, 64), 64, 1000)
    wanted, blocks = operator(q, k, v, SPARSE, "float16")
    found, same = operator(q[:, -n:], k, v, SPARSE, "float16")
    assert torch.equal(found, wanted[:, -n:]) and same == [head[-n:] for head in blocks]


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"block_size": 128, "window_size": 256}, "block_size is 128"),
        ({"kernel_size": 8, "kernel_stride": 8}, "kernel_size is 8"),
        ({"kernel_size": 32, "kernel_stride": 8}, "kernel_stride is 8"),
    ],
)
def test_what_is_not_built_is_refused(operator, changes, named: str):
    with pytest.raises(NativeError, match=named):
        operator(*random_qkv((4, 1, 64), 1, 100), replace(SPARSE, **changes))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"kernel_size": 48, "kernel_stride": 32}, "multiples of kernel_stride"),
        ({"init_blocks": SPARSE.topk + 1}, "init_blocks at most topk"),
        ({"window_size": 96}, "window_size is 96; it must be a multiple of 64"),
        ({"topk": 0}, "topk is 0"),
        ({"dense_len": -2}, "dense_len is -2"),
    ],
)
def test_constants_that_contradict_each_other_are_refused(operator, monkeypatch, changes, named: str):
    """Python's own check lies before; other callers have none."""
    monkeypatch.setattr(SparseConfig, "__post_init__", lambda self: None, raising=False)
    with pytest.raises(NativeError, match=named):
        operator(*random_qkv((4, 1, 64), 1, 100), replace(SPARSE, **changes))


def test_as_many_query_heads_as_are_built(operator):
    operator(*random_qkv((64, 1, 16), 1, 100), SPARSE)
    with pytest.raises(NativeError, match="up to 64 query heads"):
        operator(*random_qkv((65, 1, 16), 1, 100), SPARSE)
