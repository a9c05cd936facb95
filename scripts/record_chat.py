"""Records the picture of README: a real `edge chat` in a pseudo-terminal, drawn as an SVG.

    python scripts/record_chat.py [--out docs/images/chat.svg]

The program runs as a user would run it, with a fixed seed; pexpect types, pyte keeps the screen, rich draws
it. The picture needs no font and no file beside it. Speeds in it are this machine's: let it be idle.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from edge.formats.atomic import write_file

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "chat.svg"
COMMAND = "edge chat smollm2-135m --seed 1"
TYPED = ("Explain in two sentences why the sky is blue.", "Name three fruits.", "/stats")
COLUMNS, ROWS = 100, 80  # more rows than a session takes: nothing scrolls away
READY, TAKEN = b"\x1b[?2004h", b"\x1b[?2004l"  # the input line switches bracketed paste on, and off again
THEME = TerminalTheme(
    background=(13, 17, 23),
    foreground=(230, 237, 243),
    normal=[
        *((72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)),
        *((88, 166, 255), (188, 140, 255), (57, 197, 207), (177, 186, 196)),
    ],
    bright=[
        *((139, 148, 158), (255, 161, 152), (86, 211, 100), (227, 179, 65)),
        *((121, 192, 255), (210, 168, 255), (86, 212, 221), (255, 255, 255)),
    ],
)
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>A terminal with edge chat</title>
<style>
.{unique_id}-matrix {{ font-family: FONTS; font-size: {char_height}px; white-space: pre; }}
.{unique_id}-title {{ font-family: FONTS; font-size: 18px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
""".replace("FONTS", FONTS)


class Screen(pyte.Screen):
    """A terminal that shows faint text as grey, which pyte does not know, and answers the program.

    answer: takes what the terminal sends by itself, as where the cursor is.
    """

    answer: Callable[[str], Any]

    def write_process_input(self, data: str) -> None:
        self.answer(data)

    def select_graphic_rendition(self, *attributes: int, **kwargs: Any) -> None:
        grey = {2: (90,), 22: (22, 39)}
        super().select_graphic_rendition(*(n for a in attributes for n in grey.get(a, (a,))), **kwargs)


def record(command: str, typed: tuple[str, ...]) -> Screen:
    """The screen after every line of `typed` was answered; `command` stands on its first line."""
    screen = Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(f"\x1b[1;32m$\x1b[0m {command}\r\n".encode())
    program, *arguments = command.split()
    with tempfile.TemporaryDirectory() as state:  # of a history without lines
        terminal = {"TERM": "xterm-256color", "XDG_STATE_HOME": state}
        child = pexpect.spawn(
            str(Path(sys.executable).parent / program),
            arguments,
            env={**os.environ, **terminal},
            dimensions=(ROWS, COLUMNS),
            timeout=120,
        )
        screen.answer = child.send
        try:
            _feed_until(child, stream, READY)
            for line in typed:
                child.send(line + "\r")
                _feed_until(child, stream, TAKEN)
                _feed_until(child, stream, READY)
            child.expect([pexpect.TIMEOUT], timeout=0.5)  # the rest of the last input line
            stream.feed(child.before)
            child.sendeof()
            child.expect(pexpect.EOF)
        finally:
            child.close(force=True)
    return screen


def _feed_until(child: pexpect.spawn, stream: pyte.ByteStream, end: bytes) -> None:
    child.expect_exact(end)
    stream.feed(child.before + child.after)


def lines_of(screen: Screen) -> list[Text]:
    """The lines of a screen, empty ones in a row as one: the status line is at the bottom of the terminal."""
    lines: list[Text] = []
    for row in range(screen.lines):
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        line = Text()
        for style, same in groupby(cells, _style):
            line.append("".join(cell.data for cell in same), style)
        line.rstrip()
        if line.plain or (lines and lines[-1].plain):
            lines.append(line)
    return lines


def _style(cell: pyte.screens.Char) -> Style:
    def color(name: str) -> str | None:
        if name == "default":
            return None
        if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
            return f"#{name}"
        name = name.replace("brown", "yellow")
        return name.replace("bright", "bright_") if name.startswith("bright") else name

    return Style(
        color=color(cell.fg),
        bgcolor=color(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def drawn(lines: list[Text]) -> str:
    """An SVG of a terminal with these lines."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), color_system="truecolor")
    for line in lines:
        console.print(line, soft_wrap=True)
    return console.export_svg(title="edge chat", theme=THEME, code_format=SVG, unique_id="chat")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, drawn(lines_of(record(COMMAND, TYPED))).encode())
    print(out)


if __name__ == "__main__":
    main()
