"""What commands share when they talk to a person: consoles, sizes, and the progress of a conversion."""

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


def format_bytes(count: float) -> str:
    """A size for people, in powers of 1000: 141 kB, 4.40 GB."""
    return _scaled(count, (" B", " kB", " MB", " GB"))


def format_count(count: float) -> str:
    """A number of parameters for people: 35.1K, 135M, 8.19B."""
    return _scaled(count, ("", "K", "M", "B"))


def _scaled(count: float, units: tuple[str, ...]) -> str:
    """Three significant digits, and never fewer than stand before the point."""
    size, power = float(count), 0
    while size >= 999.5 and power < len(units) - 1:
        size, power = size / 1000, power + 1
    digits = 0 if power == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f}{units[power]}"


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
