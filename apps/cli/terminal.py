"""What commands share when they talk: consoles, JSON documents, and the progress of a conversion."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

ConvertProgress = Callable[[int, int, str], None]
_PIPE_WIDTH = 200


def output_console() -> Console:
    """A console on stdout that prints text as it is; in a pipe it neither colours nor wraps at 80 columns."""
    return _console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def error_console() -> Console:
    """A console on stderr, for progress and remarks."""
    return _console(stderr=True)


def _console(**options: Any) -> Console:
    """A console that shows text as `printable` does: names and settings may come from anybody's file."""
    from rich.console import Console
    from rich.segment import Segment

    class PrintableConsole(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control else Segment(printable(text), style)

    return PrintableConsole(highlight=False, markup=False, emoji=False, **options)


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_JSON = re.compile("[\x7f-\x9f\ud800-\udfff]")  # controls, and halves of characters


def print_json(document: Any) -> None:
    """Print one JSON document on a line of stdout; as ASCII where stdout is not UTF-8.

    JSON has no infinity and no NaN: they become null.
    """
    ascii_only = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    text = json.dumps(_finite(document), ensure_ascii=ascii_only, allow_nan=False)
    sys.stdout.write(_NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def printable(text: str) -> str:
    """Text of a model without control characters, which could steer the terminal, and half characters."""
    return _UNPRINTABLE.sub("", text)


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
