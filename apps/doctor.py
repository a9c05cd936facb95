"""`edge doctor`: what this machine and installation can do, what is wrong, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass

from edge.apps.cli.options import Json, expand
from edge.apps.cli.terminal import error_console, output_console, print_json
from edge.executors.options import RunOptions
from edge.system.options import several

_MARKS = {
    "ok": ("ok", "green"),
    "note": ("note", "dim"),
    "warning": ("warn", "yellow"),
    "problem": ("BAD", "red"),
}


@dataclass(frozen=True)
class DoctorOptions:
    """What must work."""

    executor: tuple[str | None, ...] = several(RunOptions, "executor")


@expand
def doctor(
    *,
    wanted: DoctorOptions,
    as_json: Json = False,
) -> int:
    """Check CPU, kernels, packages and cache; exits with 1 if what was asked for can't work."""
    from edge.executors.registry import NATIVE
    from edge.measure.doctor import diagnose

    console = error_console()
    with console.status("Checking") as status:
        found = diagnose(
            tuple(name or NATIVE for name in wanted.executor),
            progress=lambda name: status.update(f"Checking: {name}"),
        )
    if as_json:
        print_json(found.to_json())
        return 0 if found.healthy else 1
    output = output_console()
    for finding in found.findings:
        mark, style = _MARKS[finding.state]
        output.print(f"{mark:5}", style=style, end="")
        output.print(f"{finding.check}: {finding.detail}", soft_wrap=True)
        if finding.mend:
            output.print(f"      -> {finding.mend}", style="bold", soft_wrap=True)
    return 0 if found.healthy else 1
