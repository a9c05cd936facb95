"""`edge train`: from texts to a trained model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edge.apps.cli.errors import FAILED
from edge.apps.cli.options import DryRun, Json, Out, expand, given_flags, given_out
from edge.apps.cli.terminal import output_console
from edge.apps.train_data import tokenize, tokenizer
from edge.apps.train_draft import answers, draft
from edge.apps.train_run import Changes, check_torch, train_as
from edge.errors import EdgeError
from edge.system.units import format_count
from edge.train.config import declared_options, presets, read

app = typer.Typer(help="Train models.", no_args_is_help=True, add_completion=False)

app.command("tokenizer")(tokenizer)
app.command("tokenize")(tokenize)
app.command("answers")(answers)
app.command("draft")(draft)


@app.command("run")
@expand
def run(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help=f"A TOML file, or one of {', '.join(presets())}.")
    ],
    *,
    out: Out = None,
    change: Changes = None,
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
        check_torch()
        from edge.apps.train_plan import show_plan

        show_plan(found, processes, picture, as_json)
        return 0
    for name in ("processes", "picture"):
        if name in given_flags():
            raise typer.BadParameter("goes with --dry-run", param_hint=f"'--{name}'")
    if out is None:
        raise typer.BadParameter("give the folder of the run, or --dry-run", param_hint="'--out'")
    return train_as(found, out, as_json, f"Trained {out}/model; chat with it: edge chat {out}/model")


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
