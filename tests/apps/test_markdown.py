"""The streamed Markdown: what stands on the screen in the end does not depend on how the text came in."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from edge.apps.chat.markdown_stream import MarkdownStream
from edge.apps.cli.terminal import printable
from edge.system.units import format_bytes, format_count

ANSWER = """# Boiling eggs

An egg is *easy* to boil, if one has `water`, patience,
and a **pot** that is large enough for all of the eggs that one wants to boil, which is a long sentence.

1. Heat the water.
2. Put the egg in:
   - gently
   - with a spoon

```python
def boil(egg):

    return egg * 2
```

| time | result |
|------|--------|
| 4    | soft   |

<think>Is this HTML?</think> Roses are red,
violets are <b>blue</b>. See [here](http://example.org).
"""


class Screen:
    """Just enough of a terminal for what rich's Live sends: text, line feeds, cursor up, erase line."""

    def __init__(self, width: int) -> None:
        self.width, self.lines, self.row, self.column = width, [""], 0, 0

    def feed(self, data: str) -> None:
        for code, character in re.findall(r"\x1b\[([?0-9;]*[A-Za-z])|([\s\S])", data):
            if code.endswith("A"):
                self.row -= int(code[:-1] or 1)
                assert self.row >= 0
            elif code.endswith("K"):
                self.lines[self.row] = ""
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif character:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
                self.column += 1
                assert self.column <= self.width

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip()


def shown(answer: str, step: int, monkeypatch: pytest.MonkeyPatch, height: int = 40) -> str:
    """The screen after `answer` came in pieces of `step` characters."""
    monkeypatch.setattr("edge.apps.chat.markdown_stream._REDRAW_SECONDS", 0.0)
    output, width = io.StringIO(), 60
    console = Console(file=output, force_terminal=True, width=width, height=height, color_system=None)
    with MarkdownStream(console) as stream:
        for at in range(0, len(answer), step):
            stream.push(answer[at : at + step])
    screen = Screen(width)
    screen.feed(output.getvalue())
    return screen.text()


@pytest.mark.parametrize("height", [40, 6])
@pytest.mark.parametrize("step", [1, 3, 17])
def test_pieces_give_the_same_screen_as_the_whole(step: int, height: int, monkeypatch: pytest.MonkeyPatch):
    assert shown(ANSWER, step, monkeypatch, height) == shown(ANSWER, len(ANSWER), monkeypatch, height)


def test_nothing_is_lost_or_hidden(monkeypatch: pytest.MonkeyPatch):
    screen = shown(ANSWER, 2, monkeypatch)
    lines = screen.splitlines()
    assert lines[:3] == ["Boiling eggs", "", "An egg is easy to boil, if one has water, patience,"]
    assert " 1 Heat the water." in lines
    assert "    • with a spoon" in lines
    assert " def boil(egg):" in lines
    assert "<think>Is this HTML?</think> Roses are red," in lines
    assert "violets are <b>blue</b>. See here (http://example.org)." in lines
    assert "\n\n\n" not in screen


def test_an_unfinished_code_block_is_shown(monkeypatch: pytest.MonkeyPatch):
    assert shown("Look:\n\n```python\nprint(1)", 1, monkeypatch).splitlines() == ["Look:", "", " print(1)"]


def test_an_empty_answer_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    assert shown("", 1, monkeypatch) == ""


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\rc\x9b1m\x07\n\td é你🙂") == "a[2Jbc1m\n\td é你🙂"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.4, "999 B"),
        (999.5, "1.00 kB"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_400, "999 kB"),
        (96_576_768, "96.6 MB"),
        (999_999, "1.00 MB"),
        (4.4e9, "4.40 GB"),
        (12.3e12, "12300 GB"),
    ],
)
def test_sizes(count: float, expected: str):
    assert format_bytes(count) == expected


def test_counts():
    assert [format_count(n) for n in (12, 35_136, 134_515_008, 8.19e9)] == ["12", "35.1K", "135M", "8.19B"]


def test_history_file_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    from edge.apps.chat.line_editor import _history

    _history().append_string("a secret")
    file = tmp_path / "minicpm-edge" / "chat_history"
    assert "a secret" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
