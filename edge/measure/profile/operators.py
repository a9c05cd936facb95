"""Time, bytes and operations of every operator of a pass, from the events of the native executor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from edge.config import KVType
from edge.executors.native import library as native
from edge.executors.protocol import Observable
from edge.measure.profile.cost import Roofline, arithmetic_of
from edge.measure.profile.schema import Operator, Row


@contextmanager
def observed(executor: Observable) -> Iterator[list[bytes]]:
    """Collects the raw events of everything that runs inside the block."""
    events: list[bytes] = []
    executor.observe(events.append)
    try:
        yield events
    finally:
        executor.observe(None)


def decode_events(events: list[bytes]) -> list[dict[str, Any]]:
    """The events of one pass, summed by operator and layer: the pieces of a prefill are one pass."""
    found: dict[tuple[str, int, str], list[float]] = defaultdict(lambda: [0, 0, 0])
    for raw in events:
        event = native.Event.from_buffer_copy(raw)
        totals = found[event.operation.decode(), event.layer, event.kernel.decode()]
        for i, value in enumerate((event.nanoseconds / 1e9, event.bytes, event.operations)):
            totals[i] += value
    return [
        {"operation": operation, "layer": layer, "kernel": kernel, "seconds": t, "bytes": b, "operations": o}
        for (operation, layer, kernel), (t, b, o) in found.items()
    ]


def summarise(
    passes: list[list[dict[str, Any]]], kv_type: KVType, roofline: Roofline
) -> tuple[Operator, ...]:
    """Medians over passes, in the order of the network, with the share of the nearer limit."""
    times: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    facts: dict[tuple[str, int, str], tuple[int, int]] = {}
    for one in passes:
        for entry in one:
            key = (entry["operation"], entry["layer"], entry["kernel"])
            times[key].append(entry["seconds"])
            facts[key] = (int(entry["bytes"]), int(entry["operations"]))
    found = []
    for (operation, layer, kernel), seconds in times.items():
        size, operations = facts[operation, layer, kernel]
        arithmetic = arithmetic_of(operation, kernel, kv_type)
        took = median(seconds)
        limits = {
            "": 0.0,
            "memory": size / roofline.read_bytes,
            arithmetic: operations / roofline.peak(arithmetic),
        }
        limit = max(limits, key=lambda name: limits[name])
        share = round(limits[limit] / took, 4) if took else 0.0
        found.append(Operator(operation, layer, kernel, took, size, operations, limit, share))
    return tuple(found)


def operator_totals(row: Row) -> dict[str, tuple[float, float]]:
    """operation -> (seconds over all layers, share of the nearer limit), in the order of the network."""
    times: dict[str, float] = defaultdict(float)
    limits: dict[str, float] = defaultdict(float)
    for entry in row.operators:
        times[entry.operation] += entry.seconds
        limits[entry.operation] += entry.seconds * entry.limit_share
    return {name: (time, limits[name] / time if time else 0.0) for name, time in times.items()}
