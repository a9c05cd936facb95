"""A scheme is one declaration: a toy one is registered here, and everything that takes schemes takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.checkpoints.synthetic import RandomCheckpoint, random_matrix
from edge.errors import BundleError, EdgeError, NativeError
from edge.executors.native import library as native
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.formats.bundle.manifest import OPERATORS
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.quant import layout as layouts
from edge.quant.base3 import pack_base3, unpack_base3
from edge.quant.kinds import SchemeKind, register_scheme
from edge.quant.layout import I4, NATIVE, T2, Layout, MatrixLayout
from edge.quant.packing import dequantize, pack, unpack
from edge.quant.rounding import quantize
from edge.quant.rules import symmetric
from edge.quant.scheme import QuantizedMatrix, QuantScheme
from tests.steps import forward
from tests.toy_scheme import SCHEMES, TOY, WIDE_SCHEME

SCHEME = SCHEMES[0]


def matrix(scheme: QuantScheme, rows: int = 19, columns: int = 200) -> QuantizedMatrix:
    return quantize(np.random.default_rng(rows).standard_normal((rows, columns), np.float32), scheme)


def test_names():
    assert QuantScheme.from_name("toy5") == SCHEME and str(SCHEME) == "toy5-g64"
    assert [QuantScheme.parse(str(scheme)) for scheme in SCHEMES] == SCHEMES
    assert SCHEME.bits == 3 and SCHEME.dtype is np.int8 and SCHEME.beside == SCHEME
    with pytest.raises(BundleError, match="choose one of int4, int8, ternary, f16, toy5"):
        QuantScheme.from_name("int3")


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rounding_is_nearest(scheme: QuantScheme):
    weights = np.random.default_rng(3).standard_normal((19, 200), np.float32)
    found = quantize(weights, scheme)
    low, high = scheme.code_range
    assert found.codes.min() == low + scheme.zero and found.codes.max() == high + scheme.zero
    group = scheme.group or 200
    steps = np.abs(found.scales.astype(np.float32))[:, np.arange(200) // group]
    assert (np.abs(found.dequantize() - weights) <= steps * 0.501 + 1e-3).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_packing(scheme: QuantScheme):
    found = matrix(scheme)
    packed = pack(found, scheme)
    assert packed.size == scheme.packed_bytes(19, 200)
    again = unpack(packed, scheme, 19, 200)
    assert isinstance(again, QuantizedMatrix) and again.codes.dtype == found.codes.dtype
    np.testing.assert_array_equal(again.codes, found.codes)
    np.testing.assert_array_equal(dequantize(packed, scheme, 19, 200), found.dequantize())
    # Its bytes are int4's: that scheme reads the same weights out of them.
    same = QuantScheme("int4", scheme.group, scheme.minimum)
    assert scheme.layout == same.layout
    np.testing.assert_array_equal(dequantize(packed, same, 19, 200), found.dequantize())


def test_a_kind_in_the_ternary_layout_has_base_3():
    """Codes 0 and 1, of which zero is the first."""
    scheme = QuantScheme(register_scheme(SchemeKind("mask1", T2, 0, 1, 0, 32, symmetric(1))).name, 32)
    codes = np.random.default_rng(0).integers(0, 2, (17, 96)).astype(np.uint8)
    packed = pack(QuantizedMatrix(scheme, codes, np.ones((17, 3), np.float16)), scheme)
    np.testing.assert_array_equal(unpack_base3(pack_base3(packed, scheme, 17, 96), scheme, 17, 96), packed)
    np.testing.assert_array_equal(dequantize(packed, scheme, 17, 96), codes)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_random_weights(scheme: QuantScheme):
    rng = np.random.Generator(np.random.SFC64([5]))
    found = random_matrix(rng, 300, 640, scheme, 0.1)
    plain = unpack(found.data, scheme, 300, 640)
    assert isinstance(plain, QuantizedMatrix)
    low, high = scheme.code_range
    counts = np.bincount(plain.codes.reshape(-1).astype(int) - low - scheme.zero, minlength=high - low + 1)
    assert counts.size == high - low + 1 and counts.min() > 0.17 * plain.codes.size
    assert plain.dequantize().std() == pytest.approx(0.1, rel=0.1)
    assert abs(plain.dequantize().mean()) < 0.01


@pytest.fixture
def bundle(tiny_config: Any, array_checkpoint: Callable[..., Any], tmp_path: Path) -> Callable[..., Bundle]:
    """`bundle(name)`: a tiny network quantized to it."""

    def make(name: str) -> Bundle:
        convert(array_checkpoint(tiny_config), tmp_path / name, quantize=name)
        return Bundle.open(tmp_path / name, verify=True)

    return make


@pytest.mark.parametrize("name", ["toy5", "toy5-g32-min"])
def test_a_bundle_and_the_native_executor(bundle: Callable[..., Bundle], name: str):
    found = bundle(name)
    stored = found.tensors["model.layers.0.mlp.up_proj.weight"]
    assert stored.scheme == QuantScheme.from_name(name)
    assert stored.scheme.to_json()["kind"] == "toy5" and stored.layout.startswith("i4.n16k8.")
    wanted = "linear.int4.minimum" if stored.scheme.minimum else "linear.int4"
    assert found.manifest.operators == ("attention.dense", wanted)
    executor = open_executor(found, RunOptions(context=32, threads=1))
    cache = executor.new_cache()
    assert np.isfinite(forward(executor, cache, [1, 2, 3]).logits).all()


def test_a_random_model(tiny_config: Any, tmp_path: Path):
    config = replace(tiny_config, vocab_size=300)
    convert(RandomCheckpoint(config, SCHEME), tmp_path / "b")
    assert {str(tensor.scheme) for tensor in Bundle.open(tmp_path / "b").tensors.values()} == {
        "f32",
        "toy5-g64",
    }


def test_another_executors_layout_is_refused_by_the_kernels(tiny_config: Any, tmp_path: Path):
    assert WIDE_SCHEME.layout == "x8.n16k4.g32.min.v1" and "linear.x8.minimum" not in OPERATORS
    with pytest.raises(NativeError, match=r"can't compute on the layout x8\.n16k4\.g32\.min\.v1"):
        native.matrix(WIDE_SCHEME.packing, 16, 64, 0)
    config = replace(tiny_config, vocab_size=300)
    convert(RandomCheckpoint(config, WIDE_SCHEME), tmp_path / "b")
    found = Bundle.open(tmp_path / "b")
    assert "linear.x8.minimum" in found.manifest.operators
    with pytest.raises(NativeError, match="can't compute on the layout"):
        open_executor(found, RunOptions(context=32, threads=1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "toy-5"}, "only letters and digits"),
        ({"low": -9}, "can't hold codes -9 to 2"),
        ({"high": 8}, "can't hold codes -2 to 8"),
        ({"layout": layouts.F16}, "does not fit the layout"),
        ({"rule": None}, "does not fit the layout"),
        ({"layout": layouts.I8}, "has no minimums"),
    ],
)
def test_declarations_that_contradict(changes: dict[str, Any], sentence: str):
    with pytest.raises(EdgeError, match=sentence):
        replace(TOY, **changes)


def test_a_name_that_is_taken():
    assert register_scheme(TOY) is TOY
    with pytest.raises(EdgeError, match="'int4' already"):
        register_scheme(replace(TOY, name="int4"))


def test_layouts_of_libedge():
    """The numbers and identifiers that bundles and the C interface depend on."""
    assert [(layout.name, layout.kernel) for layout in NATIVE] == [
        ("f32.row", 0),
        ("f16.n16", 1),
        ("i8.n16k4", 2),
        ("i4.n16k8", 3),
        ("t2.n16k16", 4),
    ]
    assert {
        *("attention.dense", "linear.f16", "linear.int8", "linear.int4", "linear.int4.minimum"),
        "linear.ternary",
    } == OPERATORS
    assert MatrixLayout(I4, 32, True).id == "i4.n16k8.g32.min.v1"
    assert [Layout(str(bits), bits, None, None).block for bits in (8, 4, 2)] == [4, 8, 16]
