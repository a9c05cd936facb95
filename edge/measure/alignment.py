"""Finds the first operator at which two traces (`edge.executors.trace`) part, and by how much."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.executors.trace import CALL
from edge.formats.guarded_json import parse_object

TOLERANCE = 5e-3
"""Relative difference that rounding explains: float16 keys and values give some 1e-3."""


@dataclass(frozen=True)
class Stage:
    """An operator of a call: the call's number, its name, its layer (-1 outside), and which of its name
    there.
    """

    call: int
    operation: str
    layer: int
    occurrence: int

    def __str__(self) -> str:
        where = f" of layer {self.layer}" if self.layer >= 0 else ""
        again = f" (number {self.occurrence + 1})" if self.occurrence else ""
        return f"{self.operation}{where} in call {self.call}{again}"


@dataclass(frozen=True)
class Difference:
    """difference: estimated distance of the outputs over the norm of A's; infinite for shapes that differ."""

    stage: Stage
    difference: float
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]


@dataclass(frozen=True)
class Alignment:
    """first: the first stage beyond the tolerance, None if there is none. worst: the largest difference of
    all.

    stages: how many were compared. only_a, only_b: names of operators that one trace lacks, as fused ones
    are. whole: which of "A" and "B" have no operators, because their executor runs a call as a whole: then
    only the logits of the calls were compared.
    """

    first: Difference | None
    worst: Difference
    stages: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    whole: tuple[str, ...]


def align(a: str | Path, b: str | Path, tolerance: float = TOLERANCE) -> Alignment:
    """Compare two trace files in the order of A. Raises EdgeError if they have nothing in common."""
    left, right = dict(_stages(Path(a))), dict(_stages(Path(b)))
    found = [_difference(stage, sums, right[stage]) for stage, sums in left.items() if stage in right]
    if not found:
        raise EdgeError("The two traces have no stage in common: trace the same prompt with both.")
    names_a = {stage.operation for stage in left}
    names_b = {stage.operation for stage in right}
    return Alignment(
        first=next((each for each in found if not each.difference <= tolerance), None),
        worst=max(found, key=lambda each: each.difference),
        stages=len(found),
        only_a=tuple(sorted(names_a - names_b)),
        only_b=tuple(sorted(names_b - names_a)),
        whole=tuple(name for name, names in (("A", names_a), ("B", names_b)) if names == {CALL}),
    )


def _difference(stage: Stage, a: dict[str, Any], b: dict[str, Any]) -> Difference:
    shape_a, shape_b = tuple(a["shape"]), tuple(b["shape"])
    if shape_a != shape_b or len(a["sketch"]) != len(b["sketch"]):
        return Difference(stage, float("inf"), shape_a, shape_b)
    distance = math.dist(a["sketch"], b["sketch"])
    distance = max(distance, abs(a["norm"] - b["norm"]))  # a lower bound that the sketch may miss
    scale = max(a["norm"], 1e-30)
    difference = distance / scale
    return Difference(stage, difference if math.isfinite(difference) else float("inf"), shape_a, shape_b)


def _stages(path: Path) -> Iterator[tuple[Stage, dict[str, Any]]]:
    """Every operator of the first executor in a trace with its checksum, in the order of time."""
    try:
        events = parse_object(path.read_bytes(), path, EdgeError, "record the trace again")["traceEvents"]
        executor = min((event["tid"] for event in events), default=1)
        seen: dict[tuple[int, str, int], int] = {}
        for event in sorted(events, key=lambda event: (event["args"]["call"], event["ts"] + event["dur"])):
            facts = event["args"]
            if event["tid"] != executor or "checksum" not in facts:
                continue
            key = (int(facts["call"]), str(event["name"]), int(facts.get("layer", -1)))
            seen[key] = seen.get(key, -1) + 1
            yield Stage(*key, seen[key]), _checksum(facts["checksum"])
    except OSError as error:
        raise EdgeError(f"Cannot read the trace '{path}': {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise EdgeError(
            f"'{path}' is not a trace of this program; make one with "
            f"EDGE_TRACE={shlex.quote(path.name)} edge chat ..."
        ) from None


def _checksum(facts: Any) -> dict[str, Any]:
    """What `edge.executors.trace` writes of a tensor; ValueError and the like for anything else."""
    numbers = {"shape": [int(size) for size in facts["shape"]], "sketch": [float(x) for x in facts["sketch"]]}
    return {**numbers, "norm": float(facts["norm"])}
