"""The text of an answer as parts: what was thought, what is said, and what is to be called.

How calls are written is `edge.text.tools`', how thinking is marked `edge.text.thinking`'s; this module puts
the two behind each other. Text comes in any pieces, and the parts, joined, are the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from edge.text.messages import Tool
from edge.text.thinking import Thinking
from edge.text.tools.parts import CallArguments as CallArguments
from edge.text.tools.parts import CallBegin as CallBegin
from edge.text.tools.parts import CallEnd as CallEnd
from edge.text.tools.parts import CallReader, ToolFormat


@dataclass(frozen=True)
class ReasoningText:
    """A piece of what the model thinks."""

    text: str


@dataclass(frozen=True)
class ContentText:
    """A piece of what it says."""

    text: str


ReplyPart = ReasoningText | ContentText | CallBegin | CallArguments | CallEnd


class ReplyParser:
    """Reads one answer.

    Spaces and line ends around thinking and calls belong to neither. What begins like a call and is none
    stays text; a mark that is a control token is no text, wherever it stands.
    """

    def __init__(
        self,
        calls: ToolFormat | None = None,
        tools: Sequence[Tool] = (),
        thinking: Thinking | None = None,
        control: Collection[str] = (),
    ) -> None:
        """calls: how they are written, None if the answer can't have any. thinking: None if the model does
        not. control: marks that are control tokens.
        """
        self._calls, self._tools, self._thinking = calls, tuple(tools), thinking
        self._control = tuple(control)
        self._openings = () if calls is None else calls.openings
        self._read: Callable[[bool], bool] = self._content
        if thinking is not None:
            self._read = self._thought if thinking.is_open else self._start
        self._reader: CallReader | None = None
        self._parts: list[ReplyPart] = []
        self._held = ""
        self._blank = ""  # at the end of what was said or thought
        self._any = False  # something that is not blank was said, since the last thought or call
        self._said = False
        self._structure = False
        self._index = 0

    def push(self, text: str) -> list[ReplyPart]:
        """Take more text; returns the parts that are certain now."""
        return self._go_on(text, final=False)

    def finish(self) -> list[ReplyPart]:
        """The answer has ended: what was held back."""
        return self._go_on("", final=True)

    def _go_on(self, text: str, final: bool) -> list[ReplyPart]:
        self._held += text
        while self._read(final):
            pass
        if final and self._blank and not self._structure:
            self._parts.append(ContentText(self._blank))
        parts, self._parts = self._parts, []
        return parts

    def _start(self, final: bool) -> bool:
        """Whether it thinks."""
        assert self._thinking is not None
        opening, begun = self._thinking.opening, self._held.lstrip()
        if begun.startswith(opening):
            self._held = begun[len(opening) :]
            self._read = self._thought
            return True
        if opening.startswith(begun) and not final:
            return False
        self._read = self._content
        return True

    def _thought(self, final: bool) -> bool:
        assert self._thinking is not None
        self._structure = True
        closing = self._thinking.closing
        before, found, behind = self._held.partition(closing)
        if not found:
            keep = 0 if final else overlap(self._held, closing)
            before, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        text = self._blank + before
        text = text if self._any else text.lstrip()
        said = text.rstrip()
        self._blank = text[len(said) :]
        if said:
            self._any = True
            self._parts.append(ReasoningText(said))
        if not found:
            return False
        self._held, self._blank, self._any = behind, "", False
        self._read = self._content
        return True

    def _content(self, final: bool) -> bool:
        marks = (*self._openings_now(), *self._control)
        at, mark = _first(self._held, marks)
        partial = None if final else _partial(self._held, marks)
        if partial is not None and (at is None or partial <= at):
            self._say(self._held[:partial])
            self._held = self._held[partial:]
            # What was said may have ended the time of bare calls.
            return bool(self._held) and partial > 0 and marks != (*self._openings_now(), *self._control)
        if at is None:
            self._say(self._held)
            self._held = ""
            return False
        self._say(self._held[:at])
        if mark not in self._openings_now():
            if mark in self._openings:  # bare, and something was said before it
                self._say(mark)
            self._held = self._held[at + len(mark) :]
            return True
        assert self._calls is not None
        self._held = self._held[at:]
        self._reader = self._calls.reader(self._tools, self._index)
        self._read = self._call
        return True

    def _call(self, final: bool) -> bool:
        assert self._reader is not None
        reader = self._reader
        text, self._held = self._held, ""
        parts = reader.push(text, final)
        if parts:
            self._structure, self._blank, self._any = True, "", False
            self._parts += parts
            self._index += sum(isinstance(part, CallEnd) for part in parts)
        if reader.state == "more":
            return False
        if reader.state == "text":
            text = reader.text[: reader.used]
            self._said = True
            for mark in self._control:
                text = text.replace(mark, "")
            self._say(text)
        self._held = reader.text[reader.used :]
        self._reader, self._read = None, self._content
        return True

    def _openings_now(self) -> tuple[str, ...]:
        bare = self._calls is not None and self._calls.is_bare and (self._said or self._index > 0)
        return () if bare else self._openings

    def _say(self, text: str) -> None:
        text = self._blank + text
        if self._structure and not self._any:
            text = text.lstrip()
        said = text.rstrip() if self._structure or self._openings else text
        self._blank = text[len(said) :]
        if said:
            self._said = self._said or not said.isspace()
            self._any = True
            self._parts.append(ContentText(said))


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of a text that begins a mark and is not all of it."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


def _first(text: str, marks: Iterable[str]) -> tuple[int | None, str]:
    """The place of the first of these marks in a text, and the longest one there."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    return (min(found)[0], min(found)[2]) if found else (None, "")


def _partial(text: str, marks: Iterable[str]) -> int | None:
    """Where the end of a text begins that may become a mark; None if it can't."""
    longest = max((overlap(text, mark) for mark in marks), default=0)
    return len(text) - longest if longest else None


def joined(parts: Iterable[ReplyPart]) -> list[ReplyPart]:
    """The same parts with neighbours of a kind as one."""
    found: list[ReplyPart] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, ReasoningText) and isinstance(last, ReasoningText):
            found[-1] = ReasoningText(last.text + part.text)
        elif isinstance(part, ContentText) and isinstance(last, ContentText):
            found[-1] = ContentText(last.text + part.text)
        elif isinstance(part, CallArguments) and isinstance(last, CallArguments) and last.index == part.index:
            found[-1] = CallArguments(part.index, last.json_text + part.json_text)
        else:
            found.append(part)
    return found
