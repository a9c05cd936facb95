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


_FIRST_PIECE = 512  # characters that a reader gets first: what is no call shows that soon

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
        self._unread = Unread()
        self._blank: list[str] = []  # at the end of what was said or thought
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
        self._unread.add(text)
        while self._read(final):
            pass
        if final and self._blank and not self._structure:
            self._parts.append(ContentText("".join(self._blank)))
        parts, self._parts = self._parts, []
        return parts

    def _start(self, final: bool) -> bool:
        """Whether it thinks."""
        assert self._thinking is not None
        opening, begun = self._thinking.opening, self._unread.rest.lstrip()
        if begun.startswith(opening):
            self._unread.take()
            self._unread.add(begun[len(opening) :])
            self._read = self._thought
            return True
        if opening.startswith(begun) and not final:
            return False
        self._read = self._content
        return True

    def _thought(self, final: bool) -> bool:
        assert self._thinking is not None
        self._structure = True
        closing, unread = self._thinking.closing, self._unread
        at = unread.find(closing)
        if at < 0:
            before = unread.take(len(unread) - (0 if final else overlap(unread.tail(len(closing)), closing)))
        else:
            before = unread.take(at)
            unread.take(len(closing))
        self._pass_on(before, ReasoningText)
        if at < 0:
            return False
        self._blank, self._any = [], False
        self._read = self._content
        return True

    def _content(self, final: bool) -> bool:
        unread, marks = self._unread, (*self._openings_now(), *self._control)
        at, mark = _first(unread, marks)
        partial = None if final else _partial(unread, marks)
        if partial is not None and (at is None or partial <= at):
            self._say(unread.take(partial))
            # What was said may have ended the time of bare calls.
            return len(unread) > 0 and partial > 0 and marks != (*self._openings_now(), *self._control)
        if at is None:
            self._say(unread.take())
            return False
        self._say(unread.take(at))
        if mark not in self._openings_now():
            if mark in self._openings:  # bare, and something was said before it
                self._say(mark)
            unread.take(len(mark))
            return True
        assert self._calls is not None
        self._reader = self._calls.reader(self._tools, self._index)
        self._read = self._call
        return True

    def _call(self, final: bool) -> bool:
        assert self._reader is not None
        reader, unread = self._reader, self._unread
        parts: list[ReplyPart] = []
        size = _FIRST_PIECE
        while reader.state == "more" and (len(unread) or final):
            piece = unread.take(size)
            parts += reader.push(piece, final and not len(unread))
            size *= 2
        if parts:
            self._structure, self._blank, self._any = True, [], False
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
        unread.put_back(reader.text, len(reader.text) - reader.used)
        self._reader, self._read = None, self._content
        return True

    def _openings_now(self) -> tuple[str, ...]:
        bare = self._calls is not None and self._calls.is_bare and (self._said or self._index > 0)
        return () if bare else self._openings

    def _say(self, text: str) -> None:
        self._said = self._said or bool(text.strip())
        self._pass_on(text, ContentText)

    def _pass_on(self, text: str, kind: type[ContentText] | type[ReasoningText]) -> None:
        """A part of this text, and of the blanks before it; those at its end wait for what follows them."""
        if self._structure and not self._any:
            self._blank, text = [], text.lstrip()
        said = text.rstrip() if self._structure or self._openings else text
        if said:
            self._any = True
            self._parts.append(kind("".join(self._blank) + said))
            self._blank = []
        if len(text) > len(said):
            self._blank.append(text[len(said) :])


class Unread:
    """Text that has not been read, and where the next of each mark stands in it.

    Copied, and searched for marks to its end, at each of many openings, a long text would take minutes.
    """

    def __init__(self) -> None:
        self._text, self._at = "", 0
        self._next: dict[str, tuple[int, int]] = {}  # from where it was looked for, and its place

    def __len__(self) -> int:
        return len(self._text) - self._at

    @property
    def rest(self) -> str:
        """All of it."""
        return self._text[self._at :]

    def tail(self, most: int) -> str:
        """Its last characters."""
        return self._text[max(self._at, len(self._text) - most) :]

    def add(self, text: str) -> None:
        """More has come."""
        if text:
            self._text, self._at = self.rest + text, 0
            self._next.clear()

    def take(self, most: int | None = None) -> str:
        """Its first characters, which count as read; all of it by default."""
        end = len(self._text) if most is None else min(self._at + most, len(self._text))
        taken, self._at = self._text[self._at : end], end
        return taken

    def put_back(self, text: str, count: int) -> None:
        """The last `count` characters of what was taken, the end of `text`, were not read after all."""
        if count <= self._at:
            self._at -= count
        else:
            self._text, self._at = text[len(text) - count :] + self.rest, 0
            self._next.clear()

    def find(self, mark: str) -> int:
        """The characters before the next one of these; -1 without any."""
        looked, at = self._next.get(mark, (len(self._text) + 1, -1))
        if looked > self._at or 0 <= at < self._at:
            at = self._text.find(mark, self._at)
            self._next[mark] = self._at, at
        return at if at < 0 else at - self._at


def why_empty(thinks: bool, stop_reason: str) -> str | None:
    """Why an answer has nothing to read and no calls; None for one that was cancelled, say.

    thinks: whether it has thoughts.
    """
    if thinks and stop_reason in ("length", "context"):
        return "The answer ended while it was thinking: allow more tokens, or a thinking_budget."
    if thinks:
        return "The model ended its answer after thinking, without saying anything."
    if stop_reason == "stop":
        return "The answer began with a stop string."
    if stop_reason == "eos":
        return "The model ended its answer at once."
    return None


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of a text that begins a mark and is not all of it."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


def _first(text: Unread, marks: Iterable[str]) -> tuple[int | None, str]:
    """The place of the first of these marks in a text, and the longest one there."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    return (min(found)[0], min(found)[2]) if found else (None, "")


def _partial(text: Unread, marks: Iterable[str]) -> int | None:
    """Where the end of a text begins that may become a mark; None if it can't."""
    longest = max((overlap(text.tail(len(mark)), mark) for mark in marks), default=0)
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
