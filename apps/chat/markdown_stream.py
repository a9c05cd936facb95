"""Shows an answer as formatted Markdown while it is still being written.

Blocks that can't change any more (a paragraph after which another one began) are printed for good; only the
last block is drawn again and again. So nothing is printed twice, and the scrollback stays right. Of a block
that is taller than the window only the end is shown until it is complete.
"""

from __future__ import annotations

from itertools import pairwise
from time import monotonic
from types import TracebackType
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.text import Text

from edge.apps.cli.terminal import printable

_REDRAW_SECONDS = 0.08
# Without HTML: a model's `<b>` or `<think>` is text, and would vanish otherwise.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")


class _PlainHeading(Heading):
    """A heading in bold at the left, without a box."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _PlainCode(CodeBlock):
    """A code block in the terminal's own colours, without empty lines around it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme="ansi_dark", word_wrap=True, padding=(0, 1))


class ChatMarkdown(Markdown):
    """Markdown of a chat: single line breaks count, HTML is text, links show their address."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _PlainHeading,
        "fence": _PlainCode,
        "code_block": _PlainCode,
    }

    def __init__(self, markup: str) -> None:
        super().__init__("", inline_code_theme="ansi_dark", hyperlinks=False)
        self.markup = markup
        self.parsed = _PARSER.parse(markup)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


class MarkdownStream:
    """A context manager that draws the text pushed into it; leaving it prints what is left for good."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pending = ""
        self._waiting = True
        self._drawn = 0.0
        self._live = Live(
            Spinner("dots", style="dim"), console=console, transient=True, refresh_per_second=10
        )

    def __enter__(self) -> MarkdownStream:
        self._live.start()
        return self

    def push(self, text: str) -> None:
        """Add some text."""
        if not text:
            return
        if self._waiting:
            # From here on the drawing follows the text, not a clock.
            self._waiting = False
            self._live.stop()
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        self._pending += printable(text)
        if monotonic() - self._drawn >= _REDRAW_SECONDS:
            finished = self._take_finished_blocks()
            most = max(1, self._console.height - 2)
            # First the drawing, which printing repeats below the printed: else blocks flash up twice.
            self._live.update(_Trimmed(self._pending, most), refresh=not finished)
            self._print(finished)
            self._drawn = monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.update(Text(), refresh=True)
        self._live.stop()
        self._print(self._take_finished_blocks())
        self._console.print(_Trimmed(self._pending))
        self._pending = ""

    def _take_finished_blocks(self) -> list[str]:
        """Cut the blocks that can't change any more from the pending text."""
        lines = self._pending.split("\n")
        borders = [0, *_block_starts(self._pending)[1:]]
        self._pending = "\n".join(lines[borders[-1] :])
        return ["\n".join(lines[a:b]) for a, b in pairwise(borders)]

    def _print(self, blocks: list[str]) -> None:
        for block in blocks:
            self._console.print(Group(_Trimmed(block), Text()))


class _Trimmed:
    """Rendered Markdown without rich's empty lines around lists and tables, or only the end of it."""

    def __init__(self, markup: str, most_lines: int | None = None) -> None:
        self._markdown = ChatMarkdown(markup)
        self._most_lines = most_lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._markdown, options.update(height=None), pad=False)
        filled = [i for i, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        if not filled:
            return
        lines = lines[filled[0] : filled[-1] + 1]
        for line in lines[-self._most_lines :] if self._most_lines else lines:
            yield from line
            yield Segment.line()


def _block_starts(markup: str) -> list[int]:
    """The lines at which the top-level blocks begin."""
    tokens = _PARSER.parse(markup)
    return [token.map[0] for token in tokens if token.level == 0 and token.map and token.nesting >= 0]
