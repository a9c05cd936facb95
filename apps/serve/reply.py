"""What has come of one answer so far: its text, its thinking, its calls."""

from __future__ import annotations

from dataclasses import replace

from edge.apps.serve.answering import Event, Piece
from edge.engine.completion import Chunk, Completion
from edge.text.messages import ToolCall, new_call_id
from edge.text.reply import CallBegin, CallEnd, ContentText, ReasoningText, why_empty


class Reply:
    """Collects the events of one choice."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._ids: dict[int, str] = {}
        self.calls: list[ToolCall] = []
        self.chunks: list[Chunk] = []
        self._says = False  # whether something else than thoughts has come
        self._tokens_before = 0

    @property
    def content(self) -> str:
        """What is said."""
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """What was thought."""
        return "".join(self._reasoning)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens up to what is said, if something was thought before."""
        return self._tokens_before if self._reasoning else 0

    def call_id(self, index: int) -> str:
        """The id of a call, the same from its beginning to its end."""
        return self._ids.setdefault(index, f"call_{new_call_id()}")

    def take(self, event: Event) -> None:
        """Take what has come."""
        if isinstance(event, Piece):
            self.chunks += event.chunks
            for chunk in event.chunks:
                self._says = self._says or not all(isinstance(part, ReasoningText) for part in chunk.parts)
                self._tokens_before += chunk.token is not None and not self._says
        for part in event.parts:
            if isinstance(part, ContentText):
                self._content.append(part.text)
            elif isinstance(part, ReasoningText):
                self._reasoning.append(part.text)
            elif isinstance(part, CallBegin):
                self.call_id(part.index)
            elif isinstance(part, CallEnd):
                self.calls.append(replace(part.call, id=self.call_id(part.index)))

    def note(self, done: Completion) -> str | None:
        """Why there is nothing to read, if there is nothing."""
        if self._content or self.calls:
            return None
        return why_empty(bool(self._reasoning), done.stop_reason)
