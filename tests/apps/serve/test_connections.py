"""Clients that stop in the middle: of a request's head, of its body, of reading a response."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge.apps.serve.connections import connection_type

pytest.importorskip("starlette")
App = Callable[[Any, Any, Any], Awaitable[None]]
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def _endless(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while (await _received(receive)) != "http.disconnect":
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})


async def _received(receive: Any) -> str:
    try:
        return str((await asyncio.wait_for(receive(), 0.001))["type"])
    except asyncio.TimeoutError:
        return ""


async def _empty(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _with_client(app: App, sent: list[bytes], stalled: float, head: float) -> bool:
    """Whether the server ends a connection that sends this, a part after each response, and then nothing."""
    import uvicorn
    from uvicorn.server import ServerState

    config = uvicorn.Config(app, lifespan="off", log_config=None, http=connection_type(stalled, head))
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    made = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore
        "127.0.0.1",
        0,
    )
    async with made:
        reader, writer = await asyncio.open_connection(*made.sockets[0].getsockname(), limit=1000)
        for number, part in enumerate(sent):
            if number:
                await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            writer.write(part)
        end = loop.time() + 30
        while not state.connections and loop.time() < end:
            await asyncio.sleep(0.01)
        while (state.connections or state.tasks) and loop.time() < end:
            await asyncio.sleep(0.01)
        writer.transport.abort()
        return not state.connections and not state.tasks


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("app", "sent", "limits"),
    [
        (_empty, [b""], (300, 0.1)),
        (_empty, [HEAD], (300, 0.1)),
        (_empty, [HEAD + b"\r\n", HEAD], (300, 0.1)),
        (_endless, [HEAD + b"\r\n"], (0.1, 300)),
    ],
    ids=["nothing", "half a head", "half a second head", "reads nothing"],
)
def test_who_does_not_go_on_is_left(loop: str, app: App, sent: list[bytes], limits: tuple[float, float]):
    assert pytest.importorskip(loop).run(_with_client(app, sent, *limits))
