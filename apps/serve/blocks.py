"""An answer as blocks behind each other: thinking, text, calls. APIs whose streams open and close such parts
write these changes in their own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from edge.apps.serve.answering import Answers, End, Event, Piece
from edge.apps.serve.reply import Reply
from edge.engine.completion import Chunk
from edge.text.messages import ToolCall
from edge.text.reply import CallArguments, CallBegin, CallEnd, ContentText, ReasoningText


@dataclass
class Block:
    """One part of an answer.

    index: its place. name, call_id: of a call. is_whole: it has ended by itself, and not with the answer.
    call: what came of a call, once it is whole.
    """

    kind: Literal["reasoning", "text", "call"]
    index: int
    name: str = ""
    call_id: str = ""
    pieces: list[str] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    is_whole: bool = False
    call: ToolCall | None = None

    @property
    def text(self) -> str:
        """What is thought or said, or the JSON text of a call's arguments."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class Change:
    """What has happened to a block. text, chunks: what came to it, where it has grown."""

    what: Literal["opened", "grown", "closed"]
    block: Block
    text: str = ""
    chunks: Sequence[Chunk] = ()


class Blocks:
    """Collects the events of one answer."""

    def __init__(self) -> None:
        self.reply = Reply()
        self.blocks: list[Block] = []
        self._open: Block | None = None
        self._waiting: list[Chunk] = []  # tokens whose text has not come yet
        self._changes: list[Change] = []

    def take(self, event: Event) -> list[Change]:
        """Take what has come; returns what it changes."""
        self.reply.take(event)
        if isinstance(event, Piece):
            self._waiting += [chunk for chunk in event.chunks if chunk.token is not None]
        for part in event.parts:
            if isinstance(part, ReasoningText):
                self._grow(self._of("reasoning"), part.text)
            elif isinstance(part, ContentText):
                self._grow(self._of("text"), part.text)
            elif isinstance(part, CallBegin):
                self._close(True)
                self._begin(Block("call", len(self.blocks), part.name, self.reply.call_id(part.index)))
            elif isinstance(part, CallArguments):
                assert self._open is not None
                self._grow(self._open, part.json_text)
            elif isinstance(part, CallEnd):
                assert self._open is not None
                self._open.call = part.call
                if not self._open.pieces:
                    self._grow(self._open, part.call.arguments_json)
                self._close(True)
        if not isinstance(event, Piece):
            self._close(event.completion.stop_reason in ("eos", "stop"))
        changes, self._changes = self._changes, []
        return changes

    def add_empty(self) -> list[Change]:
        """An empty text, for an API in which an answer says something."""
        self._begin(Block("text", len(self.blocks)))
        self._close(True)
        changes, self._changes = self._changes, []
        return changes

    def _of(self, kind: Literal["reasoning", "text"]) -> Block:
        if self._open is None or self._open.kind != kind:
            self._close(True)
            self._begin(Block(kind, len(self.blocks)))
        assert self._open is not None
        return self._open

    def _begin(self, block: Block) -> None:
        self._open = block
        self.blocks.append(block)
        self._changes.append(Change("opened", block))

    def _grow(self, block: Block, text: str) -> None:
        chunks: Sequence[Chunk] = self._waiting
        self._waiting = []
        block.pieces.append(text)
        block.chunks += chunks
        self._changes.append(Change("grown", block, text, chunks))

    def _close(self, whole: bool) -> None:
        if self._open is not None:
            self._open.is_whole = whole
            self._changes.append(Change("closed", self._open))
            self._open = None


async def collect(answers: Answers) -> tuple[Blocks, End]:
    """The blocks and the end of the one answer to a request, when it is whole. Raises what `answers` do."""
    blocks = Blocks()
    end: End | None = None
    async with answers:
        async for events in answers:
            for each in events:
                blocks.take(each)
                end = each if isinstance(each, End) else end
    assert end is not None
    return blocks, end
