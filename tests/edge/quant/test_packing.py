"""The canonical layout: written down a second time byte by byte, and packed and unpacked in every scheme."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import BundleError
from edge.quant.packing import dequantize, pack, packed_scales, unpack
from edge.quant.scheme import QuantizedMatrix, QuantScheme

SCHEMES = [
    QuantScheme("int8", 32),
    QuantScheme("int8", 128),
    QuantScheme("int8"),
    QuantScheme("int4", 32),
    QuantScheme("int4", 128),
    QuantScheme("int4"),
    QuantScheme("int4", 32, minimum=True),
    QuantScheme("int4", 0, minimum=True),
    QuantScheme("ternary", 32),
    QuantScheme("ternary", 128),
    QuantScheme("ternary"),
    QuantScheme("ternary", 256),
]
SHAPES = [(16, 32), (1, 1), (17, 33), (40, 100), (48, 576), (5, 160), (64, 128), (3, 257)]


def random_matrix(scheme: QuantScheme, rows: int, columns: int) -> QuantizedMatrix:
    random = np.random.default_rng(rows * 1000 + columns)
    low, high = {"int8": (-127, 128), "int4": (0, 16), "ternary": (0, 3)}[scheme.kind]
    codes = random.integers(low, high, (rows, columns)).astype(np.int8 if scheme.kind == "int8" else np.uint8)
    scales, minimums = random.standard_normal((2, rows, scheme.groups(columns))).astype(np.float16)
    return QuantizedMatrix(scheme, codes, scales, minimums if scheme.minimum else None)


def layout_by_hand(matrix: QuantizedMatrix) -> bytes:
    """The layout as its description says it, one weight at a time."""
    scheme, (rows, columns) = matrix.scheme, matrix.shape
    columns_per_block = {"int8": 4, "int4": 8, "ternary": 16}[scheme.kind]
    zero = {"int8": 128, "int4": 0 if scheme.minimum else 8, "ternary": 1}[scheme.kind]
    padded = -(-columns // 32) * 32
    group = scheme.group or padded
    out = bytearray()
    for tile in range(0, rows, 16):
        for index, start in enumerate(range(0, padded, group)):
            for block in range(start, min(start + group, padded), columns_per_block):
                for row in range(tile, tile + 16):
                    for byte in range(4):
                        value = 0
                        for part in range(columns_per_block // 4):
                            column = block + 4 * part + byte
                            code = zero
                            if row < rows and column < columns:
                                code = int(matrix.codes[row, column]) + (128 if scheme.kind == "int8" else 0)
                            value |= code << (part * scheme.bits)
                        out.append(value)
            for tail in (matrix.scales, matrix.minimums):
                if tail is not None:
                    for row in range(tile, tile + 16):
                        out += np.float16(tail[row, index] if row < rows else 0).tobytes()
    return bytes(out) + bytes(-len(out) % 64)


@pytest.mark.parametrize("shape", [(17, 33), (5, 160), (32, 40)])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_bytes_are_those_of_the_description(scheme: QuantScheme, shape: tuple[int, int]) -> None:
    matrix = random_matrix(scheme, *shape)
    assert pack(matrix, scheme).tobytes() == layout_by_hand(matrix)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_round_trip(scheme: QuantScheme, shape: tuple[int, int]) -> None:
    matrix = random_matrix(scheme, *shape)
    data = pack(matrix, scheme)
    assert data.dtype == np.uint8 and data.size == scheme.packed_bytes(*shape) and data.size % 64 == 0
    back = unpack(data, scheme, *shape)
    assert isinstance(back, QuantizedMatrix)
    assert back.codes.dtype == matrix.codes.dtype
    np.testing.assert_array_equal(back.codes, matrix.codes)
    np.testing.assert_array_equal(back.scales, matrix.scales)
    if matrix.minimums is not None:
        np.testing.assert_array_equal(back.minimums, matrix.minimums)
    np.testing.assert_array_equal(dequantize(data, scheme, *shape), matrix.dequantize())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_floats_round_trip(kind: str, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float16).astype(np.float32)
    scheme = QuantScheme(kind)  # type: ignore[arg-type]
    data = pack(values, scheme)
    assert data.size == scheme.packed_bytes(*shape)
    np.testing.assert_array_equal(dequantize(data, scheme, *shape), values)


def test_float16_rows_stand_side_by_side() -> None:
    values = np.arange(20 * 3, dtype=np.float32).reshape(20, 3)
    halves = pack(values, QuantScheme("f16")).view("<f2").reshape(2, 32, 16)
    assert halves[0, 2, 5] == values[5, 2] and halves[1, 1, 3] == values[19, 1]
    assert not halves[:, 3:].any() and not halves[1, :, 4:].any()


@pytest.mark.parametrize("scheme", [*SCHEMES, QuantScheme("f16")], ids=str)
def test_blocks_of_32_rows_join(scheme: QuantScheme) -> None:
    """The converter packs 32 rows at a time and appends the bytes."""
    rows, columns = 77, 200
    if scheme.is_float:
        values = np.random.default_rng(2).standard_normal((rows, columns)).astype(np.float16)
        whole, parts = pack(values, scheme), [pack(values[at : at + 32], scheme) for at in (0, 32, 64)]
    else:
        matrix = random_matrix(scheme, rows, columns)
        whole, parts = pack(matrix, scheme), []
        for at in (0, 32, 64):
            minimums = None if matrix.minimums is None else matrix.minimums[at : at + 32]
            block = QuantizedMatrix(scheme, matrix.codes[at : at + 32], matrix.scales[at : at + 32], minimums)
            parts.append(pack(block, scheme))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_packed_scales_finds_all_of_them(scheme: QuantScheme, shape: tuple[int, int]) -> None:
    matrix = random_matrix(scheme, *shape)
    found = packed_scales(pack(matrix, scheme), scheme, *shape)
    wanted = [matrix.scales.reshape(-1)] + ([] if matrix.minimums is None else [matrix.minimums.reshape(-1)])
    padding = found.size - sum(part.size for part in wanted)
    expected = np.concatenate([*wanted, np.zeros(padding, np.float16)])
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))


def test_wrong_size_is_refused() -> None:
    scheme = QuantScheme("int4", 32)
    with pytest.raises(BundleError, match="17x33"):
        unpack(np.zeros(scheme.packed_bytes(17, 33) - 64, np.uint8), scheme, 17, 33)


@pytest.mark.parametrize(
    ("kind", "group", "minimum"),
    [("int3", 32, False), ("int4", 16, False), ("int4", -32, False), ("int8", 32, True), ("f16", 32, False)],
)
def test_impossible_schemes_are_refused(kind: str, group: int, minimum: bool) -> None:
    with pytest.raises(BundleError):
        QuantScheme(kind, group, minimum)


def test_scheme_names_and_json() -> None:
    assert QuantScheme.from_name("int4") == QuantScheme("int4", 32)
    assert QuantScheme.from_name("int4-g128") == QuantScheme("int4", 128)
    assert QuantScheme.from_name("int8") == QuantScheme("int8", 32)
    assert QuantScheme.from_name("ternary") == QuantScheme("ternary", 128)
    assert QuantScheme.from_name("ternary-row") == QuantScheme("ternary")
    assert QuantScheme.from_name("int4-min") == QuantScheme("int4", 32, minimum=True)
    assert QuantScheme.from_name("f16") == QuantScheme("f16")
    assert QuantScheme.chosen("source") is None and QuantScheme.chosen(None) is None
    for name, sentence in (
        *((name, "choose one of int4, int8, ternary, f16") for name in ("int3", "f32", "int4-g0", "int4-32")),
        ("int4-g48", "multiple of 32"),
        ("int8-g32-min", "can't have a per-group minimum"),
        ("f16-g32", "f16 has no groups"),
        ("none", "'none' is called 'source' now"),
    ):
        with pytest.raises(BundleError, match=sentence):
            QuantScheme.from_name(name)
    for scheme in [*SCHEMES, QuantScheme("f16"), QuantScheme("f32")]:
        assert QuantScheme.parse(str(scheme)) == scheme
    with pytest.raises(BundleError, match="'int4'"):
        QuantScheme.parse("int4")
    for scheme in SCHEMES:
        assert QuantScheme.from_json(scheme.to_json()) == scheme
        with pytest.raises(BundleError, match="layout"):
            QuantScheme.from_json({**scheme.to_json(), "layout": "i4.n32k4.g32.v2"})
    with pytest.raises(BundleError, match="'group'"):
        QuantScheme.from_json({"kind": "int4", "minimum": False, "layout": "x"})
    with pytest.raises(BundleError, match="'zero'"):
        QuantScheme.from_json({**SCHEMES[0].to_json(), "zero": 3})
