"""Calls libedge's operators with numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edge.executors.native import library as native
from edge.executors.native.pool import ScratchBuffer, ThreadPool
from edge.quant import packing
from edge.quant.scheme import QuantizedMatrix, QuantScheme

FloatArray = npt.NDArray[np.float32]


class Operators:
    """The C operators on two threads."""

    def __init__(self) -> None:
        self.pool = ThreadPool(2)
        self.buffer = ScratchBuffer()

    def place(self, tier: str) -> tuple[object, ...]:
        """The arguments that say where an operator runs."""
        return ctypes.byref(self.pool.parallel), ctypes.byref(self.buffer.scratch), tier.encode()

    @staticmethod
    def matrix(data: npt.NDArray[np.uint8], scheme: QuantScheme, rows: int, columns: int) -> native.Matrix:
        return native.matrix(scheme.packing, rows, columns, data.ctypes.data)

    def linear(self, matrix: native.Matrix, x: FloatArray, activations: str, tier: str) -> FloatArray:
        x = np.ascontiguousarray(x, np.float32)
        y = np.full((len(x), matrix.rows), np.nan, np.float32)
        status = native.library().edge_linear(
            *self.place(tier),
            ctypes.byref(matrix),
            native.ACTIVATIONS[activations],
            x.ctypes.data,
            len(x),
            y.ctypes.data,
        )
        native.check(status)
        return y

    @staticmethod
    def dequantize_row(matrix: native.Matrix, row: int) -> FloatArray:
        out = np.full(matrix.columns, np.nan, np.float32)
        native.check(native.library().edge_dequantize_row(ctypes.byref(matrix), row, out.ctypes.data))
        return out

    def rms_norm(self, x: FloatArray, weight: FloatArray, eps: float, scale: float, tier: str) -> FloatArray:
        out = np.full_like(x, np.nan)
        status = native.library().edge_rms_norm(
            *self.place(tier), x.ctypes.data, weight.ctypes.data, eps, scale, *x.shape, out.ctypes.data
        )
        native.check(status)
        return out

    def attention(
        self,
        queries: FloatArray,
        keys: FloatArray,
        values: FloatArray,
        kv_type: str,
        tier: str,
        tree: npt.NDArray[np.uint64] | None = None,
    ) -> FloatArray:
        """queries [n][heads][dim] of the last n positions of keys and values [positions][KV heads][dim]."""
        out = np.full_like(queries, np.nan)
        n, heads, dim = queries.shape
        status = native.library().edge_attention(
            ctypes.byref(self.pool.parallel),
            tier.encode(),
            *(native.KV_TYPE[kv_type], heads, keys.shape[1], dim, None),
            *(queries.ctypes.data, keys.ctypes.data, values.ctypes.data, n, len(keys) - n),
            *(None if tree is None else tree.ctypes.data, out.ctypes.data, None),
        )
        native.check(status)
        return out


@pytest.fixture(scope="session")
def operators() -> Operators:
    return Operators()


@pytest.fixture(params=native.cpu_tiers())
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def random_matrix() -> Callable[[QuantScheme, int, int], npt.NDArray[np.uint8]]:
    """Packed bytes of a random matrix whose codes take every value of the scheme."""

    def make(scheme: QuantScheme, rows: int, columns: int) -> npt.NDArray[np.uint8]:
        rng = np.random.default_rng(rows * 1000 + columns)
        if scheme.is_float:
            return packing.pack(rng.standard_normal((rows, columns)).astype(np.float32), scheme)
        low, high = {"int8": (-127, 128), "int4": (0, 16), "ternary": (0, 3)}[scheme.kind]
        codes = rng.integers(low, high, (rows, columns)).astype(
            np.int8 if scheme.kind == "int8" else np.uint8
        )
        shape = (rows, scheme.groups(columns))
        scales = rng.uniform(0.001, 0.02, shape).astype(np.float16)
        minimums = rng.normal(0, 0.05, shape).astype(np.float16) if scheme.minimum else None
        return packing.pack(QuantizedMatrix(scheme, codes, scales, minimums), scheme)

    return make
