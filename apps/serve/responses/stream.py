"""A response as a stream of events, numbered."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from edge.apps.serve.answering import Answers, End
from edge.apps.serve.blocks import Block, Blocks, Change
from edge.apps.serve.responses.form import Form
from edge.apps.serve.sse import DONE, KEEP_ALIVE, event
from edge.apps.serve.state import Asked, Served
from edge.apps.serve.streaming import told


class EventWriter:
    """Writes the events of one response."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._next = 0

    async def write(
        self, served: Served, asked: Asked, answers: Answers, ended: Callable[[End, Blocks], dict[str, Any]]
    ) -> AsyncGenerator[bytes, None]:
        """All of them; an error is the last but one. ended: gives the whole response."""
        blocks = Blocks()
        end: End | None = None
        try:
            async with answers:
                begun = self._form.begun()
                yield self._event("created", response=begun) + self._event("in_progress", response=begun)
                async for events in answers:
                    data = [self._written(change) for each in events for change in blocks.take(each)]
                    end = next((each for each in events if isinstance(each, End)), end)
                    if data or not events:
                        yield b"".join(data) or KEEP_ALIVE
            assert end is not None
            data = [] if blocks.blocks else [self._written(change) for change in blocks.add_empty()]
            response = ended(end, blocks)
            yield b"".join(data) + self._event(response["status"], response=response) + DONE
        except Exception as error:
            known = told(served, asked, error)
            asked.note.ended.append(known.code or known.kind)
            what = {"code": known.code, "message": known.message, "param": known.param}
            # In the form of OpenAI's documents, and in that of Open Responses.
            yield (
                self._named("error", **what, error={"type": known.kind, **what})
                + self._event("failed", response=self._form.failed(known, blocks))
                + DONE
            )

    def _event(self, what: str, /, **fields: Any) -> bytes:
        return self._named(f"response.{what}", **fields)

    def _named(self, name: str, /, **fields: Any) -> bytes:
        data = {"type": name, "sequence_number": self._next, **fields}
        self._next += 1
        return event(data, name)

    def _written(self, change: Change) -> bytes:
        """The events for a change of a block."""
        write = {"opened": self._opened, "grown": self._grown, "closed": self._closed}[change.what]
        return b"".join(write(change))

    def _opened(self, change: Change) -> Iterator[bytes]:
        form, block = self._form, change.block
        item = form.item(block, "in_progress")
        yield self._event("output_item.added", output_index=block.index, item=item)
        if block.kind != "call":
            part = form.part(block, begins=True)
            yield self._event(f"{self._part(block)}.added", **self._at(block), part=part)

    def _grown(self, change: Change) -> Iterator[bytes]:
        form, block = self._form, change.block
        fields: dict[str, Any] = {"delta": change.text}
        if block.kind == "text":
            fields["logprobs"] = form.texts.chat(change.chunks) if form.wanted.logprobs else []
        yield self._event(f"{self._text(block)}.delta", **self._at(block), **fields)

    def _closed(self, change: Change) -> Iterator[bytes]:
        form, block = self._form, change.block
        if block.kind == "call":
            call = {"name": block.name, "arguments": block.text}
            yield self._event(f"{self._text(block)}.done", **self._at(block), **call)
        else:
            part = form.part(block)
            said = {name: part[name] for name in ("text", "logprobs") if name in part}
            yield self._event(f"{self._text(block)}.done", **self._at(block), **said)
            yield self._event(f"{self._part(block)}.done", **self._at(block), part=part)
        item = form.item(block, form.status(block))
        yield self._event("output_item.done", output_index=block.index, item=item)

    def _at(self, block: Block) -> dict[str, Any]:
        """Where a block is."""
        at = {"item_id": self._form.item_id(block), "output_index": block.index}
        if block.kind == "call":
            return at
        return {**at, "summary_index" if self._is_summary(block) else "content_index": 0}

    def _part(self, block: Block) -> str:
        return "reasoning_summary_part" if self._is_summary(block) else "content_part"

    def _text(self, block: Block) -> str:
        if block.kind == "reasoning":
            return "reasoning_summary_text" if self._form.wanted.summary else "reasoning_text"
        return {"text": "output_text", "call": "function_call_arguments"}[block.kind]

    def _is_summary(self, block: Block) -> bool:
        return block.kind == "reasoning" and self._form.wanted.summary
