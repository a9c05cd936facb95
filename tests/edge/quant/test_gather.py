"""Rows gathered from a packed matrix: the bytes that packing those rows would give."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import BundleError
from edge.quant import gather
from edge.quant.gather import gather_rows
from edge.quant.packing import dequantize, pack
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme

SCHEMES = ["int4", "int4-g64", "int4-row", "int4-min", "int8", "int8-row", "ternary", "ternary-row", "f16"]


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("shape", [(77, 40), (203, 144), (16, 32)])
def test_bytes_are_those_of_the_rows_packed_again(
    name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "_BLOCK_BYTES", 4096)  # several blocks
    random = np.random.default_rng(2)
    scheme = QuantScheme.from_name(name)
    values = random.standard_normal(shape).astype(np.float32)
    matrix = values.astype(np.float16) if scheme.is_float else quantize(values, scheme)
    packed = pack(matrix, scheme)
    whole = dequantize(packed, scheme, *shape)
    for count in (1, 15, 16, 17, 60):
        rows = random.integers(0, shape[0], count)  # in any order, some twice
        if isinstance(matrix, QuantizedMatrix):
            minimums = None if matrix.minimums is None else matrix.minimums[rows]
            part = pack(QuantizedMatrix(scheme, matrix.codes[rows], matrix.scales[rows], minimums), scheme)
        else:
            part = pack(matrix[rows], scheme)
        found = gather_rows(packed, scheme, shape, rows)
        assert (found.scheme, found.shape) == (scheme, (count, shape[1]))
        np.testing.assert_array_equal(found.data, part)
        np.testing.assert_array_equal(dequantize(found.data, scheme, *found.shape), whole[rows])


@pytest.mark.parametrize(
    ("rows", "says"), [([3, 20], "Row 20 .* of 20 rows"), ([-1], "Row -1"), ([], "No rows")]
)
def test_rows_that_do_not_exist(rows: list[int], says: str) -> None:
    scheme = QuantScheme.from_name("int4")
    packed = pack(quantize(np.ones((20, 32), np.float32), scheme), scheme)
    with pytest.raises(BundleError, match=says):
        gather_rows(packed, scheme, (20, 32), rows)


def test_a_vector_has_no_rows() -> None:
    scheme = QuantScheme("f32")
    with pytest.raises(BundleError, match="Rows of a matrix of f32 can't be gathered"):
        gather_rows(np.zeros(64, np.uint8), scheme, (1, 16), [0])
