"""`/v1/chat/completions`: OpenAI's API for conversations, whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edge.apps.serve.answering import Answers, End, Event, Piece
from edge.apps.serve.asking import (
    details,
    finish_reason,
    read_choices,
    read_logprobs,
    read_settings,
    read_streaming,
    usage,
)
from edge.apps.serve.chat_request import read_chat_request
from edge.apps.serve.errors import openai_shape
from edge.apps.serve.logprobs import TokenTexts
from edge.apps.serve.reply import Reply
from edge.apps.serve.responding import json_response
from edge.apps.serve.sse import DONE, KEEP_ALIVE, Events, EventStream
from edge.apps.serve.state import Asked, Served, works_of
from edge.apps.serve.streaming import with_errors
from edge.engine.request import Request
from edge.text.reply import CallArguments, CallBegin, ContentText, ReasoningText, ReplyPart

if TYPE_CHECKING:
    from edge.apps.serve.keys import App


@dataclass(frozen=True)
class _Wanted:
    """A request, with what concerns the form of the response."""

    request: Request
    choices: int
    logprobs: bool
    stream: bool
    include_usage: bool


def _read(served: Served, asked: Asked) -> _Wanted:
    fields = asked.fields
    served.check_model(fields, required=True)
    logprobs = read_logprobs(fields)
    stream, include_usage = read_streaming(fields)
    settings = read_settings(fields, "max_completion_tokens", "max_tokens")
    if logprobs is not None:
        settings["logprobs"] = logprobs
    request = read_chat_request(fields, supports_thinking=served.model.chat_template.supports_thinking)
    return _Wanted(
        replace(request, settings=settings), read_choices(fields), logprobs is not None, stream, include_usage
    )


async def chat_completions(served: Served, asked: Asked) -> App:
    """Answer a conversation."""
    wanted = _read(served, asked)
    prepared = await served.prepare(asked, wanted.request)
    works = works_of(prepared, wanted.choices)
    parsers = [prepared.parser() for _ in works]
    answers = served.answers(asked, works, parsers)
    form = _Form(served, asked, wanted)
    if wanted.stream:
        return EventStream(answers, with_errors(served, asked, form.stream(answers), openai_shape))
    async with answers:
        replies, ends = await _collect(answers, wanted.choices)
    return json_response(form.whole(replies, ends))


async def _collect(answers: Answers, choices: int) -> tuple[list[Reply], list[End]]:
    replies = [Reply() for _ in range(choices)]
    ends: dict[int, End] = {}
    async for events in answers:
        for each in events:
            replies[each.choice].take(each)
            if isinstance(each, End):
                ends[each.choice] = each
    return replies, [ends[choice] for choice in range(choices)]


class _Form:
    """How this API writes an answer."""

    def __init__(self, served: Served, asked: Asked, wanted: _Wanted) -> None:
        self._wanted = wanted
        self._texts = TokenTexts(served.model.tokenizer)
        self._head = {
            "id": f"chatcmpl-{asked.number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }
        self._events = Events({**self._head, "object": "chat.completion.chunk"})

    def whole(self, replies: Sequence[Reply], ends: Sequence[End]) -> dict[str, Any]:
        """All of it."""
        choices = []
        for index, (reply, end) in enumerate(zip(replies, ends, strict=True)):
            message: dict[str, Any] = {
                "role": "assistant",
                "content": reply.content if reply.content or not reply.calls else None,
                "refusal": None,
                "annotations": [],
            }
            if reply.reasoning:
                message["reasoning_content"] = reply.reasoning
            if reply.calls:
                message["tool_calls"] = [call.as_openai() for call in reply.calls]
            logprobs = {"content": self._texts.chat(reply.chunks), "refusal": None}
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": logprobs if self._wanted.logprobs else None,
                    "finish_reason": finish_reason(end.completion, bool(reply.calls)),
                }
            )
        return {
            **self._head,
            "choices": choices,
            "usage": usage(ends, sum(reply.reasoning_tokens for reply in replies)),
            "x_edge": _details(replies, ends),
        }

    async def stream(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """The events."""
        replies = [Reply() for _ in range(self._wanted.choices)]
        ends: dict[int, End] = {}
        async with answers:
            first = {"role": "assistant", "content": "", "refusal": None}
            yield b"".join(self._chunk(choice, first) for choice in range(self._wanted.choices))
            async for events in answers:
                data = []
                for each in events:
                    replies[each.choice].take(each)
                    if isinstance(each, End):
                        ends[each.choice] = each
                    over = len(ends) == len(replies) and not self._wanted.include_usage
                    data += self._written(
                        replies[each.choice], each, self._last(replies, ends) if over else {}
                    )
                if data or not events:
                    yield b"".join(data) or KEEP_ALIVE
        if self._wanted.include_usage:
            yield self._events.event({"choices": [], **self._last(replies, ends)})
        yield DONE

    def _last(self, replies: Sequence[Reply], ends: Mapping[int, End]) -> dict[str, Any]:
        """What the last event has beside others. Unless usage was asked for, it is one with a choice."""
        ordered = [ends[choice] for choice in range(self._wanted.choices)]
        found: dict[str, Any] = {"x_edge": _details(replies, ordered)}
        if self._wanted.include_usage:
            found["usage"] = usage(ordered, sum(reply.reasoning_tokens for reply in replies))
        return found

    def _written(self, reply: Reply, each: Event, last: Mapping[str, Any]) -> list[bytes]:
        """The events for what came of one choice. last: what its end says of all."""
        deltas = [delta for part in each.parts if (delta := _delta(part, reply)) is not None]
        written = [self._chunk(each.choice, delta) for delta in deltas]
        if self._wanted.logprobs and isinstance(each, Piece) and each.chunks:
            logprobs = {"content": self._texts.chat(each.chunks), "refusal": None}
            # With the first delta; a token may also have no text yet.
            delta = deltas[0] if deltas else {}
            written[:1] = [self._chunk(each.choice, delta, logprobs)]
        if isinstance(each, End):
            finish = finish_reason(each.completion, bool(reply.calls))
            written.append(self._chunk(each.choice, {}, finish=finish, last=last))
        return written

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        logprobs: Any = None,
        finish: str | None = None,
        last: Mapping[str, Any] | None = None,
    ) -> bytes:
        entry = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage_field = {"usage": None} if self._wanted.include_usage else {}
        return self._events.event({"choices": [entry], **usage_field, **(last or {})})


def _delta(part: ReplyPart, reply: Reply) -> dict[str, Any] | None:
    if isinstance(part, ContentText):
        return {"content": part.text}
    if isinstance(part, ReasoningText):
        return {"reasoning_content": part.text}
    if isinstance(part, CallBegin):
        function = {"name": part.name, "arguments": ""}
        call = {
            "index": part.index,
            "id": reply.call_id(part.index),
            "type": "function",
            "function": function,
        }
        return {"tool_calls": [call]}
    if isinstance(part, CallArguments):
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.json_text}}]}
    return None


def _details(replies: Sequence[Reply], ends: Sequence[End]) -> dict[str, Any]:
    found = [
        {**details(end.completion), **({"note": note} if (note := reply.note(end.completion)) else {})}
        for reply, end in zip(replies, ends, strict=True)
    ]
    return {"choices": found}
