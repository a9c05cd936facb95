"""`/v1/completions`: OpenAI's older API, which continues texts or token ids without a chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.apps.serve.answering import Answers, End, Piece
from edge.apps.serve.asking import (
    details,
    finish_reason,
    read_choices,
    read_settings,
    read_streaming,
    usage_of,
)
from edge.apps.serve.errors import openai_shape, refusal
from edge.apps.serve.json_in import Fields
from edge.apps.serve.logprobs import TokenTexts
from edge.apps.serve.responding import json_response
from edge.apps.serve.sse import DONE, KEEP_ALIVE, Events, EventStream
from edge.apps.serve.state import Asked, Served
from edge.apps.serve.streaming import with_errors
from edge.engine.completion import Chunk
from edge.engine.driver import Work
from edge.engine.settings import merge_settings
from edge.executors.native.library import MAX_LOGPROBS

if TYPE_CHECKING:
    from edge.apps.serve.keys import App

_USUAL_TOKENS = 16
"""Of an answer without `max_tokens`, as in OpenAI's API."""
_MOST_ANSWERS = 64


@dataclass(frozen=True)
class _Wanted:
    """prompts: each a text or token ids. echo: what is put in front of each answer."""

    prompts: Sequence[str | list[int]]
    choices: int
    echo: bool
    logprobs: bool
    stream: bool
    include_usage: bool
    settings: dict[str, Any]


def _read(served: Served, fields: Fields) -> _Wanted:
    served.check_model(fields, required=True)
    fields.refuse("suffix", "text can't be put between two others here.", harmless=("",))
    stream, include_usage = read_streaming(fields)
    settings = {"max_new_tokens": _USUAL_TOKENS, **read_settings(fields, "max_tokens")}
    logprobs = fields.whole("logprobs", 0, MAX_LOGPROBS)
    echo = fields.flag("echo")
    if logprobs is not None:
        settings["logprobs"] = logprobs
        if echo:
            raise refusal("echo", "echo gives no log-probabilities of a prompt: leave out echo or logprobs.")
    return _Wanted(
        _prompts(fields), read_choices(fields), echo, logprobs is not None, stream, include_usage, settings
    )


def _prompts(fields: Fields) -> list[str | list[int]]:
    if not fields.has("prompt"):
        raise fields.missing("prompt")
    given = fields.values["prompt"]
    found = [given] if isinstance(given, str) or _is_ids(given) else given
    if not isinstance(found, list) or not found or not all(isinstance(p, str) or _is_ids(p) for p in found):
        raise fields.error("prompt", "be a text, token ids, or a list of either")
    choices = read_choices(fields)
    if len(found) * choices > _MOST_ANSWERS:
        raise refusal("prompt", f"A request may ask for {_MOST_ANSWERS} answers at most: prompts times n.")
    return found


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    )


async def completions(served: Served, asked: Asked) -> App:
    """Continue texts."""
    wanted = await served.call(asked.started, _read, served, asked.fields)
    settings = merge_settings(served.model.generation_config, wanted.settings)
    prompts = [await served.call(asked.started, _encoded, served, prompt) for prompt in wanted.prompts]
    works = [
        Work(prompt, settings, choice=choice, continues=True)
        for prompt in prompts
        for choice in range(wanted.choices)
    ]
    answers = served.answers(asked, works)
    form = _Form(served, asked, wanted, prompts)
    if wanted.stream:
        return EventStream(answers, with_errors(served, asked, form.stream(answers), openai_shape))
    async with answers:
        return json_response(await form.whole(answers))


def _encoded(served: Served, prompt: str | list[int]) -> list[int]:
    size = served.model.tokenizer.vocab_size
    if isinstance(prompt, str):
        served.model.check_text(prompt)
        return served.model.tokenizer.encode(prompt)
    if not all(0 <= token < size for token in prompt):
        raise refusal("prompt", f"prompt has a token id that is not from 0 to {size - 1}.")
    return prompt


class _Form:
    """How this API writes an answer."""

    def __init__(self, served: Served, asked: Asked, wanted: _Wanted, prompts: list[list[int]]) -> None:
        self._wanted, self._prompts = wanted, prompts
        self._tokenizer = served.model.tokenizer
        self._texts = TokenTexts(self._tokenizer)
        self._head = {
            "id": f"cmpl-{asked.number}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """All of it."""
        count = len(self._prompts) * self._wanted.choices
        chunks: list[list[Chunk]] = [[] for _ in range(count)]
        ends: dict[int, End] = {}
        async for events in answers:
            for each in events:
                if isinstance(each, Piece):
                    chunks[each.choice] += each.chunks
                else:
                    ends[each.choice] = each
        choices = [
            self._choice(
                index, self._echo(index) + ends[index].completion.text, chunks[index], 0, ends[index]
            )
            for index in range(count)
        ]
        return {**self._head, "choices": choices, "usage": self._usage(ends), "x_edge": self._details(ends)}

    async def stream(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """The events."""
        count = len(self._prompts) * self._wanted.choices
        ends: dict[int, End] = {}
        offsets = [0] * count
        nothing: dict[str, Any] = {"usage": None} if self._wanted.include_usage else {}
        written = Events(self._head)
        async with answers:
            if self._wanted.echo:
                echoes = (self._choice(index, self._echo(index), (), 0) for index in range(count))
                yield b"".join(written.event({"choices": [each], **nothing}) for each in echoes)
            async for events in answers:
                data = []
                for each in events:
                    index = each.choice
                    if isinstance(each, End):
                        ends[index] = each
                        choice = self._choice(index, "", (), offsets[index], each)
                    else:
                        choice = self._choice(index, each.text, each.chunks, offsets[index])
                        offsets[index] += len(each.text)
                    # A client that did not ask for usage gets no event without a choice.
                    over = len(ends) == count and not self._wanted.include_usage
                    last = {"x_edge": self._details(ends)} if over else nothing
                    data.append(written.event({"choices": [choice], **last}))
                yield b"".join(data) or KEEP_ALIVE
        if self._wanted.include_usage:
            last = {"x_edge": self._details(ends), "usage": self._usage(ends)}
            yield written.event({"choices": [], **last})
        yield DONE

    def _choice(
        self, index: int, text: str, chunks: Sequence[Chunk], offset: int, end: End | None = None
    ) -> dict[str, Any]:
        wanted = self._wanted.logprobs and any(chunk.token is not None for chunk in chunks)
        return {
            "index": index,
            "text": text,
            "logprobs": self._texts.completion(chunks, offset) if wanted else None,
            "finish_reason": None if end is None else finish_reason(end.completion),
        }

    def _echo(self, index: int) -> str:
        if not self._wanted.echo:
            return ""
        given = self._wanted.prompts[index // self._wanted.choices]
        return given if isinstance(given, str) else self._tokenizer.decode(given, skip_special=False)

    def _usage(self, ends: dict[int, End]) -> dict[str, Any]:
        cached = (ends[index].completion.reused_tokens for index in range(0, len(ends), self._wanted.choices))
        return usage_of(
            sum(map(len, self._prompts)),
            sum(len(end.completion.tokens) for end in ends.values()),
            sum(cached),
        )

    def _details(self, ends: dict[int, End]) -> dict[str, Any]:
        return {"choices": [details(ends[index].completion) for index in range(len(ends))]}
