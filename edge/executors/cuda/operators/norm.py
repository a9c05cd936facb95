"""The residual stream and its norms, see `kernels/cuda/norm.py`.

stream float32 [rows, columns]; partials float32 [slices, rows, columns], what `linear` left; weights float32
[columns]; x float16, what the next product takes.
"""

from __future__ import annotations

from edge.errors import BundleError
from edge.executors.cuda.device import Address, Device

SIZES = (1024, 2048, 4096, 8192)
"""Columns that one program can have; it holds all of a row."""


def norm(
    device: Device, stream: Address, weights: Address, x: Address, *, rows: int, columns: int, epsilon: float
) -> None:
    """x [rows, columns] = RMSNorm of the stream, times the weights."""
    device.launch(
        f"norm.plain.{_block(columns)}",
        (rows, 1, 1),
        (stream, 0, weights, x, 0, rows, columns, 0.0, epsilon),
    )


def added_norm(
    device: Device,
    stream: Address,
    partials: Address,
    weights: Address,
    x: Address,
    *,
    slices: int,
    rows: int,
    columns: int,
    scale: float,
    epsilon: float,
) -> None:
    """stream += scale * the sum of the slices; then as `norm`."""
    device.launch(
        f"norm.added.{_block(columns)}",
        (rows, 1, 1),
        (stream, partials, weights, x, slices, rows, columns, scale, epsilon),
    )


def last_norm(
    device: Device,
    stream: Address,
    partials: Address,
    weights: Address,
    wanted: Address,
    x: Address,
    hidden: Address,
    *,
    slices: int,
    rows: int,
    columns: int,
    scale: float,
    epsilon: float,
    logit_scale: float,
    outputs: int,
) -> None:
    """For the rows wanted int32 [outputs] (-1 for none): hidden float32 [outputs, columns] = the norm of the
    stream after what is added, x [outputs, columns] = the same times logit_scale. The stream itself stays as
    it is.
    """
    device.launch(
        f"norm.last.{_block(columns)}",
        (outputs, 1, 1),
        (
            *(stream, partials, weights, wanted, x, hidden),
            *(slices, rows, columns, scale, epsilon, logit_scale),
        ),
    )


def check_columns(columns: int) -> None:
    """BundleError for a longer row than the kernels take."""
    if columns > SIZES[-1]:
        raise BundleError(
            f"A hidden size of {columns} is more than the {SIZES[-1]} that CUDA kernels take; choose the "
            "native executor."
        )


def _block(columns: int) -> int:
    return next(size for size in SIZES if columns <= size)
