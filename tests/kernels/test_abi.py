"""The C border of libedge, given what Python's executor would never give it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge.config.tensors import network_tensors
from edge.errors import NativeError
from edge.executors.native import library as native
from edge.executors.native.operators import LayerCache, LayerOperators
from edge.executors.native.packed import weight_of
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.formats.bundle.reader import Bundle
from edge.quant.scheme import QuantScheme
from tests.steps import forward

NAN = float("nan")
F32 = QuantScheme("f32").packing


@pytest.fixture(scope="module")
def bundle(minicpm, make_bundle) -> Bundle:
    return make_bundle(minicpm(), QuantScheme("int4", 32))


@pytest.fixture
def create(operators, bundle) -> Callable[..., None]:
    """`create(change)`: a model of the bundle after `change(config, weights)`; raises what libedge says."""

    def make(change: Callable[[native.Config, list[native.Weight]], object]) -> None:
        network = network_tensors(bundle.config)
        weights = [
            weight_of(info, network[name], int(bundle.data(name).ctypes.data))
            for name, info in bundle.tensors.items()
        ]
        shape = bundle.config
        frequencies = np.ones(shape.head_dim // 2, np.float32)
        config = native.Config(
            size=ctypes.sizeof(native.Config),
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            layers=shape.num_hidden_layers,
            heads=shape.num_attention_heads,
            kv_heads=shape.num_key_value_heads,
            head_dim=shape.head_dim,
            context=64,
            max_batch=16,
            rms_norm_eps=1e-5,
            **dict.fromkeys(("embedding_scale", "residual_scale", "logit_scale", "rope_scale"), 1.0),
            inverse_frequency=frequencies.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        )
        change(config, weights)
        handle = ctypes.c_void_p()
        status = native.library().edge_model_create(
            ctypes.byref(config),
            (native.Weight * len(weights))(*weights),
            len(weights),
            ctypes.byref(operators.pool.parallel),
            None,
            ctypes.byref(handle),
        )
        native.library().edge_model_destroy(handle)
        native.check(status)

    return make


def test_the_model_as_it_is(create):
    create(lambda config, weights: None)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("size", 8, "edge_config has another size"),
        ("vocab_size", 0, "vocab_size is 0; it must be between 1 and"),
        ("hidden_size", (1 << 24) + 1, "hidden_size is 16777217"),
        ("layers", 4097, "4097 layers are beyond what is possible"),
        ("kv_heads", 3, r"heads \(8\) must be a multiple of kv_heads \(3\)"),
        ("head_dim", 40, "head_dim is 40; it must be a multiple of 16"),
        ("head_dim", 1 << 23, "head_dim is 8388608; it must be a multiple of 16"),
        ("context", -1, "context is -1"),
        ("max_batch", 0, "max_batch is 0"),
        ("activations", 3, "Unknown kind of activations 3"),
        ("kv_type", 5, "Unknown KV type 5"),
        ("rms_norm_eps", 0.0, "rms_norm_eps must be positive"),
        ("rms_norm_eps", NAN, "positive and finite"),
        ("rope_scale", float("inf"), "not finite"),
        ("inverse_frequency", None, "inverse_frequency is NULL"),
    ],
)
def test_a_config_is_checked(create, field: str, value: Any, sentence: str):
    with pytest.raises(NativeError, match=sentence):
        create(lambda config, weights: setattr(config, field, value))


def test_rotary_frequencies_are_checked(create):
    def spoil(config: native.Config, weights: list[native.Weight]) -> None:
        config.inverse_frequency[config.head_dim // 2 - 1] = NAN

    with pytest.raises(NativeError, match="rotary frequency is not finite"):
        create(spoil)


def test_a_cache_beyond_all_memory_is_refused(create):
    """Its size in bytes, 4096 layers x 2^20 heads of 16 x 2^24 positions, does not fit 64 bits."""

    def enlarge(config: native.Config, weights: list[native.Weight]) -> None:
        config.layers, config.heads, config.kv_heads, config.head_dim = 4096, 1 << 20, 1 << 20, 16
        config.context, config.kv_type = 1 << 24, native.KV_TYPE["float32"]

    with pytest.raises(NativeError, match="A KV cache of 16777216 tokens"):
        create(enlarge)


def test_a_weight_given_twice(create):
    with pytest.raises(NativeError, match=r"^embedding is given twice"):
        create(lambda config, weights: weights.append(weights[0]))
    last = "down_proj of layer 1 is given twice"
    with pytest.raises(NativeError, match=last):
        create(
            lambda config, weights: weights.append(next(w for w in weights if (w.role, w.layer) == (11, 1)))
        )


@pytest.mark.parametrize("role", [role for role in range(12) if role != 1])
def test_a_weight_that_is_missing(create, role: int):
    """Of the last layer; the head alone may be absent."""

    def drop(config: native.Config, weights: list[native.Weight]) -> None:
        weights.remove([weight for weight in weights if weight.role == role][-1])

    with pytest.raises(NativeError, match="is missing"):
        create(drop)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"role": 12}, "Unknown weight role 12"),
        ({"role": 15}, "Unknown weight role 15"),
        ({"role": 21}, "Unknown weight role 21"),
        ({"role": 16}, "bias of q_proj of layer 0: expected 1 x 512 float32, got 512 x 144"),
        ({"role": -1}, "Unknown weight role -1"),
        ({"layer": 2}, "q_proj: layer 2 does not exist"),
        ({"layer": -1}, "q_proj: layer -1 does not exist"),
        ({"role": 0, "layer": 1}, "embedding: layer 1 does not exist"),
    ],
    ids=str,
)
def test_where_a_weight_belongs_is_checked(create, change: dict[str, int], sentence: str):
    def misplace(config: native.Config, weights: list[native.Weight]) -> None:
        weight = next(weight for weight in weights if weight.role == 4)
        for name, value in change.items():
            setattr(weight, name, value)

    with pytest.raises(NativeError, match=sentence):
        create(misplace)


VECTORS = {16: 512, 17: 128, 18: 128, 19: 64, 20: 64}
"""Sizes of the biases of q, k and v, and of the norms of heads of q and k."""
ONES = np.ones(max(VECTORS.values()), np.float32)


def vectors(*roles: int, layers: tuple[int, ...] = (0, 1), size: int | None = None) -> list[native.Weight]:
    """Such weights, of ones."""
    matrices = {role: native.matrix(F32, 1, size or VECTORS[role], ONES.ctypes.data) for role in roles}
    return [
        native.Weight(role=role, layer=layer, matrix=matrices[role]) for layer in layers for role in roles
    ]


@pytest.mark.parametrize("roles", [(16, 17, 18), (19, 20), tuple(VECTORS)], ids=str)
def test_biases_and_norms_of_heads_come_together(create, roles: tuple[int, ...]):
    create(lambda config, weights: weights.extend(vectors(*roles)))
    for missing in roles:
        some = [role for role in roles if role != missing]
        for lacking in (vectors(*some), [*vectors(*some), *vectors(missing, layers=(0,))]):
            with pytest.raises(NativeError, match=r"The (bias of ._proj|norm of .) of layer . is missing"):
                create(lambda config, weights, lacking=lacking: weights.extend(lacking))


@pytest.mark.parametrize("role", VECTORS)
def test_sizes_of_biases_and_norms_of_heads(create, role: int):
    size = VECTORS[role] // 2
    with pytest.raises(NativeError, match=f"expected 1 x {2 * size} float32, got 1 x {size} of kind 0"):
        create(lambda config, weights: weights.extend(vectors(role, size=size)))


def test_only_what_is_there_is_replaced(bundle):
    """A model without biases gets none afterwards, and goes on as it was."""
    executor = open_executor(bundle, RunOptions(threads=1))
    before = forward(executor, executor.new_cache(), [5, 6, 7]).logits
    for role in VECTORS:
        (weight,) = vectors(role, layers=(1,))
        status = native.library().edge_model_replace(executor.handle, ctypes.byref(weight), 1)
        with pytest.raises(NativeError, match=r"The model has no (bias|norm) of .* to replace"):
            native.check(status)
    np.testing.assert_array_equal(forward(executor, executor.new_cache(), [5, 6, 7]).logits, before)
    executor.close()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 0}, "impossible shape"),
        ({"columns": -32}, "impossible shape"),
        ({"rows": (1 << 30) + 1}, "impossible shape"),
        ({"kind": 5}, "unknown kind 5"),
        ({"group": 16}, "group 16 is neither 0 nor a multiple of 32"),
        ({"group": -32}, "group -32 is neither"),
        ({"kind": 2, "minimum": 1}, "only int4 has minimums"),
        ({"bytes": lambda size: size + 1}, "takes"),
        ({"bytes": lambda size: size - 64}, "takes"),
        ({"rows": lambda rows: rows + 16}, "takes"),
        ({"data": None}, "got 0"),
        ({"data": lambda address: address + 2}, "multiple of 4 bytes"),
        ({"kind": 0, "group": 0, "rows": 1, "columns": 16, "bytes": 64}, "can't be float32"),
        ({"rows": 144, "bytes": 12992}, "expected 512 x 144, got 144 x 144"),
        ({"rows": 528, "bytes": 47552}, "expected 512 x 144, got 528 x 144"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_matrix_is_checked(create, change: dict[str, Any], sentence: str):
    """What its numbers say of its memory must be so: kernels read what they say."""

    def damage(config: native.Config, weights: list[native.Weight]) -> None:
        matrix = next(weight for weight in weights if weight.role == 4).matrix
        for name, value in change.items():
            setattr(matrix, name, value(getattr(matrix, name)) if callable(value) else value)

    with pytest.raises(NativeError, match=sentence):
        create(damage)


CAPACITY = 300


@pytest.fixture(params=["float16", "int8", "int4"])
def layer(request, operators) -> tuple[LayerOperators, LayerCache, np.ndarray]:
    """The operators, a cache of one layer and its memory with random rows in use."""
    cache = LayerCache(
        kv_type=native.KV_TYPE[request.param], heads=2, kv_heads=1, head_dim=16, capacity=CAPACITY
    )
    run = LayerOperators(operators.pool.parallel, operators.buffer.scratch)
    memory = np.zeros(cache.size(), np.uint8)
    qkv = np.random.default_rng(0).standard_normal((CAPACITY, 4 * 16)).astype(np.float32)
    rope = np.zeros((CAPACITY, 2, 8), np.float32)
    rope[:, 0] = 1
    run.kv_append(cache, memory, qkv, rope, 0, None)
    return run, cache, memory


@pytest.mark.parametrize(
    ("rows", "start", "sentence"),
    [
        ([CAPACITY], 5, "must ascend from 5 to below 300; row 0 is 300"),
        ([5, 2**32 + 6], 5, "row 1 is 4294967302"),
        ([4], 5, "row 0 is 4"),
        ([6, 6], 5, "row 1 is 6"),
        ([-1], 0, "row 0 is -1"),
        ([5], CAPACITY, "do not fit a cache of 300"),
        ([5], -1, "do not fit a cache of 300"),
        ([], CAPACITY + 1, "do not fit a cache of 300"),
        ([], -1, "do not fit a cache of 300"),
    ],
)
def test_rows_to_keep_are_within_the_cache(layer, rows: list[int], start: int, sentence: str):
    run, cache, memory = layer
    before = memory.copy()
    with pytest.raises(Exception, match=sentence):
        run.kv_keep(cache, memory, rows, start)
    np.testing.assert_array_equal(memory, before)


def test_a_tree_leaves_the_windows_as_they_are(operators):
    """They are those of the rows before it, until one of its paths is kept."""
    shape = {"kv_type": native.KV_TYPE["float16"], "heads": 2, "kv_heads": 1, "head_dim": 16, "capacity": 300}
    cache = LayerCache(**shape, sparse=native.Sparse(1, 32, 16, 64, 1, 64, 2, 70, 0))
    windows = slice(LayerCache(**shape).size(), None)  # behind the rows
    run = LayerOperators(operators.pool.parallel, operators.buffer.scratch)
    memory, plain = (np.zeros(cache.size(), np.uint8) for _ in range(2))
    qkv = np.random.default_rng(0).standard_normal((140, 64)).astype(np.float32)
    rope = np.ones((140, 2, 8), np.float32)
    run.kv_append(cache, memory, qkv[:100], rope[:100], 0)
    before = memory[windows].copy()
    chain = np.array([(1 << i + 1) - 1 for i in range(40)], np.uint64)
    run.kv_append(cache, memory, qkv[100:], rope[100:], 100, chain)
    np.testing.assert_array_equal(memory[windows], before)
    run.kv_keep(cache, memory, range(100, 140), 100)
    run.kv_append(cache, plain, qkv, rope, 0)
    np.testing.assert_array_equal(memory, plain)
    assert (plain[windows] != before).any()


def test_the_last_row_can_be_kept(layer):
    run, cache, memory = layer
    queries = np.random.default_rng(1).standard_normal((1, 32)).astype(np.float32)
    wanted = run.paged_attention(cache, memory, queries, CAPACITY - 1, None)
    run.kv_keep(cache, memory, [CAPACITY - 1], CAPACITY - 1)
    np.testing.assert_array_equal(run.paged_attention(cache, memory, queries, CAPACITY - 1, None), wanted)
    run.kv_keep(cache, memory, [CAPACITY - 1], 0)
    alone = run.paged_attention(cache, memory, queries, 0, None)  # one row: its value
    value = np.random.default_rng(0).standard_normal((CAPACITY, 64)).astype(np.float32)[-1, 48:]
    atol = 0.3 if cache.kv_type == native.KV_TYPE["int4"] else 0.03
    np.testing.assert_allclose(alone.reshape(2, 16), [value, value], atol=atol)


@pytest.mark.parametrize(
    "n, start", [(1, CAPACITY), (CAPACITY + 1, 0), (2, CAPACITY - 1), (1, -1), (1, 2**33)]
)
def test_rows_beyond_the_cache_are_refused(layer, n: int, start: int):
    run, cache, memory = layer
    before = memory.copy()
    with pytest.raises(Exception, match="do not fit a cache of 300"):
        run.paged_attention(cache, memory, np.zeros((n, 32), np.float32), start, None)
    with pytest.raises(Exception, match="do not fit a cache of 300"):
        rope = np.zeros((n, 2, 8), np.float32)
        run.kv_append(cache, memory, np.ones((n, 64), np.float32), rope, start, None)
    np.testing.assert_array_equal(memory, before)


def test_memory_of_another_size_is_refused(layer):
    run, cache, memory = layer
    for other in (memory[:-64], np.zeros(memory.size + 64, np.uint8)):
        with pytest.raises(NativeError, match=f"takes {memory.size} bytes, got {other.size}"):
            run.paged_attention(cache, other, np.zeros((1, 32), np.float32), 0, None)


@pytest.fixture
def matrices(random_matrix) -> Callable[[int, int], native.Matrix]:
    """`matrices(rows, columns)`: random int4 weights."""
    scheme, kept = QuantScheme("int4", 32), []

    def make(rows: int, columns: int) -> native.Matrix:
        kept.append(random_matrix(scheme, rows, columns))
        return native.matrix(scheme.packing, rows, columns, int(kept[-1].ctypes.data))

    return make


def test_arguments_of_operators_are_checked(operators, matrices):
    run = LayerOperators(operators.pool.parallel, operators.buffer.scratch)
    w, x, norm = matrices(40, 96), np.ones((2, 96), np.float32), np.ones(96, np.float32)
    frequencies = np.ones(513, np.float32)
    one, none = np.zeros(1, np.int64), np.zeros((0, 96), np.float32)
    missing = native.Matrix(kind=0, rows=1, columns=96, data=x.ctypes.data, bytes=384)
    for sentence, call in {
        "Token id 40 at place 1 is outside the vocabulary of 40": lambda: run.embedding(w, [39, 40], 1.0),
        "Token id -1 at place 0": lambda: run.embedding(w, [-1], 1.0),
        f"Token id {2**32} at place 0": lambda: run.embedding(w, [2**32], 1.0),
        "edge_embedding: 0 rows": lambda: run.embedding(w, one[:0], 1.0),
        "matrices of 96 and 64 columns": lambda: run.rms_norm_linear(
            x, norm, 1e-5, 1.0, [w, matrices(40, 64)], "int8"
        ),
        "takes 1 to 8 matrices, got 9": lambda: run.rms_norm_linear(x, norm, 1e-5, 1.0, [w] * 9, "int8"),
        "edge_rms_norm_linear: 0 rows": lambda: run.rms_norm_linear(none, norm, 1e-5, 1.0, [w], "int8"),
        "gate has 40 rows, but up has 56": lambda: run.rms_norm_swiglu(
            x, norm, 1e-5, w, matrices(56, 96), "int8"
        ),
        "edge_rms_norm_swiglu: matrices of 96 and 64": lambda: run.rms_norm_swiglu(
            x, norm, 1e-5, w, matrices(40, 64), "int8"
        ),
        "a scale of 2 needs a residual": lambda: run.linear(x, w, "int8", None, 2.0),
        "can't be float32": lambda: run.linear(x, missing, "int8"),
        "edge_rope_table: an argument": lambda: run.rope_table(one, frequencies, 1.0),
        "edge_rope_table: ": lambda: run.rope_table(one[:0], frequencies[:8], 1.0),
    }.items():
        with pytest.raises(Exception, match=sentence):
            call()
    assert run.embedding(w, [39], 2.0).shape == (1, 96)  # the last one is there
    assert run.rope_table(one, frequencies[:512], 1.0).shape == (1, 2, 512)


@pytest.mark.parametrize("n", [0, -1, (1 << 24) + 1])
def test_numbers_of_rows_are_checked(operators, matrices, n: int):
    """Before a row is read: there are none behind this one."""
    w, x = matrices(40, 96), np.ones((1, 96), np.float32)
    y = np.zeros((1, 96), np.float32)
    library, place = native.library(), operators.place("portable")
    for status in (
        library.edge_linear(*place, ctypes.byref(w), 0, x.ctypes.data, n, y.ctypes.data),
        library.edge_rms_norm(*place, x.ctypes.data, x.ctypes.data, 1e-5, 1.0, n, 96, y.ctypes.data),
        library.edge_attention(
            *(place[0], place[2], 0, 1, 1, 32, None, *[x.ctypes.data] * 3, n, 0, None, y.ctypes.data, None)
        ),
    ):
        with pytest.raises(NativeError, match="an argument is missing or out of range"):
            native.check(status)
    assert not y.any()
