"""A stream of events whose client leaves at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from edge.apps.serve.sse import Events, EventStream, event


@pytest.mark.parametrize("leaves_at", range(4), ids="with-{}".format)
def test_the_answers_end_with_the_stream(leaves_at: int):
    """At the start of the response, at its first or a later event, or not at all."""
    ended: list[str] = []
    sent: list[str] = []

    @asynccontextmanager
    async def answers() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            ended.append("answers")

    async def events() -> AsyncGenerator[bytes, None]:
        for number in range(2):
            yield b"event %d" % number

    async def send(message: Any) -> None:
        if len(sent) == leaves_at:
            raise asyncio.CancelledError
        sent.append(message["type"])

    async def respond() -> None:
        await EventStream(answers(), events())({}, None, send)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(respond())
    assert ended == ["answers"] and len(sent) == leaves_at


def test_events_with_a_common_beginning_are_written_like_others():
    head = {"id": "cmpl-1", "created": 1, "model": 'a "name" é'}
    data = {"choices": [{"text": "}\u2028{", "logprobs": None}], "usage": None}
    assert Events(head).event(data) == event({**head, **data})
