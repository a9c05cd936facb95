"""Tools of `edge chat`: the functions of a file, and whether a call may run."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.apps.cli.terminal import error_console, printable
from edge.errors import EdgeError
from edge.text.messages import ToolCall

_MODULE = "edge_chat_tools"
_LONGEST = 500  # characters of a call that are shown


def functions_of(path: Path) -> list[Callable[..., Any]]:
    """The public functions that a Python file defines. The file is run.

    Raises EdgeError with one sentence if it fails, or has none.
    """
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise EdgeError(f"The tools '{path}' are no Python file: name one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # where dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # it may call exit
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f" in line {line}" if line else ""
        raise EdgeError(f"The tools '{path}' fail{where} ({type(error).__name__}: {error}).") from None
    found: list[Callable[..., Any]] = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == _MODULE and not name.startswith("_")
    ]
    if not found:
        raise EdgeError(f"The tools '{path}' have no public function: define one with types and a docstring.")
    return found


def words(call: ToolCall) -> str:
    """A call on one line."""
    return shortened(f"{call.name} {call.arguments_json}")


def shortened(text: str) -> str:
    """A text on one line, its beginning if it is long."""
    text = printable(text).replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def ask(call: ToolCall) -> bool:
    """Whether the user lets a call run; the question goes to stderr, so that stdout has answers only."""
    console = error_console()
    console.print(f"Call {words(call)}? [y/N] ", end="", soft_wrap=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        console.print()
        return False
    return answer.strip().lower() in ("y", "yes")
