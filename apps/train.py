"""`edge train`: from texts to a trained model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.apps.cli.errors import FAILED
from edge.apps.cli.options import DryRun, Json, Out, expand, given_flags, given_out
from edge.apps.cli.terminal import error_console, output_console, print_json
from edge.apps.train_data import tokenize, tokenizer
from edge.errors import EdgeError
from edge.system.units import format_count
from edge.train.config import declared_options, presets, read

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(help="Train models.", no_args_is_help=True, add_completion=False)

app.command("tokenizer")(tokenizer)
app.command("tokenize")(tokenize)

_SIGNALLED = 128
"""Exit code of a program that a signal ended, plus the signal's number."""


@app.command("run")
@expand
def run(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help=f"A TOML file, or one of {', '.join(presets())}.")
    ],
    *,
    out: Out = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another value for an option, such as schedule.steps=100."
        ),
    ] = None,
    dry_run: DryRun = False,
    processes: Annotated[
        int, typer.Option(min=1, help="With --dry-run: how many processes will share the run.")
    ] = 1,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --dry-run: draw the schedule into this PNG.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Train a model as a TOML file says; under torchrun with many processes."""
    try:
        found = read(config, change or ())
    except EdgeError:
        if os.environ.get("RANK", "0") != "0":  # torchrun's first process says the same
            return FAILED
        raise
    if dry_run:
        from edge.apps.train_plan import show_plan

        show_plan(found, processes, picture, as_json)
        return 0
    for name in ("processes", "picture"):
        if name in given_flags():
            raise typer.BadParameter("goes with --dry-run", param_hint=f"'--{name}'")
    if out is None:
        raise typer.BadParameter("give the folder of the run, or --dry-run", param_hint="'--out'")
    from edge.train.distributed import ToldByFirst
    from edge.train.pretrain import train

    watcher = TerminalWatcher(error_console())
    try:
        outcome = train(found, out, watcher)
    except ToldByFirst:
        return FAILED
    if outcome.first and as_json:
        print_json({"schema": 1, "run": str(out), "step": outcome.step, **watcher.last})
    elif outcome.first and outcome.model is not None:
        output_console().print(
            f"Trained {outcome.model}; chat with it: edge chat {outcome.model}", soft_wrap=True
        )
    return 0 if outcome.signal is None else _SIGNALLED + outcome.signal


@app.command("options")
@expand
def options(
    section: Annotated[str | None, typer.Argument(metavar="[SECTION]", help="Only this section's.")] = None,
) -> None:
    """List the options of a run's TOML file."""
    console = output_console()
    found = [each for each in declared_options() if section in (None, each.name.partition(".")[0])]
    if not found:
        sections = dict.fromkeys(each.name.partition(".")[0] for each in declared_options())
        raise typer.BadParameter(f"choose one of {', '.join(sections)}", param_hint="SECTION")
    for each in found:
        console.print(f"{each.name} = {each.default}", style="bold", markup=False, highlight=False)
        choices = f" One of {', '.join(each.choices)}." if each.choices else ""
        console.print(f"    {each.help}{choices}", soft_wrap=True, markup=False, highlight=False)


@app.command("batch")
@expand
def batch(
    loss: Annotated[float, typer.Argument(metavar="LOSS", help="In nats per token, that is hoped for.")],
) -> None:
    """Print how many tokens a step should have to reach a loss with the fewest (MiniCPM's fit)."""
    from edge.train.scaling import best_batch

    output_console().print(f"{format_count(best_batch(loss))} tokens a step")


@app.command("plot")
@expand
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    *,
    out: Out = None,
    average: Annotated[
        int, typer.Option(min=1, help="Lines of the log that a point of the curve is the mean of.")
    ] = 1,
) -> None:
    """Draw the losses and learning rates of runs into one picture."""
    from edge.train.plot import plot_runs

    plot_runs(runs, given_out(out), average)
    output_console().print(f"Wrote {out}.", soft_wrap=True)


class TerminalWatcher:
    """A line on the terminal that is written anew, or lines where it is none. last: the log's last line."""

    def __init__(self, console: Console) -> None:
        self._console, self._live = console, console.is_terminal
        self._steps, self._first, self._began = 0, 0, 0.0
        self.last: dict[str, Any] = {}

    def begin(self, first: int, steps: int) -> None:
        """The run goes from step `first` to `steps`."""
        self._first, self._steps, self._began = first, steps, time.monotonic()
        if first:
            self.say(f"Goes on after step {first} of {steps}.")

    def step(self, record: dict[str, Any]) -> None:
        """A line of the log."""
        self.last = record
        text = self._line(record)
        if self._live and record["step"] < self._steps:
            self._console.file.write(f"\r\x1b[2K{text[: self._console.width - 1]}")
            self._console.file.flush()
        else:
            self.say(text)

    def say(self, sentence: str) -> None:
        """Something that happened."""
        if self._live:
            self._console.file.write("\r\x1b[2K")
        self._console.print(sentence, soft_wrap=True, markup=False, highlight=False)

    def _line(self, record: dict[str, Any]) -> str:
        step, loss = record["step"], record["loss"]
        per_step = (time.monotonic() - self._began) / max(step - self._first, 1)
        held_out = [f"{name} {value:.4f}" for name, value in record.items() if name.startswith("held_out/")]
        parts = [
            f"step {step}/{self._steps}",
            "loss -" if loss is None else f"loss {loss:.4f}",
            *held_out,
            f"rate {record['learning_rate']:.2e}",
            f"{format_count(record['tokens_per_second'])} tokens/s",
            f"{record['utilisation']:.0%} of peak",
            f"{_duration(per_step * (self._steps - step))} left",
        ]
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
