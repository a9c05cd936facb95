"""The text of an answer as parts: what was thought, what is said, and what is to be called.

How calls are written is `edge.text.tools`', how thinking is marked `edge.text.thinking`'s; this module puts
the two behind each other. Text comes in any pieces, and the parts, joined, are the same for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge.text.messages import ToolCall


@dataclass(frozen=True)
class ReasoningText:
    """A piece of what the model thinks."""

    text: str


@dataclass(frozen=True)
class ContentText:
    """A piece of what it says."""

    text: str


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


ReplyPart = ReasoningText | ContentText | CallBegin | CallArguments | CallEnd


class ReplyParser:
    """Reads one answer."""

    def push(self, text: str) -> list[ReplyPart]:
        """Take more text; returns the parts that are certain now."""
        raise NotImplementedError

    def finish(self) -> list[ReplyPart]:
        """The answer has ended: what was held back."""
        raise NotImplementedError


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
