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


def output_console() -> Console:
    """A console on stdout; in a pipe it neither colours nor wraps at 80 columns."""
    from rich.console import Console

    return Console(highlight=False, **({} if sys.stdout.isatty() else {"width": 200}))


def error_console() -> Console:
    """A console on stderr, for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def format_bytes(count: float) -> str:
    """A size for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.{2 if count < 9.995 else 1}f} {unit}"


def format_count(count: float) -> str:
    """A number of parameters for people: 134.5M, 8.19B."""
    for unit in ("", "K", "M", "B"):
        if abs(count) < 999.5 or unit == "B":
            break
        count /= 1000
    return f"{count:.0f}{unit}" if not unit else f"{count:.{2 if count < 9.995 else 1}f}{unit}"


def printable(text: str) -> str:
    """Text of a model without control characters, which could steer the terminal."""
    return "".join(c for c in text if c >= " " and not "\x7f" <= c <= "\x9f" or c in "\n\t")


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
def convert_progress(label: str) -> Iterator[ConvertProgress]:
    """A progress bar on stderr for a conversion; it shows from the first report on, and only in a terminal."""
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
            task = bar.add_task(f"Converting {label}", total=total)
        bar.update(task, completed=done)

    try:
        yield report
    finally:
        bar.stop()
