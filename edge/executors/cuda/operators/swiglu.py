"""The activation between the matrices of an MLP, see `kernels/cuda/swiglu.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device

BLOCK = 1024
"""Columns of one program."""


def swiglu(device: Device, partials: Address, x: Address, *, slices: int, rows: int, columns: int) -> None:
    """x float16 [rows, columns] = silu(gate) * up; partials float32 [slices, rows, 2 * columns], what
    `linear` left of gate and up as one matrix.
    """
    device.launch("swiglu", (-(-columns // BLOCK), rows, 1), (partials, x, slices, rows, columns))
