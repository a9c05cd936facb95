"""How Anthropic's API writes a message: whole, and as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from edge.apps.serve.answering import Answers, End
from edge.apps.serve.anthropic.request import Wanted
from edge.apps.serve.asking import details
from edge.apps.serve.blocks import Block, Blocks, Change
from edge.apps.serve.sse import event
from edge.apps.serve.state import Asked, Served
from edge.engine.completion import Completion
from edge.engine.request import Prepared

_SIGNATURE = "unsigned"
"""Thoughts are not signed here; clients want something that they can hand back."""
_REASONS = {
    "eos": "end_turn",
    "stop": "stop_sequence",
    "length": "max_tokens",
    "context": "model_context_window_exceeded",
}


class Form:
    """The message that answers one request."""

    def __init__(self, served: Served, asked: Asked, wanted: Wanted, prepared: Prepared) -> None:
        self._wanted, self._prompt = wanted, len(prepared.prompt)
        self._head = {
            "id": f"msg_{asked.number}",
            "type": "message",
            "role": "assistant",
            "model": served.name,
        }

    def whole(self, end: End, blocks: Blocks) -> dict[str, Any]:
        """All of it."""
        done = end.completion
        return {
            **self._head,
            "content": [self._block(block) for block in blocks.blocks],
            **self._ending(done, blocks),
            "usage": {
                **self._usage(done.prompt_tokens, done.reused_tokens, len(done.tokens), blocks),
                "cache_creation": None,
                "inference_geo": None,
                "service_tier": "standard",
            },
            "x_edge": self._details(done, blocks),
        }

    async def stream(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """The events."""
        blocks = Blocks()
        end: End | None = None
        async with answers:
            yield self._start() + _event("ping")
            async for events in answers:
                data = [self._written(change) for each in events for change in blocks.take(each)]
                end = next((each for each in events if isinstance(each, End)), end)
                if data or not events:
                    yield b"".join(data) or _event("ping")
        assert end is not None
        done = end.completion
        yield _event(
            "message_delta",
            delta=self._ending(done, blocks),
            usage=self._usage(done.prompt_tokens, done.reused_tokens, len(done.tokens), blocks),
            x_edge=self._details(done, blocks),
        ) + _event("message_stop")

    def _start(self) -> bytes:
        nothing = {"stop_reason": None, "stop_sequence": None, "stop_details": None, "container": None}
        usage = {
            **self._usage(self._prompt, 0, 0, None),
            "cache_creation": None,
            "inference_geo": None,
            "service_tier": "standard",
        }
        return _event("message_start", message={**self._head, "content": [], **nothing, "usage": usage})

    def _written(self, change: Change) -> bytes:
        return b"".join(self._events(change))

    def _events(self, change: Change) -> Iterator[bytes]:
        """The events for a change of a block."""
        block = change.block
        if change.what == "opened":
            yield _event(
                "content_block_start", index=block.index, content_block=self._block(block, begins=True)
            )
        elif change.what == "grown":
            if block.kind != "reasoning" or self._wanted.shows_thinking:
                yield _delta(block, _grown(block, change.text))
        else:
            if block.kind == "reasoning":
                yield _delta(block, {"type": "signature_delta", "signature": _SIGNATURE})
            yield _event("content_block_stop", index=block.index)

    def _block(self, block: Block, *, begins: bool = False) -> dict[str, Any]:
        """A block, with what is in it unless it just begins."""
        text = "" if begins else block.text
        if block.kind == "text":
            return {"type": "text", "text": text, "citations": None}
        if block.kind == "reasoning":
            text = text if self._wanted.shows_thinking else ""
            return {"type": "thinking", "thinking": text, "signature": "" if begins else _SIGNATURE}
        return {
            "type": "tool_use",
            "id": block.call_id,
            "name": block.name,
            "input": {} if begins else _input(block),
            "caller": {"type": "direct"},
        }

    def _ending(self, done: Completion, blocks: Blocks) -> dict[str, Any]:
        """What ended the message."""
        # A control token that was asked for ends an answer as the model's own end does.
        reason = "stop_sequence" if done.stop_string else _REASONS.get(done.stop_reason, "end_turn")
        # A stop string of the model's own is an end like others.
        own = done.stop_string is not None and done.stop_string not in self._wanted.stops
        called = bool(blocks.reply.calls) and reason in ("end_turn", "stop_sequence")
        return {
            "stop_reason": "tool_use" if called else "end_turn" if own else reason,
            "stop_sequence": None if called or own else done.stop_string,
            "stop_details": None,
            "container": None,
        }

    @staticmethod
    def _usage(prompt: int, cached: int, answer: int, blocks: Blocks | None) -> dict[str, Any]:
        thought = 0 if blocks is None else blocks.reply.reasoning_tokens
        return {
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": answer,
            "output_tokens_details": {"thinking_tokens": thought},
            "server_tool_use": None,
        }

    @staticmethod
    def _details(done: Completion, blocks: Blocks) -> dict[str, Any]:
        note = blocks.reply.note(done)
        return {**details(done), **({"note": note} if note else {})}


def _event(kind: str, /, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _delta(block: Block, delta: Mapping[str, Any]) -> bytes:
    return _event("content_block_delta", index=block.index, delta=delta)


def _grown(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text_delta", "text": text}
    if block.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "input_json_delta", "partial_json": text}


def _input(block: Block) -> Mapping[str, Any]:
    """The arguments of a call. What can't be read is handed on as it is: an empty object would be a lie."""
    arguments = block.text if block.call is None else block.call.arguments
    return {"unreadable": arguments} if isinstance(arguments, str) else arguments
