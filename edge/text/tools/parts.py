"""What the reader of a call tells, piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from edge.text.messages import Tool, ToolCall

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
State = Literal["more", "done", "text"]


@dataclass(frozen=True)
class CallBegin:
    """A call begins. index: 0 for the first of an answer."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the JSON text of its arguments."""

    index: int
    json_text: str


@dataclass(frozen=True)
class CallEnd:
    """The call is whole. call: without an id; its arguments are raw text if they could not be read."""

    index: int
    call: ToolCall


CallPart = CallBegin | CallArguments | CallEnd


def whole(index: int, call: ToolCall) -> list[CallPart]:
    """The parts of a call that is known at once."""
    return [CallBegin(index, call.name), CallArguments(index, call.arguments_json), CallEnd(index, call)]


class CallReader(ABC):
    """Reads one block of calls, in whatever pieces it comes.

    text: all of it since the opening, which `push` gets first. state: `more` text is needed; the calls are
    `done`; or it is `text` of the answer and no call. used: characters that are done with, or are such text;
    what follows them belongs to whoever asked.
    """

    def __init__(self) -> None:
        self.text = ""
        self.state: State = "more"
        self.used = 0
        self._final = False
        self._parts: list[CallPart] = []
        self._steps = self._read()

    def push(self, text: str, final: bool = False) -> list[CallPart]:
        """Take more text. final: nothing more will come, so the state is not `more` afterwards."""
        self.text += text
        self._final = final
        try:
            next(self._steps)
        except StopIteration as end:
            self.state, self.used = end.value
        parts, self._parts = self._parts, []
        return parts

    @abstractmethod
    def _read(self) -> Steps[tuple[State, int]]:
        """Yields where more text is needed, and only while that may come; returns state and used."""

    def _starts(self, at: int, *marks: str) -> Steps[str | None]:
        """Which of these texts stands at a place, the first that fits."""
        for mark in marks:
            while not self._final and len(self.text) - at < len(mark) and mark.startswith(self.text[at:]):
                yield
            if self.text.startswith(mark, at):
                return mark
        return None

    def _blank(self, at: int, others: str = "") -> Steps[int]:
        """The place behind spaces, line ends and `others`."""
        while True:
            while at < len(self.text) and (self.text[at].isspace() or self.text[at] in others):
                at += 1
            if at < len(self.text) or self._final:
                return at
            yield

    def _find(self, mark: str, at: int, other: str | None = None) -> Steps[int]:
        """Where `mark` stands next, or -1, also if `other` comes before it."""
        longest = max(len(mark), len(other or ""))
        while True:
            found = self.text.find(mark, at)
            if other is not None and self.text.find(other, at, found if found >= 0 else None) >= 0:
                return -1
            if found >= 0 or self._final:
                return found
            at = max(at, len(self.text) - longest + 1)
            yield


class ToolFormat(Protocol):
    """How a model writes calls."""

    @property
    def openings(self) -> tuple[str, ...]:
        """Texts with which calls may begin."""

    @property
    def is_bare(self) -> bool:
        """An opening counts at the beginning of the answer only: it may be part of any text."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are structure, and control tokens of some models."""

    def reader(self, tools: Sequence[Tool], first: int) -> CallReader:
        """A reader whose first call has the index `first`."""

    def write(self, calls: Sequence[ToolCall], tools: Sequence[Tool] = ()) -> str:
        """The text of calls."""

    def rules(self, tools: Sequence[Tool], lenient: bool, special: Mapping[str, int]) -> Rules:
        """The grammar of calls. lenient: keywords of schemas that can't be kept to are ignored, otherwise an
        EdgeError names them. special: ids of the control tokens by their texts.
        """


@dataclass(frozen=True)
class Rules:
    """The grammar of a block of calls.

    A block is `begin`, calls with `between` between them, and `end`; the three are texts, in which control
    tokens may stand. several: a further call is in a block of its own, with this text before it; None if it
    goes into the same one. call: name of the rule for a call; lark: the rules.
    """

    begin: str
    end: str
    between: str
    several: bool
    call: str
    lark: str
