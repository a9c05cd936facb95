"""The residual stream and its norms, see `kernels/cuda/norm.py`."""

from __future__ import annotations

from dataclasses import dataclass

from edge.executors.cuda.device import Address, Device


@dataclass(frozen=True)
class Joined:
    """A residual stream float32 [rows, columns], and what is to be added to it: scale times the sum of partial
    float32 [slices, rows, columns], in order; slices 0 is nothing.
    """

    stream: Address
    partial: Address
    rows: int
    columns: int
    slices: int
    scale: float


def add_norm(device: Device, joined: Joined, weight: Address, x: Address, *, eps: float) -> None:
    """Add, in place; then x float16 [rows, columns] = stream / rms(stream) * weight, float32 [columns]."""
    device.launch(
        "norm.add", (joined.rows, 1, 1), (joined.stream, joined.partial, weight, x, *_sizes(joined), eps)
    )


def final_norm(
    device: Device,
    joined: Joined,
    weight: Address,
    wanted: Address,
    x: Address,
    hidden: Address,
    *,
    count: int,
    eps: float,
    logit_scale: float,
) -> None:
    """Of `count` rows, wanted int32 [count]: hidden float32 [count, columns], and x float16 of the same shape,
    logit_scale times that. The stream stays as it is.
    """
    addresses = (joined.stream, joined.partial, weight, wanted, x, hidden)
    device.launch("norm.final", (count, 1, 1), (*addresses, *_sizes(joined), eps, logit_scale))


def _sizes(joined: Joined) -> tuple[int | float, ...]:
    return joined.rows, joined.columns, joined.slices, joined.scale
