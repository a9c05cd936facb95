"""The custom-operator library in a real ONNX Runtime: one node a model, bit-equal to libedge's operators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.executors.adapters import onnxruntime_library
from edge.executors.native import library as native
from edge.executors.native.operators import LayerCache, LayerOperators
from edge.executors.native.shapes import sparse_constants
from edge.quant.scheme import QuantScheme

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
InvalidArgument = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument

HEADS, KV_HEADS, DIM, CAPACITY = 4, 2, 32, 600
SPARSE = SparseConfig(
    kernel_size=32, kernel_stride=16, init_blocks=1, block_size=64, window_size=64, topk=2, dense_len=100
)
SPARSE_NUMBERS = [32, 16, 64, 1, 64, 2, 100, 0]
EXACT = replace(SPARSE, exact_lse=True)
TYPES = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int64): 7}
FLOAT = np.dtype(np.float32)


@pytest.fixture
def layer(operators) -> LayerOperators:
    return LayerOperators(operators.pool.parallel, operators.buffer.scratch)


def session(
    name: str,
    inputs: dict[str, np.ndarray],
    outputs: list[np.dtype],
    threads: int,
    attributes: dict[str, Any],
) -> Any:
    helper = onnx.helper
    node = helper.make_node(
        name, list(inputs), [f"out{i}" for i in range(len(outputs))], domain="edge", **attributes
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(k, TYPES[v.dtype], [None] * v.ndim) for k, v in inputs.items()],
        [helper.make_tensor_value_info(f"out{i}", TYPES[t], None) for i, t in enumerate(outputs)],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("edge", 1)], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(onnxruntime_library()))
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run(
    name: str,
    inputs: dict[str, np.ndarray],
    outputs: tuple[np.dtype, ...] = (FLOAT,),
    threads: int = 2,
    **attributes: Any,
) -> list[np.ndarray]:
    found: list[np.ndarray] = session(name, inputs, list(outputs), threads, attributes).run(None, inputs)
    return found


def numbers(scheme: QuantScheme, rows: int, columns: int) -> list[int]:
    return [scheme.packing.layout.kernel, scheme.group, int(scheme.minimum), rows, columns]


def rows_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


INT4, INT8, MINIMUM = QuantScheme("int4", 32), QuantScheme("int8"), QuantScheme("int4", 64, minimum=True)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 9])
@pytest.mark.parametrize("columns", [96, 84])
def test_rows(layer, operators, random_matrix, threads: int, n: int, columns: int):
    """Norms, products and SwiGLU; leading dimensions are kept."""
    x, norm = rows_of(1, n, columns), rows_of(columns, seed=1)
    shapes = [(INT4, 40), (INT8, 17), (MINIMUM, 5)]
    data = [random_matrix(scheme, rows, columns) for scheme, rows in shapes]
    matrices = [
        operators.matrix(d, scheme, rows, columns) for d, (scheme, rows) in zip(data, shapes, strict=True)
    ]
    described = [number for scheme, rows in shapes for number in numbers(scheme, rows, columns)]
    for mode, activations in native.ACTIVATIONS.items():
        inputs = {"x": x, "norm": norm, **{f"w{i}": d for i, d in enumerate(data)}}
        (found,) = run(
            *("rms_norm_linear", inputs),
            **{
                "threads": threads,
                "matrices": described,
                "eps": 1e-5,
                "scale": 0.5,
                "activations": activations,
            },
        )
        assert found.shape == (1, n, 62)
        np.testing.assert_array_equal(found[0], layer.rms_norm_linear(x[0], norm, 1e-5, 0.5, matrices, mode))
        gate, up = random_matrix(INT4, 33, columns), random_matrix(INT8, 33, columns)
        (found,) = run(
            *("rms_norm_swiglu", {"x": x, "norm": norm, "gate": gate, "up": up}),
            **{"threads": threads, "eps": 1e-5, "activations": activations},
            matrices=[*numbers(INT4, 33, columns), *numbers(INT8, 33, columns)],
        )
        pair = operators.matrix(gate, INT4, 33, columns), operators.matrix(up, INT8, 33, columns)
        np.testing.assert_array_equal(found[0], layer.rms_norm_swiglu(x[0], norm, 1e-5, *pair, mode))
        residual = rows_of(1, n, 40, seed=2)
        for inputs, base, scale in (
            ({"x": x, "w": data[0]}, None, 1.0),
            ({"x": x, "w": data[0], "residual": residual}, residual[0], 0.3),
        ):
            (found,) = run(
                *("linear", inputs),
                **{"threads": threads, "scale": scale, "activations": activations},
                matrix=numbers(INT4, 40, columns),
            )
            np.testing.assert_array_equal(found[0], layer.linear(x[0], matrices[0], mode, base, scale))


def test_embedding_rope_and_norm(layer, operators, random_matrix):
    data, tokens = random_matrix(INT4, 40, 84), np.array([[3, 39, 0]], np.int64)
    (found,) = run("embedding", {"t": tokens, "w": data}, matrix=numbers(INT4, 40, 84), scale=12.0)
    matrix = operators.matrix(data, INT4, 40, 84)
    np.testing.assert_array_equal(found[0], layer.embedding(matrix, tokens[0], 12.0))
    none = {"t": np.empty((2, 0), np.int64), "w": data}
    (found,) = run("embedding", none, matrix=numbers(INT4, 40, 84), scale=12.0)
    assert found.shape == (2, 0, 84)
    positions, frequencies = np.array([0, 7, 100000], np.int64), rows_of(16)
    (found,) = run("rope_table", {"p": positions, "f": frequencies}, scale=1.25)
    np.testing.assert_array_equal(found, layer.rope_table(positions, frequencies, 1.25))
    x, norm = rows_of(5, 84), rows_of(84, seed=1)
    (found,) = run("rms_norm", {"x": x, "norm": norm}, eps=1e-6, scale=2.0)
    np.testing.assert_array_equal(found, operators.rms_norm(x, norm, 1e-6, 2.0, native.cpu_tiers()[0]))


class Cache:
    """A cache of ONNX Runtime beside the same one of libedge."""

    def __init__(self, layer: LayerOperators, kv_type: str, sparse: SparseConfig | None) -> None:
        self.layer = layer
        self.shape = LayerCache(
            kv_type=native.KV_TYPE[kv_type],
            **{"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "capacity": CAPACITY},
            sparse=sparse_constants(sparse),
        )
        self.attributes = {
            **{"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "capacity": CAPACITY},
            "kv_type": native.KV_TYPE[kv_type],
            **({} if sparse is None else {"sparse": [*SPARSE_NUMBERS[:7], int(sparse.exact_lse)]}),
        }
        self.own = np.zeros(self.shape.size(), np.uint8)
        self.held = onnxruntime.OrtValue.ortvalue_from_numpy(self.own)

    def append(self, qkv: np.ndarray, rope: np.ndarray, start: int, tree: np.ndarray | None = None):
        inputs = {"qkv": qkv, "rope": rope, "start": np.array([start]), "cache": self.own}
        if tree is not None:
            inputs["tree"] = tree.view(np.int64)
        runner = session("kv_append", inputs, [FLOAT, np.dtype(np.uint8)], 2, self.attributes)
        binding = runner.io_binding()
        for name, value in inputs.items():
            if name != "cache":
                binding.bind_cpu_input(name, value)
        binding.bind_ortvalue_input("cache", self.held)
        binding.bind_output("out0")
        binding.bind_ortvalue_output("out1", self.held)
        runner.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]


@pytest.mark.parametrize("sparse", [None, SPARSE, EXACT], ids=["dense", "sparse", "exact"])
@pytest.mark.parametrize("kv_type", ["float16", "float32", "int8", "int4"])
def test_cache(layer, kv_type: str, sparse: SparseConfig | None):
    """Pieces of a sequence and a tree go into a cache that is bound as input and output, in place."""
    cache = Cache(layer, kv_type, sparse)
    frequencies, start = rows_of(DIM // 2), 0
    masks = np.array([1, 3, 5, 11], np.uint64)
    for n, tree in ((200, None), (1, None), (30, None), (4, masks), (4, None)):
        qkv = rows_of(n, (HEADS + 2 * KV_HEADS) * DIM, seed=start)
        rope = layer.rope_table(range(start, start + n), frequencies, 1.0)
        wanted = layer.kv_append(cache.shape, cache.own, qkv, rope, start, tree)
        queries = cache.append(qkv, rope, start, tree)
        np.testing.assert_array_equal(queries, wanted)
        np.testing.assert_array_equal(cache.held.numpy(), cache.own)
        inputs = {"q": queries, "start": np.array([start]), "cache": cache.own}
        if tree is not None or n == 1:  # a tree without masks is causal order
            inputs["tree"] = (np.empty(0, np.uint64) if tree is None else tree).view(np.int64)
        (found,) = run("paged_attention", inputs, **cache.attributes)
        np.testing.assert_array_equal(
            found, layer.paged_attention(cache.shape, cache.own, queries, start, tree)
        )
        start += 0 if tree is not None else n
    inputs = {"rows": np.array([233, 235]), "start": np.array([231]), "cache": cache.own.copy()}
    length, kept = run("kv_keep", inputs, (np.dtype(np.int64), np.dtype(np.uint8)), **cache.attributes)
    layer.kv_keep(cache.shape, cache.own, [233, 235], 231)
    assert length.tolist() == [233]
    np.testing.assert_array_equal(kept, cache.own)


def test_without_binding_the_input_stays(layer):
    cache = Cache(layer, "float16", None)
    qkv, rope = rows_of(3, (HEADS + 2 * KV_HEADS) * DIM), rows_of(3, 2, DIM // 2)
    inputs = {"qkv": qkv, "rope": rope, "start": np.array([0]), "cache": cache.own}
    _, changed = run("kv_append", inputs, (FLOAT, np.dtype(np.uint8)), **cache.attributes)
    assert not cache.own.any()
    layer.kv_append(cache.shape, cache.own, qkv, rope, 0)
    np.testing.assert_array_equal(changed, cache.own)


def test_wrong_input_is_refused(layer, random_matrix):
    """With one sentence that names the operator, and the session goes on."""
    data, x, norm = random_matrix(INT4, 40, 96), rows_of(2, 96), rows_of(96)
    attributes = {"eps": 1e-5, "scale": 1.0, "activations": 0}
    good = {"matrices": numbers(INT4, 40, 96), **attributes}

    def refused(sentence: str, name: str, inputs: dict[str, np.ndarray], *outputs: np.dtype, **changed: Any):
        with pytest.raises(InvalidArgument, match=rf"edge\.{name}: {sentence}"):
            run(name, inputs, outputs or (FLOAT,), **changed)

    refused("x has rows of 95", "rms_norm_linear", {"x": x[:, :95].copy(), "n": norm, "w": data}, **good)
    refused("norm has 95", "rms_norm_linear", {"x": x, "n": norm[:95], "w": data}, **good)
    refused("x has rows of 192", "rms_norm_linear", {"x": rows_of(2, 192), "n": norm, "w": data}, **good)
    refused("norm has 97", "rms_norm_linear", {"x": x, "n": rows_of(97), "w": data}, **good)
    pair = {**attributes, "matrices": 2 * numbers(INT4, 40, 96)}
    del pair["scale"]
    refused("norm has 97", "rms_norm_swiglu", {"x": x, "n": rows_of(97), "g": data, "u": data}, **pair)
    short = {**pair, "matrices": pair["matrices"][:9]}
    refused(
        "Matrix 1 lacks its 5 numbers", "rms_norm_swiglu", {"x": x, "n": norm, "g": data, "u": data}, **short
    )
    refused(
        "edge_rms_norm_linear: a 40 x 96 matrix takes 2624 bytes, got 2560",
        "rms_norm_linear",
        {"x": x, "n": norm, "w": data[:-64]},
        **good,
    )
    refused(*("rms_norm_linear takes", "rms_norm_linear", {"x": x, "n": norm, "w": data, "v": data}), **good)
    refused(
        *("Unknown kind of activations 7", "rms_norm_linear", {"x": x, "n": norm, "w": data}),
        **{**good, "activations": 7},
    )
    for wrapped in (2**32, 2**32 + 1, -(2**32)):  # 0 or 1 in 32 bits
        refused(
            *(f"Unknown kind of activations {wrapped}", "rms_norm_linear", {"x": x, "n": norm, "w": data}),
            **{**good, "activations": wrapped},
        )
    for place, wrapped in ((0, 2**32), (1, 2**32 + 32), (3, 2**62), (4, 2**32 + 96), (4, -96)):
        matrix = numbers(INT4, 40, 96)
        matrix[place] = wrapped
        refused(
            *(f"A matrix can't have the number {wrapped}", "rms_norm_linear", {"x": x, "n": norm, "w": data}),
            **{**good, "matrices": matrix},
        )
    linear = {"matrix": numbers(INT4, 40, 96), "activations": 0}
    refused("residual has 79", "linear", {"x": x, "w": data, "r": rows_of(79)}, scale=1.0, **linear)
    refused("edge_linear_residual: a scale", "linear", {"x": x, "w": data}, scale=2.0, **linear)
    refused(
        *("Token id 40 at place 1", "embedding", {"t": np.array([0, 40]), "w": data}),
        **{"matrix": numbers(INT4, 40, 96), "scale": 1.0},
    )
    cache = Cache(layer, "float16", None)
    qkv, start = rows_of(2, (HEADS + 2 * KV_HEADS) * DIM), np.array([0])
    for rope, sentence in ((rows_of(1, DIM), "rope has 32"), (rows_of(3, DIM), "rope has 96")):
        append = {"qkv": qkv, "rope": rope, "start": start, "cache": cache.own}
        refused(sentence, "kv_append", append, FLOAT, np.dtype(np.uint8), **cache.attributes)
    queries = rows_of(2, HEADS * DIM)
    at = {"q": queries, "start": np.array([0, 1]), "cache": cache.own}
    refused("start has 2", "paged_attention", at, **cache.attributes)
    at = {**at, "start": start}
    for name, sentence in (
        ([2**32, *SPARSE_NUMBERS[1:]], f"Sparse attention can't have the number {2**32}"),
        (SPARSE_NUMBERS[:7], "Sparse attention has 8 numbers or none, not 7"),
        ([*SPARSE_NUMBERS, 0], "Sparse attention has 8 numbers or none, not 9"),
    ):
        refused(sentence, "paged_attention", at, **{**cache.attributes, "sparse": name})
    for wrapped in (2**32 + HEADS, HEADS - 2**32):
        sentence = f"A cache can't have the number {wrapped}"
        refused(sentence, "paged_attention", at, **{**cache.attributes, "heads": wrapped})
    at = {"q": queries, "start": np.array([CAPACITY - 1]), "cache": cache.own}
    refused("2 more tokens after 599", "paged_attention", at, **cache.attributes)
    at = {**at, "start": np.array([0])}
    refused("A cache of this shape", "paged_attention", {**at, "cache": cache.own[1:]}, **cache.attributes)
    refused("tree has 1", "paged_attention", {**at, "tree": np.array([1])}, **cache.attributes)
    refused("Token 1 of the tree", "paged_attention", {**at, "tree": np.array([1, 1])}, **cache.attributes)
    refused(
        "queries has rows of 128",
        "paged_attention",
        at,
        **{**cache.attributes, "heads": 3, "kv_heads": 2, "head_dim": 32},
    )
    rows = {"rows": np.array([3, 3]), "start": np.array([0]), "cache": cache.own}
    refused(
        *("Rows to keep must ascend", "kv_keep", rows, np.dtype(np.int64), np.dtype(np.uint8)),
        **cache.attributes,
    )
