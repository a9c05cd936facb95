"""Products with a matrix, see `kernels/cuda/linear.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import Matrix

ROW_TILES = (8, 16, 32)
"""Rows that one program can have."""


def linear(device: Device, matrix: Matrix, x: Address, out: Address, *, rows: int) -> None:
    """out float32 [matrix.slices, rows, matrix.rows]: for each slice of the columns, x float16 [rows,
    matrix.columns] times the transposed matrix. The slices are summed up, in order, by what reads them.
    """
    assert rows * max(matrix.columns, matrix.slices * matrix.rows) < 2**31
    tile = next((size for size in ROW_TILES if rows <= size), ROW_TILES[-1])
    device.launch(
        f"linear.{matrix.variant}.r{tile}",
        (-(-rows // tile), matrix.bands, matrix.slices),
        (
            *(x, matrix.address, matrix.scales, out),
            *(rows, matrix.rows, matrix.columns, matrix.chunks, matrix.slice_chunks),
        ),
    )
