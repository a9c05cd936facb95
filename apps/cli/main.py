"""The program `edge`: its commands, and what all of them share."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from edge import __version__
from edge.apps import align, cache, doctor, evaluate, export, inspect
from edge.apps.chat import command as chat
from edge.apps.cli.errors import run_safely
from edge.apps.cli.options import Debugging, set_debug
from edge.apps.profile import command as profile

app = typer.Typer(
    name="edge",
    help="Run MiniCPM4 and Llama-shaped small models on this machine.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("chat")(chat.chat)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.command("export")(export.export)
app.command("profile")(profile.profile)
app.command("align")(align.align)
app.add_typer(evaluate.app, name="eval")
app.add_typer(cache.app, name="cache")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edge {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _edge(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", callback=set_debug, help="Show the traceback of an error.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> int:
    """Entry point of the script `edge`; returns the exit code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the program
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (for good)
        elif isinstance(stream, io.TextIOWrapper):  # what can't be decoded or printed must not end a chat
            stream.reconfigure(errors="replace")
    debugging = Debugging()
    return run_safely(
        lambda: app(obj=debugging, standalone_mode=False, prog_name="edge"), lambda: debugging.wanted
    )


if __name__ == "__main__":
    raise SystemExit(main())
