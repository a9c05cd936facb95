"""The program `edge`: its commands, and what all of them share."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from apps import (
    align_command,
    cache_command,
    chat_command,
    doctor_command,
    eval_command,
    export_command,
    inspect_command,
    profile_command,
)
from apps.errors import run_safely
from apps.options import Debugging, set_debug

app = typer.Typer(
    name="edge",
    help="Run MiniCPM4 and Llama-shaped small models on this machine.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("chat")(chat_command.chat)
app.command("inspect")(inspect_command.inspect)
app.command("doctor")(doctor_command.doctor)
app.command("export")(export_command.export)
app.command("profile")(profile_command.profile)
app.command("align")(align_command.align)
app.add_typer(eval_command.app, name="eval")
app.add_typer(cache_command.app, name="cache")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edge {version('minicpm-edge')}")
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
