"""Products of many rows, see `kernels/cuda/dense.py`."""

from __future__ import annotations

from math import isqrt

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import CHUNK, Matrix
from edge.executors.cuda.operators.linear import linear

FROM_ROWS = 512
"""Rows from which on `product` takes `dense`."""
TILE = 128
"""Rows, and outputs, of one program."""


def product(
    device: Device, matrix: Matrix, x: Address, out: Address, workspace: Address, *, rows: int
) -> int:
    """out float32 [slices, rows, matrix.rows] by `linear`, or by `dense` for many rows; returns slices. Their
    sum is the same whatever the number of rows. workspace: matrix.dense_bytes, from FROM_ROWS rows on.
    """
    if rows < FROM_ROWS:
        linear(device, matrix, x, out, rows=rows)
        return matrix.slices
    dense(device, matrix, x, out, workspace, rows=rows)
    return 1


def dequantize(device: Device, matrix: Matrix, out: Address) -> None:
    """out float16 [matrix.bands * 64, matrix.padded_columns] = the weights as `linear` takes them."""
    device.launch(
        f"dequantize.{matrix.variant}",
        (matrix.tiles, matrix.bands, 1),
        (matrix.address, matrix.scales, out, matrix.tiles),
    )


def dense(device: Device, matrix: Matrix, x: Address, out: Address, workspace: Address, *, rows: int) -> None:
    """out float32 [rows, matrix.rows] = x float16 [rows, matrix.columns] times the transposed matrix: the sum
    of what `linear` gives, bit for bit. workspace: matrix.dense_bytes, which get the weights.
    """
    assert rows * max(matrix.columns, matrix.rows) < 2**31
    dequantize(device, matrix, workspace)
    device.launch(
        "dense.whole" if matrix.slices == 1 else "dense.sliced",
        (-(-rows // TILE), -(-matrix.rows // TILE), 1),
        (
            *(x, workspace, out, rows, matrix.rows, matrix.columns),
            *(matrix.padded_columns, matrix.slice_chunks * CHUNK, isqrt(device.facts.multiprocessors)),
        ),
    )
