"""Server-sent events: a response that goes on while the answer is made."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients skip: the connection is alive during a long prefill."""
DONE = b"data: [DONE]\n\n"
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store"),
    (b"x-accel-buffering", b"no"),
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def json_bytes(value: Any) -> bytes:
    """JSON without spaces; there is no NaN in it."""
    return _ENCODER.encode(value).encode()


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event; name: its `event:` line, where the API has one."""
    first = b"" if name is None else b"event: " + name.encode() + b"\n"
    return first + b"data: " + json_bytes(data) + b"\n\n"


class Events:
    """Events that all begin with the same fields, which are written as JSON once."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        """head: one field at least."""
        self._begin = b"data: " + json_bytes(head)[:-1] + b","

    def event(self, data: Mapping[str, Any]) -> bytes:
        """One event. data: its other fields, one at least."""
        return self._begin + json_bytes(data)[1:] + b"\n\n"


class EventStream:
    """A response of events about some answers, which end with it."""

    def __init__(
        self,
        answers: AbstractAsyncContextManager[Any],
        events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """events: what is written at once, one or several whole events."""
        self._answers, self._events = answers, events
        self._headers = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        # A client may leave before the first event: a generator that never began would end nothing.
        async with self._answers, aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *self._headers]})
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
