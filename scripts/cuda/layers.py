"""Norms and gates at real widths: against exact ones, and a row alone as beside others."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from edge.executors.cuda.device import Address
from edge.executors.cuda.operators.norm import added_norm
from edge.executors.cuda.operators.swiglu import swiglu
from edge.executors.cuda.trial import Trial

from .devices import Watched
from .extents import Extent, Shape
from .report import Report

LIMIT = 1e-3
"""As a share of the largest value: what comes out is float16."""

_SLICES = 3

Floats = npt.NDArray[np.float32]


def check_layers(device: Watched, report: Report, extent: Extent) -> None:
    """All shapes."""
    for shape in extent.shapes:
        report.run(f"norm {shape.name}", partial(_norms, device, report, shape, max(extent.rows)))
        report.run(f"swiglu {shape.name}", partial(_gates, device, report, shape, max(extent.rows)))


def _norms(device: Watched, report: Report, shape: Shape, rows: int) -> None:
    columns, scale, epsilon = shape.config.hidden_size, 0.25, shape.config.rms_norm_eps
    random = np.random.default_rng(columns)
    stream, partials, weights = (
        random.standard_normal(size, np.float32)
        for size in ((rows, columns), (_SLICES, rows, columns), columns)
    )
    added = stream + np.float32(scale) * _summed(partials)
    wide = added.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + epsilon) * weights

    def normed(stream: Floats, partials: Floats) -> tuple[Floats, npt.NDArray[np.float16]]:
        into = np.empty_like(stream)
        with Trial(device) as trial:
            address, given, factors = trial.sent(stream), trial.sent(partials), trial.sent(weights)
            x = trial.room(2 * stream.size)
            added_norm(
                *(device, address, given, factors, x),
                slices=_SLICES,
                rows=len(stream),
                columns=columns,
                scale=scale,
                epsilon=epsilon,
            )
            device.download(address, into)
            return into, _fetched(device, x, stream.shape)

    joined, x = normed(stream, partials)
    report.same(f"norm {shape.name}, stream", joined, added)
    report.near(f"norm {shape.name}, rows", x, wanted, LIMIT)
    alone = normed(stream[-1:], np.ascontiguousarray(partials[:, -1:]))[1]
    report.same(f"norm {shape.name}, the last row alone", alone, x[-1:])


def _gates(device: Watched, report: Report, shape: Shape, rows: int) -> None:
    columns = shape.config.intermediate_size
    partials = np.random.default_rng(columns).standard_normal((_SLICES, rows, 2 * columns), np.float32)
    gate, up = np.split(_summed(partials).astype(np.float64), 2, axis=1)
    wanted = gate / (1 + np.exp(-gate)) * up

    def gated(partials: Floats) -> npt.NDArray[np.float16]:
        count = partials.shape[1]
        with Trial(device) as trial:
            given, x = trial.sent(partials), trial.room(2 * count * columns)
            swiglu(device, given, x, slices=_SLICES, rows=count, columns=columns)
            return _fetched(device, x, (count, columns))

    x = gated(partials)
    report.near(f"swiglu {shape.name}, rows", x, wanted, LIMIT)
    alone = gated(np.ascontiguousarray(partials[:, -1:]))
    report.same(f"swiglu {shape.name}, the last row alone", alone, x[-1:])


def _summed(partials: Floats) -> Floats:
    """As kernels add them."""
    total = partials[0]
    for part in partials[1:]:
        total = total + part
    return total


def _fetched(device: Watched, address: Address, shape: tuple[int, ...]) -> npt.NDArray[np.float16]:
    found = np.empty(shape, np.float16)
    device.download(address, found)
    return found
