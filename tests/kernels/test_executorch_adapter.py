"""The kernel library in a real ExecuTorch: programs of our operators, bit-equal to libedge's own."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge.config import SparseConfig
from edge.executors.adapters import executorch_library
from edge.executors.native import library as native
from edge.executors.native.operators import LayerCache, LayerOperators
from edge.executors.native.shapes import sparse_constants
from edge.model.operators import cache, cache_pages  # noqa: F401  # `cache` defines the operators
from edge.model.operators.linear import PackedShape
from edge.quant.scheme import QuantScheme

exir = pytest.importorskip("executorch.exir")
runtime = pytest.importorskip("executorch.runtime")

ops = torch.ops.edge
HIDDEN, INNER, HEADS, KV_HEADS, DIM, VOCAB, CAPACITY = 84, 33, 4, 2, 32, 40, 600
QUERY, KV = HEADS * DIM, KV_HEADS * DIM
SPARSE = SparseConfig(
    kernel_size=32, kernel_stride=16, init_blocks=1, block_size=64, window_size=64, topk=2, dense_len=100
)
INT4, MINIMUM, INT8 = QuantScheme("int4", 32), QuantScheme("int4", 64, minimum=True), QuantScheme("int8")
MATRICES = {
    "table": (INT4, VOCAB, HIDDEN),
    "q": (INT4, QUERY, HIDDEN),
    "k": (MINIMUM, KV, HIDDEN),
    "v": (INT8, KV, HIDDEN),
    "o": (QuantScheme("ternary", 128), HIDDEN, QUERY),
    "gate": (INT4, INNER, HIDDEN),
    "up": (INT8, INNER, HIDDEN),
    "down": (QuantScheme("f16"), HIDDEN, INNER),
}
EPS, SCALE = 1e-5, 0.4


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class Step(nn.Module):
    """Every operator of a layer, one after the other; their results are all outputs."""

    def __init__(self, data: dict[str, np.ndarray], layer: cache_pages.LayerCache) -> None:
        super().__init__()
        for name, packed in data.items():
            self.register_buffer(name, torch.from_numpy(packed))
        self.register_buffer("norm", torch.from_numpy(floats(HIDDEN, seed=1)))
        self.register_buffer("frequencies", torch.from_numpy(floats(DIM // 2, seed=2)))
        self.register_buffer("cache", layer.empty())
        self.cache_arguments = layer.arguments

    def numbers(self, *names: str) -> list[int]:
        shapes = [PackedShape(scheme.packing, *size) for scheme, *size in map(MATRICES.get, names)]
        return [number for shape in shapes for number in shape.numbers]

    def forward(self, tokens: Tensor, positions: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        return self.step(tokens, positions, start, None)

    def step(
        self, tokens: Tensor, positions: Tensor, start: Tensor, tree: Tensor | None
    ) -> tuple[Tensor, ...]:
        rope = ops.rope_table(positions, self.frequencies, 1.5)
        x = ops.embedding(tokens, self.table, self.numbers("table"), 12.0)
        qkv = ops.rms_norm_linear(
            *(x, self.norm, [self.q, self.k, self.v], self.numbers("q", "k", "v"), EPS, 1.0, 0)
        )
        queries = ops.kv_append(qkv, rope, start, self.cache, tree, *self.cache_arguments)
        y = ops.paged_attention(queries, start, self.cache, tree, *self.cache_arguments)
        x = ops.linear(y, self.o, self.numbers("o"), x, SCALE, 0)
        h = ops.rms_norm_swiglu(x, self.norm, self.gate, self.up, self.numbers("gate", "up"), EPS, 1)
        z = ops.linear(h, self.down, self.numbers("down"), None, 1.0, 0)
        return rope, qkv, queries, y, x, h, z, ops.rms_norm(z, self.norm, EPS, SCALE)


class Keep(Step):
    """Keeps rows after a step; its cache is the step's."""

    def forward(
        self, tokens: Tensor, positions: Tensor, start: Tensor, tree: Tensor, rows: Tensor
    ) -> tuple[Tensor, ...]:
        results = self.step(tokens, positions, start, tree)
        length = ops.kv_keep(rows, start, self.cache, *self.cache_arguments)
        queries = results[2]
        return (
            *results,
            length,
            ops.paged_attention(queries[:1], length, self.cache, None, *self.cache_arguments),
        )


class Reference:
    """The same with libedge's operators."""

    def __init__(self, operators, data: dict[str, np.ndarray], kv_type: str, sparse: SparseConfig | None):
        self.run = LayerOperators(operators.pool.parallel, operators.buffer.scratch)
        self.w = {name: operators.matrix(data[name], *MATRICES[name]) for name in data}
        self.shape = LayerCache(
            kv_type=native.KV_TYPE[kv_type],
            **{"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "capacity": CAPACITY},
            sparse=sparse_constants(sparse),
        )
        self.memory = np.zeros(self.shape.size(), np.uint8)
        self.norm, self.frequencies = floats(HIDDEN, seed=1), floats(DIM // 2, seed=2)
        self.rms_norm = lambda x: operators.rms_norm(x, self.norm, EPS, SCALE, native.cpu_tiers()[0])

    def step(self, tokens, positions, start: int, tree=None) -> list[np.ndarray]:
        run, w = self.run, self.w
        rope = run.rope_table(positions, self.frequencies, 1.5)
        x = run.embedding(w["table"], tokens, 12.0)
        qkv = run.rms_norm_linear(x, self.norm, EPS, 1.0, [w["q"], w["k"], w["v"]], "int8")
        queries = run.kv_append(self.shape, self.memory, qkv, rope, start, tree)
        y = run.paged_attention(self.shape, self.memory, queries, start, tree)
        x = run.linear(y, w["o"], "int8", x, SCALE)
        h = run.rms_norm_swiglu(x, self.norm, EPS, w["gate"], w["up"], "float32")
        z = run.linear(h, w["down"], "int8")
        return [rope, qkv, queries, y, x, h, z, self.rms_norm(z)]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    ctypes.CDLL(str(executorch_library()))


@pytest.fixture
def data(random_matrix) -> dict[str, np.ndarray]:
    return {name: random_matrix(*shape) for name, shape in MATRICES.items()}


def load(module: nn.Module, inputs: tuple[Tensor, ...], shapes: Any, folder: Path) -> Any:
    """(method, what keeps it alive)"""
    from executorch.exir import EdgeCompileConfig, to_edge

    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    lowered = to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False)).to_executorch()
    path = folder / "step.pte"
    path.write_bytes(lowered.buffer)
    loaded = runtime.Runtime.get().load_program(path)
    return loaded.load_method("forward"), loaded


def example(n: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(n, dtype=torch.int64), torch.arange(n), torch.tensor([0])


@pytest.mark.parametrize(
    ("kv_type", "sparse"),
    [("float16", None), ("int8", SPARSE), ("float32", SPARSE), ("int4", SPARSE)],
    ids=str,
)
def test_a_layer(operators, data, tmp_path, kv_type: str, sparse: SparseConfig | None):
    """Pieces of several sizes; the cache is a buffer of the program, changed in place."""
    layer = cache_pages.LayerCache(HEADS, KV_HEADS, DIM, kv_type, CAPACITY, sparse)  # type: ignore[arg-type]
    n = torch.export.Dim("n", min=2, max=256)
    method, _program = load(Step(data, layer), example(9), ({0: n}, {0: n}, None), tmp_path)
    reference, start = Reference(operators, data, kv_type, sparse), 0
    for size in (200, 2, 31, 64):
        tokens = np.random.default_rng(start).integers(0, VOCAB, size)
        positions = np.arange(start, start + size)
        found = method.execute([torch.from_numpy(tokens), torch.from_numpy(positions), torch.tensor([start])])
        wanted = reference.step(tokens, positions, start)
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(mine.numpy(), theirs)
        start += size


def test_one_token(operators, data, tmp_path):
    layer = cache_pages.LayerCache(HEADS, KV_HEADS, DIM, "float16", CAPACITY)
    method, _program = load(Step(data, layer), example(1), None, tmp_path)
    reference = Reference(operators, data, "float16", None)
    for start in range(3):
        found = method.execute([torch.tensor([start]), torch.tensor([start]), torch.tensor([start])])
        for mine, theirs in zip(found, reference.step([start], [start], start), strict=True):
            np.testing.assert_array_equal(mine.numpy(), theirs)


def test_a_tree_and_kept_rows(operators, data, tmp_path):
    layer = cache_pages.LayerCache(HEADS, KV_HEADS, DIM, "float16", CAPACITY, SPARSE)
    masks = np.array([1, 3, 5, 11], np.uint64)
    inputs = (*example(4), torch.from_numpy(masks.view(np.int64)), torch.tensor([1, 3]))
    method, _program = load(Keep(data, layer), inputs, None, tmp_path)
    reference = Reference(operators, data, "float16", SPARSE)
    tokens, positions = np.array([3, 9, 1, 39]), np.array([0, 1, 1, 2])
    found = method.execute([torch.from_numpy(tokens), torch.from_numpy(positions), *inputs[2:]])
    wanted = reference.step(tokens, positions, 0, masks)
    reference.run.kv_keep(reference.shape, reference.memory, [1, 3], 0)
    assert found[-2].tolist() == [2]
    last = reference.run.paged_attention(reference.shape, reference.memory, wanted[2][:1], 2)
    for mine, theirs in zip([*found[:-2], found[-1]], [*wanted, last], strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_wrong_input_fails_the_method(data, tmp_path):
    layer = cache_pages.LayerCache(HEADS, KV_HEADS, DIM, "float16", CAPACITY)
    method, _program = load(Step(data, layer), example(4), None, tmp_path)
    tokens, positions, start = example(4)
    method.execute([tokens, positions, start])
    for bad in (torch.tensor([CAPACITY - 3]), torch.tensor([-1])):
        with pytest.raises(RuntimeError, match="0x12"):
            method.execute([tokens, positions, bad])
    with pytest.raises(RuntimeError, match="0x12"):
        method.execute([tokens + VOCAB, positions, start])
    method.execute([tokens, positions, start])


def test_the_library_is_compiled_once():
    first = executorch_library()
    stamp = first.stat().st_mtime_ns
    assert executorch_library() == first and first.stat().st_mtime_ns == stamp
