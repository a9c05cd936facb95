"""The one place where an error becomes a sentence on stderr and an exit code, and a notice a sentence."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import typer

from edge.apps.cli.terminal import error_console
from edge.errors import EdgeError, readable
from edge.system.notices import EdgeWarning

FAILED = 1
USAGE = 2
INTERRUPTED = 130


@dataclass
class Debugging:
    """The object of typer's context. wanted: whether the user asked for tracebacks."""

    wanted: bool = False


def set_debug(context: typer.Context, wanted: bool) -> None:
    """Typer's callback of `--debug`, which may stand before or after the command."""
    context.obj.wanted |= wanted


class FormerNameError(EdgeError):
    """A name was used that an option had once; the sentence tells the new one."""

    exit_code = USAGE


def run_safely(program: Callable[[], object], debug: Callable[[], bool]) -> int:
    """Run `program` and return the process's exit code: its own if it is a number, else 0.

    An EdgeError or a usage error is one sentence on stderr. So is any other error, unless debug() is true:
    then its traceback is printed.
    """
    try:
        code = program()
        # Here and not at the interpreter's exit, where a closed pipe would print a traceback.
        sys.stdout.flush()
        if code == INTERRUPTED:
            say("Interrupted.")
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        say("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `| head` does: nobody is left to tell.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug():
            traceback.print_exc()
        if sentence := _sentence(error):
            say(sentence)
        return int(getattr(error, "exit_code", FAILED))


def show_notices() -> None:
    """From now on a notice is one sentence on stderr; other warnings stay as they are."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, EdgeWarning):
            say(str(message), "Note: ", "bold yellow")
        else:
            usual(message, category, *place, **options)

    warnings.showwarning = show


def say(sentence: str, label: str = "Error: ", style: str = "bold red") -> None:
    """Print an error, or what the label names, on stderr: one line, in a terminal wrapped between words."""
    from rich.text import Text

    console = error_console()
    text = label + readable(" ".join(sentence.split()))
    if sys.stderr.isatty():
        text = _wrapped(text, console.width)
    shown = Text(text)
    shown.stylize(style, 0, len(label))
    with suppress(OSError):
        console.print(shown, soft_wrap=True)


def _wrapped(text: str, width: int) -> str:
    """Lines of at most `width` columns. A longer word (a path) stays whole, so that it can be copied."""
    from rich.cells import cell_len

    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and cell_len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _sentence(error: Exception) -> str:
    if isinstance(error, EdgeError):
        return str(error)
    if hasattr(error, "format_message"):  # typer's usage errors
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "edge"
        message = str(error.format_message()).rstrip(".")
        return (
            message and f"{message} (see `{command} --help`)."
        )  # without a message the help is on the screen
    if isinstance(error, MemoryError):
        return "The memory is exhausted; choose a smaller model, a shorter context or a smaller quantization."
    if isinstance(error, OSError) and error.strerror:
        where = f" ('{error.filename}')" if error.filename else ""
        return f"The system refused: {error.strerror}{where}."
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"Something unexpected went wrong ({what}); run this again with --debug and report the traceback."
