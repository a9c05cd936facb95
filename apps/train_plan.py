"""How a run's plan is shown: `edge train run --dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.apps.cli.terminal import output_console, print_json
from edge.system.units import format_bytes, format_count

if TYPE_CHECKING:
    from edge.train.config import RunConfig

_BARS = " ▁▂▃▄▅▆▇█"


def show_plan(config: RunConfig, processes: int, picture: Path | None, as_json: bool) -> None:
    """Print the plan, and draw the schedule if asked to."""
    from edge.train.plan import draw_schedule, plan

    found = plan(config, processes)
    if picture is not None:
        draw_schedule(config, picture)
    if as_json:
        print_json({"schema": 1, **found.to_json()})
        return
    console = output_console()

    def line(name: str, text: str) -> None:
        console.print(f"{name:<12}  {text}", soft_wrap=True, highlight=False, markup=False)

    line(
        "parameters",
        f"{format_count(found.parameters)}, {format_count(found.active_parameters)} of them active",
    )
    line(
        "steps",
        f"{found.steps}: {found.warm_up_steps} of warm-up, {found.decay_steps} of decay; "
        f"{format_count(found.tokens_per_step)} tokens each, best at a loss of {found.suits_loss:.2f}",
    )
    line("tokens", f"{format_count(found.tokens)}, {found.tokens / found.parameters:.1f} per parameter")
    for name, epochs in found.epochs.items():
        line("", f"{name}: " + ("the texts are not there" if epochs is None else f"read {epochs:.2f} times"))
    line("operations", f"{found.flops:.3g}, {found.flops_per_token:.3g} per token")
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in found.memory.items())
    line(
        "memory",
        f"{format_bytes(sum(found.memory.values()))} a process of {found.processes}: {parts} (estimate)",
    )
    highest = max(found.rates) or 1.0
    bars = "".join(_BARS[round(rate / highest * (len(_BARS) - 1))] for rate in found.rates)
    line("rate", f"{bars}  highest {highest:g}, last {found.rates[-1]:.3g}")
