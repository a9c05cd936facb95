"""`edge doctor`: what this machine and installation can do, what is wrong, and what mends it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from edge.apps.cli.options import Json, expand
from edge.apps.cli.terminal import error_console, output_console

_MARKS = {
    "ok": ("ok", "green"),
    "note": ("note", "dim"),
    "warning": ("warn", "yellow"),
    "problem": ("BAD", "red"),
}


@expand
def doctor(
    *,
    executor: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An executor that must work; repeatable.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check CPU, kernels, packages and cache; exits with 1 if something that was asked for can't work."""
    from edge.measure.doctor import diagnose

    console = error_console()
    with console.status("Checking") as status:
        found = diagnose(
            tuple(executor or ("native",)), progress=lambda name: status.update(f"Checking: {name}")
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return 0 if found.healthy else 1
    output = output_console()
    for finding in found.findings:
        mark, style = _MARKS[finding.state]
        output.print(f"{mark:5}", style=style, end="")
        output.print(f"{finding.check}: {finding.detail}", soft_wrap=True)
        if finding.mend:
            output.print(f"      -> {finding.mend}", style="bold", soft_wrap=True)
    return 0 if found.healthy else 1
