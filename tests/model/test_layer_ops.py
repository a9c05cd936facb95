"""The PyTorch references of a packed layer's operators against libedge's: same layouts, same values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import edge.model.operators.cache  # noqa: F401  # defines operators, as does `linear`
from edge.config import SparseConfig
from edge.executors.native import library as native
from edge.executors.native.operators import LayerCache as NativeCache
from edge.executors.native.operators import LayerOperators
from edge.executors.native.pool import ScratchBuffer, ThreadPool
from edge.executors.native.shapes import sparse_constants
from edge.model.operators.cache_pages import KV_TYPES, LayerCache
from edge.model.operators.linear import PackedShape
from edge.quant import packing
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

ops = torch.ops.edge
SCHEMES = [
    *(QuantScheme("f16"), QuantScheme("int8"), QuantScheme("int8", 96), QuantScheme("int4", 32)),
    *(QuantScheme("int4", 256, minimum=True), QuantScheme("ternary", 128), QuantScheme("ternary")),
]
SPARSE = SparseConfig(
    kernel_size=32, kernel_stride=16, init_blocks=1, block_size=64, window_size=128, topk=2, dense_len=150
)
# The largest error, of the root mean square of a result; docs/operators.md states the same figures. Sums run
# in another order; a half, or a value on the edge between two codes, may be rounded the other way. Attention
# over integers: the kernels' queries and weights have 16 bits.
TOLERANCES = {
    "products": 2e-5,
    "products, int8 activations": 5e-2,
    "products, int16 activations": 2e-4,
    "rope_table, absolute": 3e-7,
    "queries": 2e-5,
    "rows": 2e-3,
    "rows, int8": 2e-2,
    "rows, int4": 1e-1,
    "attention": 1e-4,
    "attention, integer KV": 3e-3,
}


@pytest.fixture(scope="module")
def run() -> LayerOperators:
    pool, buffer = ThreadPool(2), ScratchBuffer()
    operators = LayerOperators(pool.parallel, buffer.scratch)
    operators.kept = pool, buffer  # type: ignore[attr-defined]
    return operators


def packed(scheme: QuantScheme, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, native.Matrix]:
    """A random matrix for PyTorch and for libedge, of the same memory."""
    weights = np.random.default_rng(seed).standard_normal((rows, columns), np.float32) / columns**0.5
    data = torch.from_numpy(packing.pack(weights if scheme.is_float else quantize(weights, scheme), scheme))
    kind, group, minimum, *_ = PackedShape(scheme.packing, rows, columns).numbers
    size = {"data": data.data_ptr(), "bytes": data.numel()}
    return data, native.Matrix(kind=kind, group=group, minimum=minimum, rows=rows, columns=columns, **size)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, wanted: np.ndarray, kind: str) -> None:
    assert found.shape == wanted.shape and found.dtype == torch.float32
    unit = 1.0 if kind.endswith("absolute") else np.sqrt((wanted**2).mean())
    error = np.abs(found.numpy() - wanted).max() / unit
    assert error <= TOLERANCES[kind], f"off by {error:.1e}"


@pytest.mark.parametrize("activations", native.ACTIVATIONS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("n, columns", [(1, 96), (13, 100), (3, 31)])
def test_products(run, scheme: QuantScheme, activations: str, n: int, columns: int):
    mode, x, norm = native.ACTIVATIONS[activations], random(n, columns), random(columns, seed=1)
    exact = activations == "float32" or scheme.is_float
    close = "products" if exact else f"products, {activations} activations"
    weights, matrices = zip(*(packed(scheme, rows, columns, rows) for rows in (19, 32)), strict=True)
    numbers = [number for rows in (19, 32) for number in PackedShape(scheme.packing, rows, columns).numbers]
    found = ops.rms_norm_linear(x, norm, weights, numbers, 1e-5, 0.7, mode)
    assert_close(found, run.rms_norm_linear(x.numpy(), norm.numpy(), 1e-5, 0.7, matrices, activations), close)
    found = ops.linear(x, weights[0], numbers[:5], None, 1.0, mode)
    assert_close(found, run.linear(x.numpy(), matrices[0], activations), close)
    found = ops.rms_norm(x, norm, 1e-5, 0.7)
    assert_close(found, run.rms_norm(x.numpy(), norm.numpy(), 1e-5, 0.7), "products")
    base = random(n, 19, seed=2)
    found = ops.linear(x, weights[0], numbers[:5], base, 0.3, mode)
    assert_close(found, run.linear(x.numpy(), matrices[0], activations, base.numpy(), 0.3), close)
    weights, matrices = zip(*(packed(scheme, 21, columns, seed) for seed in (5, 6)), strict=True)
    found = ops.rms_norm_swiglu(
        *(x, norm, *weights, 2 * PackedShape(scheme.packing, 21, columns).numbers, 1e-5, mode)
    )
    assert_close(found, run.rms_norm_swiglu(x.numpy(), norm.numpy(), 1e-5, *matrices, activations), close)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_embedding(run, scheme: QuantScheme):
    data, matrix = packed(scheme, 40, 100)
    found = ops.embedding(
        torch.tensor([[3, 39, 0]]), data, PackedShape(scheme.packing, 40, 100).numbers, 12.0
    )
    np.testing.assert_array_equal(found[0].numpy(), run.embedding(matrix, [3, 39, 0], 12.0))


def test_rope_table(run):
    frequencies = random(16).abs()
    found = ops.rope_table(torch.tensor([0, 5, 3000]), frequencies, 1.25)
    wanted = run.rope_table([0, 5, 3000], frequencies.numpy(), 1.25)
    assert_close(found, wanted, "rope_table, absolute")


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("heads, kv_heads, dim", [(6, 2, 32), (3, 3, 16)])
def test_cache(run, kv_type, sparse: SparseConfig | None, heads: int, kv_heads: int, dim: int):
    """Rows and summaries have the same places and values; attention and kept paths agree."""
    layer = LayerCache(heads, kv_heads, dim, kv_type, 520, sparse)
    mine = NativeCache(
        *(native.KV_TYPE[kv_type], heads, kv_heads, dim, 520),
        sparse_constants(sparse),
    )
    cache, memory = layer.empty(), np.zeros(mine.size(), np.uint8)
    assert cache.numel() == memory.size
    frequencies, start = random(dim // 2).abs(), 0
    masks = np.array([1, 3, 5, 11, 21], np.uint64)
    for n, tree in ((70, None), (1, None), (260, None), (5, masks), (5, None)):
        qkv = random(n, (heads + 2 * kv_heads) * dim, seed=start + n)
        rope = torch.from_numpy(run.rope_table(range(start, start + n), frequencies.numpy(), 1.0))
        begin, bits = torch.tensor([start]), None if tree is None else torch.from_numpy(tree.view(np.int64))
        queries = ops.kv_append(qkv, rope, begin, cache, bits, *layer.arguments)
        wanted = run.kv_append(mine, memory, qkv.numpy(), rope.numpy(), start, tree)
        assert_close(queries, wanted, "queries")
        for theirs, ours in zip(
            layer.read(torch.from_numpy(memory), start + n), layer.read(cache, start + n), strict=True
        ):
            assert_close(ours, theirs.numpy(), f"rows, {kv_type}" if kv_type in ("int8", "int4") else "rows")
        same = torch.from_numpy(
            memory.copy()
        )  # so that a code that was rounded the other way is no difference
        found = ops.paged_attention(queries, begin, same, bits, *layer.arguments)
        close = "attention, integer KV" if kv_type.startswith("int") else "attention"
        assert_close(found, run.paged_attention(mine, memory, queries.numpy(), start, tree), close)
        start += n if tree is None else 0
    if sparse is not None:
        summaries, theirs = (layer.summaries(x, start) for x in (cache, torch.from_numpy(memory)))
        assert summaries.fine.shape[1] == 20 and summaries.coarse.shape[1] == 4
        assert_close(summaries.fine, theirs.fine.numpy(), "rows")
        assert_close(summaries.coarse, theirs.coarse.numpy(), "rows")
    same = torch.from_numpy(memory.copy())
    length = ops.kv_keep(torch.tensor([332, 334]), torch.tensor([331]), same, *layer.arguments)
    run.kv_keep(mine, memory, [332, 334], 331)
    assert length.tolist() == [333]
    differing = (same.numpy() != memory).mean()  # halves of summaries
    assert differing < 1e-3


def test_schemas():
    """Fake kernels and mutation are what the references do."""
    check = torch.library.opcheck
    scheme, layer = QuantScheme("int4", 32), LayerCache(4, 2, 16, "float16", 300, SPARSE)
    (data, _), numbers = packed(scheme, 128, 96), PackedShape(scheme.packing, 128, 96).numbers
    x, norm, start = random(2, 3, 96), random(96), torch.tensor([0])
    check(ops.embedding.default, (torch.tensor([[1, 2]]), data, numbers, 2.0))
    check(ops.rope_table.default, (torch.tensor([[1, 2]]), random(8), 2.0))
    check(ops.rms_norm.default, (x, norm, 1e-5, 2.0))
    check(ops.rms_norm_linear.default, (x, norm, [data, data], 2 * numbers, 1e-5, 1.0, 0))
    check(ops.rms_norm_swiglu.default, (x, norm, data, data, 2 * numbers, 1e-5, 0))
    check(ops.linear.default, (x, data, numbers, random(2, 3, 128), 0.5, 1))
    rope = ops.rope_table(torch.arange(200), random(8), 1.0)
    cache = layer.empty()
    check(ops.kv_append.default, (random(200, 128), rope, start, cache, None, *layer.arguments))
    check(ops.paged_attention.default, (random(200, 64), start, cache, None, *layer.arguments))
    check(ops.kv_keep.default, (torch.tensor([5]), start + 3, cache, *layer.arguments))


def test_out_variants():
    """They write what the operator returns."""
    layer, start = LayerCache(4, 2, 16, "float16", 300), torch.tensor([0])
    qkv, rope = random(3, 128), random(3, 2, 8)
    first, second, out = layer.empty(), layer.empty(), torch.empty(0)
    wanted = ops.kv_append(qkv, rope, start, first, None, *layer.arguments)
    ops.kv_append.out(qkv, rope, start, second, None, *layer.arguments, out=out)
    assert torch.equal(out, wanted) and torch.equal(first, second)


def test_bad_input():
    scheme, layer = QuantScheme("int4", 32), LayerCache(4, 2, 16, "float16", 300)
    (data, _), numbers = packed(scheme, 24, 96), PackedShape(scheme.packing, 24, 96).numbers
    with pytest.raises(ValueError, match="96 columns, not 95"):
        ops.linear(random(2, 95), data, numbers, None, 1.0, 0)
    with pytest.raises(ValueError, match="5 numbers, not 4"):
        ops.linear(random(2, 96), data, numbers[:4], None, 1.0, 0)
    with pytest.raises(ValueError, match="needs a residual"):
        ops.linear(random(2, 96), data, numbers, None, 2.0, 0)
    with pytest.raises(ValueError, match="2 weights"):
        ops.rms_norm_linear(random(2, 96), random(96), [data, data], numbers, 1e-5, 1.0, 0)
    queries, cache, start = random(2, 64), layer.empty(), torch.tensor([0])
    with pytest.raises(ValueError, match="2 more tokens after 299"):
        ops.paged_attention(queries, torch.tensor([299]), cache, None, *layer.arguments)
    with pytest.raises(ValueError, match="must be uint8"):
        ops.paged_attention(queries, start, cache[1:], None, *layer.arguments)
    with pytest.raises(ValueError, match="see itself"):
        ops.paged_attention(queries, start, cache, torch.tensor([1, 1]), *layer.arguments)
    with pytest.raises(ValueError, match="must ascend from 0"):
        ops.kv_keep(torch.tensor([3, 3]), start, cache, *layer.arguments)
