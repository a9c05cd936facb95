"""A stream of events whose client leaves at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from edge.apps.serve.sse import EventStream


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
