"""Chosen rows of a matrix as one of their own, see `kernels/cuda/rows.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import Matrix


def take_rows(device: Device, matrix: Matrix, ids: Address, out: Matrix) -> None:
    """Row i of `out` = row ids[i] of the matrix; ids int32 [out.rows]. The memory of `out` must be zero."""
    device.launch(
        "take_words",
        (matrix.units, out.bands, 1),
        (ids, matrix.address, out.address, out.rows, matrix.units),
    )
    if matrix.groups:
        tiles = matrix.tiles if matrix.layout.group else 1
        device.launch(
            f"take_scales.{32 if matrix.layout.minimum else 16}",
            (tiles, out.bands, 1),
            (ids, matrix.scales, out.scales, out.rows, tiles, matrix.groups // tiles),
        )
