"""`edge align`: where two executors, or two settings of one, begin to differ."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.apps.cli.options import Json, expand
from edge.apps.cli.terminal import output_console, print_json
from edge.measure.alignment import TOLERANCE

if TYPE_CHECKING:
    from edge.measure.alignment import Difference


@expand
def align(
    a: Annotated[Path, typer.Argument(metavar="A", help="A trace: EDGE_TRACE=a.json edge chat ...")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another of the same prompt.")],
    *,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Relative difference that does not count.")
    ] = TOLERANCE,
    as_json: Json = False,
) -> int:
    """Find the first operator whose outputs differ in two traces; exits with 1 if there is one."""
    from edge.measure.alignment import align as compare

    found = compare(a, b, tolerance)
    if as_json:
        document = {
            "schema": 1,
            "tolerance": tolerance,
            "first": None if found.first is None else _facts(found.first),
            "worst": _facts(found.worst),
            "stages": found.stages,
            "only_a": found.only_a,
            "only_b": found.only_b,
            "whole": found.whole,
        }
        print_json(document)
        return 0 if found.first is None else 1
    console = output_console()
    for name in found.whole:
        console.print(
            f"{name} has no operators, because its executor (onnx, executorch) runs a call as a whole: only "
            "the logits of each call were compared. Traces of native and torch show every stage.",
            style="yellow",
            soft_wrap=True,
        )
    for name, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            console.print(f"Only {name} has: {', '.join(only)}", style="dim", soft_wrap=True)
    if found.first is None:
        console.print(f"{found.stages} stages agree within {tolerance:g}.", style="green")
    else:
        console.print(f"First difference: {_sentence(found.first)}", style="red", soft_wrap=True)
    console.print(f"Largest difference: {_sentence(found.worst)}", soft_wrap=True)
    return 0 if found.first is None else 1


def _sentence(difference: Difference) -> str:
    if difference.shape_a != difference.shape_b:
        return f"{difference.stage}: shape {difference.shape_a} in A, {difference.shape_b} in B"
    return f"{difference.stage}: {difference.difference:.3g} of its norm"


def _facts(difference: Difference) -> dict[str, Any]:
    facts = asdict(difference)
    stage = facts.pop("stage")
    value = facts.pop("difference")
    return {**stage, "difference": value if math.isfinite(value) else None, **facts}
