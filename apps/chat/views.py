"""How a chat appears: formatted in a terminal, as plain text in a pipe, or as JSON documents."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from edge.apps.chat.interrupts import cancel_on_interrupt
from edge.apps.cli.terminal import error_console, output_console, print_json, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edge.engine.completion import Completion
    from edge.engine.generation import Stream
    from edge.text.reply import ReplyPart


class View(Protocol):
    """Where a chat shows things."""

    def answer(self, stream: Stream) -> Completion:
        """Show an answer while it is being made, and why it ended if the model did not end it itself."""

    def show(self, content: RenderableType) -> None:
        """Show a remark or a table."""


class TerminalView:
    """Formatted answers in a terminal; Ctrl-C ends an answer."""

    def __init__(self, context: int) -> None:
        self._console = output_console()
        self._context = context

    def answer(self, stream: Stream) -> Completion:
        """Draw the answer as Markdown while it grows."""
        from edge.apps.chat.markdown_stream import MarkdownStream

        with cancel_on_interrupt(stream), quiet_keyboard(), MarkdownStream(self._console) as markdown:
            shown = ShownText()
            for chunk in stream:
                markdown.push(shown.push(chunk.parts))
            done = stream.result
        if note := stop_note(done, self._context):
            self._console.print(note, style="dim")
        return done

    def show(self, content: RenderableType) -> None:
        """Print on the terminal."""
        self._console.print(content)


class PlainView:
    """The text and nothing else on stdout, as it comes; remarks go to stderr."""

    def __init__(self, context: int) -> None:
        self._context = context

    def answer(self, stream: Stream) -> Completion:
        """Write the answer while it grows, and a line end after it."""
        clean = printable if sys.stdout.isatty() else str
        with stream:
            shown = ShownText()
            for chunk in stream:
                sys.stdout.write(clean(shown.push(chunk.parts)))
                sys.stdout.flush()
            done = stream.result
        sys.stdout.write("\n")
        sys.stdout.flush()
        if note := stop_note(done, self._context):
            error_console().print(note, style="dim", soft_wrap=True)
        return done

    def show(self, content: RenderableType) -> None:
        """Print on stderr, out of the answers' way."""
        error_console().print(content)


class JsonView(PlainView):
    """One JSON document on a line of stdout for every answer."""

    def __init__(self, context: int, describe: Callable[[Completion], dict[str, Any]]) -> None:
        super().__init__(context)
        self._describe = describe

    def answer(self, stream: Stream) -> Completion:
        """Wait for the answer and print its document."""
        with stream:
            done = stream.result
        print_json(self._describe(done))
        return done


class ShownText:
    """What is shown of a reply: thinking between marks, and what is said. Calls are the loop's."""

    def __init__(self) -> None:
        self._thinks = False

    def push(self, parts: Iterable[ReplyPart]) -> str:
        """The text of these parts."""
        from edge.text.reply import ContentText, ReasoningText

        found = []
        for part in parts:
            thinks = isinstance(part, ReasoningText)
            if thinks != self._thinks:
                found.append("<think>\n" if thinks else "\n</think>\n\n")
                self._thinks = thinks
            if isinstance(part, ReasoningText | ContentText):
                found.append(part.text)
        return "".join(found)


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """While this lasts, typed keys are not echoed into the answer; they wait for the next input line."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = list(before)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def stop_note(done: Completion, context: int) -> str | None:
    """Why an answer ended, unless the model ended it, whether it lacks a part of its form, and why there is
    nothing to read.
    """
    thinks = done.note is not None and bool(done.reasoning)
    lacks = "; it was still thinking" if thinks else "" if done.is_complete else "; the answer is incomplete"
    notes = {
        "length": f"(stopped: the limit of {len(done.tokens)} tokens is reached{lacks})",
        "context": f"(stopped: the context of {context} tokens is full; /reset begins anew{lacks})",
        "cancelled": f"(stopped: cancelled{lacks})",
        "stop": f"(stopped: a stop string came up{lacks})",
    }
    return notes.get(done.stop_reason) or (f"({done.note})" if done.note else None)
