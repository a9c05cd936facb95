"""From the bytes of a bundle to matrices of the device, see `kernels/cuda/repack.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import BAND, Matrix, kind_of, variant_of
from edge.quant.layout import PAD_COLUMNS, TILE_ROWS, MatrixLayout


def repack(
    device: Device, layout: MatrixLayout, source: Address, matrix: Matrix, *, first: int, rows: int
) -> None:
    """Rows `first` to `first + rows` of a matrix, from a matrix of a bundle as it was uploaded.

    The memory of `matrix` must be zero, or hold other rows of it.
    """
    assert matrix.layout == variant_of(layout) and first + rows <= matrix.rows
    columns = -(-matrix.columns // PAD_COLUMNS) * PAD_COLUMNS
    group, tail = layout.group or columns, 2 * TILE_ROWS * layout.tails
    bits = layout.layout.bits
    if layout.is_float:
        tail = 0
    group_bytes = group * TILE_ROWS * bits // 8 + tail
    tile_bytes = columns * TILE_ROWS * bits // 8 + -(-columns // group) * tail
    numbers = (first, rows, columns, group, group_bytes, tile_bytes)
    bands = (first + rows - 1) // BAND - first // BAND + 1
    device.launch(
        f"repack_words.{kind_of(layout)}",
        (matrix.units, bands, 1),
        (source, matrix.address, *numbers, matrix.units),
    )
    if not layout.is_float:
        tiles = matrix.tiles if matrix.layout.group else 1
        device.launch(
            f"repack_scales.{matrix.variant}", (tiles, bands, 1), (source, matrix.scales, *numbers, tiles)
        )
