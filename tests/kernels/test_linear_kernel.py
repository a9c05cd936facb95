"""Which kernel a matrix takes: the integer one in every group size, floats only where they were asked for."""

from __future__ import annotations

import ctypes

import pytest

from edge.errors import NativeError
from edge.executors.native import library as native
from edge.quant.scheme import QuantScheme


def kernel(operators, random_matrix, scheme: QuantScheme, columns: int, activations: str = "int8") -> str:
    data = random_matrix(scheme, 17, columns)
    matrix = operators.matrix(data, scheme, 17, columns)
    found = native.library().edge_linear_kernel(ctypes.byref(matrix), native.ACTIVATIONS[activations])
    if found is None:
        native.check(1)
    return found.decode()


@pytest.mark.parametrize("kind", ["int4", "int8", "ternary"])
@pytest.mark.parametrize("columns", [1, 33, 96, 300])
def test_every_quantized_shape_takes_integer_products(operators, random_matrix, kind, columns):
    for group in (0, 32, 64, 96, 128, 160, 256, 4096):
        scheme = QuantScheme(kind, group)
        assert kernel(operators, random_matrix, scheme, columns).startswith(f"int8 dots, {kind} weights")
        twice = kernel(operators, random_matrix, scheme, columns, "int16")
        assert twice.startswith(f"two int8 dots, {kind} weights")
        exact = kernel(operators, random_matrix, scheme, columns, "float32")
        assert exact == f"float32 products, dequantized {kind}"


def test_names(operators, random_matrix):
    found = {
        str(scheme): kernel(operators, random_matrix, scheme, 300)
        for scheme in (
            QuantScheme("int4", 128),
            QuantScheme("int4", 256),
            QuantScheme("int4", 32, minimum=True),
            QuantScheme("f16"),
        )
    }
    assert found == {
        "int4-g128": "int8 dots, int4 weights",
        "int4-g256": "int8 dots, int4 weights, groups in parts",  # activations have a scale per 128 columns
        "int4-g32-min": "int8 dots, int4 weights with minimums",
        "f16": "float32 products, float16 weights",
    }


def test_a_refused_matrix_has_no_kernel(operators, random_matrix):
    scheme = QuantScheme("int4", 32)
    matrix = operators.matrix(random_matrix(scheme, 17, 96), scheme, 17, 96)
    assert native.library().edge_linear_kernel(ctypes.byref(matrix), 3) is None
    with pytest.raises(NativeError, match="Unknown kind of activations 3"):
        native.check(1)
    matrix.group = 33
    assert native.library().edge_linear_kernel(ctypes.byref(matrix), 0) is None
    with pytest.raises(NativeError, match="multiple of 32"):
        native.check(1)
    assert native.library().edge_linear_kernel(None, 0) is None
