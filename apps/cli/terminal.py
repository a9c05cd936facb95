"""What commands share when they talk to a person: consoles, and the progress of a conversion."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

ConvertProgress = Callable[[int, int, str], None]
_PIPE_WIDTH = 200


def output_console() -> Console:
    """A console on stdout that prints text as it is; in a pipe it neither colours nor wraps at 80 columns."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def error_console() -> Console:
    """A console on stderr, for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """Text of a model without control characters, which could steer the terminal."""
    return "".join(c for c in text if (c >= " " and not "\x7f" <= c <= "\x9f") or c in "\n\t")


def state_folder() -> Path:
    """Where the program remembers things about its user, such as the input history. It may not exist yet."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "minicpm-edge"


@contextmanager
def convert_progress(label: str, action: str = "Converting") -> Iterator[ConvertProgress]:
    """A progress bar on stderr for a conversion: from the first report on, and only in a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = error_console()
    bar = Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task: TaskID | None = None

    def report(done: int, total: int, name: str) -> None:
        nonlocal task
        if task is None:
            bar.start()
            task = bar.add_task(f"{action} {label}", total=total)
        bar.update(task, completed=done)

    try:
        yield report
    finally:
        bar.stop()
