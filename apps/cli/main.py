"""The program `edge`: its commands, and what all of them share."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edge import __version__
from edge.apps.cli.errors import Debugging, run_safely, set_debug, show_notices

COMMANDS = {
    "chat": "edge.apps.chat.command:chat",
    "serve": "edge.apps.serve.command:serve",
    "inspect": "edge.apps.inspect:inspect",
    "doctor": "edge.apps.doctor:doctor",
    "export": "edge.apps.export:export",
    "profile": "edge.apps.profile.command:profile",
    "align": "edge.apps.align:align",
    "eval": "edge.apps.evaluate:app",
    "train": "edge.apps.train:app",
    "cache": "edge.apps.cache:app",
}
"""Where each command is: a function, or a typer.Typer of its own; imported when it is used or listed."""


class _Commands(TyperGroup):
    """The commands, of which only the one that runs is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(import_module(module), name)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command(cmd_name)(function)
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="edge",
    cls=_Commands,
    help="Run MiniCPM4 and Llama-shaped small models on this machine.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


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
    show_notices()
    debugging = Debugging()
    return run_safely(
        lambda: app(obj=debugging, standalone_mode=False, prog_name="edge"), lambda: debugging.wanted
    )


if __name__ == "__main__":
    raise SystemExit(main())
