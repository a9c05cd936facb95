"""What was measured beside what is wanted of an 8B int4 model at a context of 512, on an H100 or larger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Sequence[Mapping[str, Any]]]
"""By name, what the parts called `measured`."""

SHAPE = "8b"


def _bandwidth(figures: Figures) -> float:
    (found,) = figures["bandwidth"][-1:]
    return float(max(found["read"], found["copy"]))


def _one(figures: Figures, name: str, **asked: Any) -> Mapping[str, Any]:
    (found,) = (each for each in figures[name] if all(each[key] == value for key, value in asked.items()))
    return found


def _product(matrix: str) -> Callable[[Figures], float]:
    return lambda figures: (
        _one(figures, "product", shape=SHAPE, matrix=matrix, rows=1)["speed"] / _bandwidth(figures)
    )


def _steps(rows: int) -> Callable[[Figures], float]:
    def ratio(figures: Figures) -> float:
        many, one = (_one(figures, "step", shape=SHAPE, rows=count) for count in (rows, 1))
        return float(many["graph"] / one["graph"])

    return ratio


def _share_of_step(figures: Figures) -> float:
    step = _one(figures, "step", shape=SHAPE, rows=1)
    return float(step["bytes"] / step["graph"] / _bandwidth(figures))


def _long(figures: Figures) -> float:
    short, long = (_one(figures, "sparse step", shape=SHAPE, context=at) for at in (4096, 131_072))
    return float(short["graph"] / long["graph"])


def _prefill(figures: Figures) -> float:
    found = _one(figures, "prefill products", shape=SHAPE)
    return float(found["torch"] / found["seconds"])


TARGETS: tuple[tuple[str, str, float, Callable[[Figures], float]], ...] = (
    ("gate-up kernel, share of bandwidth at 1 row", "at least", 0.75, _product("gate_up")),
    ("head kernel, share of bandwidth at 1 row", "at least", 0.75, _product("head")),
    ("whole step, share of bandwidth at 1 row", "at least", 0.45, _share_of_step),
    ("8 rows, in steps of 1", "at most", 1.15, _steps(8)),
    ("16 rows, in steps of 1", "at most", 1.3, _steps(16)),
    ("sparse decoding at 128K, share of the speed at 4K", "at least", 0.75, _long),
    ("products of 2048 rows, share of the speed of fp16 cuBLAS", "at least", 0.6, _prefill),
)
"""Name, direction, wanted value, and how it is found."""


def judged(figures: Figures) -> list[dict[str, Any]]:
    """Every target with what was found; None where it was not measured."""
    rows = []
    for name, direction, wanted, find in TARGETS:
        try:
            found = round(find(figures), 4)
        except (KeyError, TypeError, ValueError):
            rows.append({"target": name, direction: wanted, "found": None, "hit": None})
            continue
        hit = found >= wanted if direction == "at least" else found <= wanted
        rows.append({"target": name, direction: wanted, "found": found, "hit": hit})
    return rows
