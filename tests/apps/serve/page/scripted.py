"""The chat page behind a small server whose answers are written here, chunk by chunk."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edge.apps.serve.page_files import POLICY

PAGE = Path(__file__).resolve().parents[4] / "apps" / "serve" / "page"
USAGE = {
    "prompt_tokens": 1024,
    "completion_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 1000},
    "completion_tokens_details": {"reasoning_tokens": 20},
}
KEY = "a key"
ATTACK = """<img src=x onerror="window.attacked = 1"> <script>window.attacked = 2</script>

[click](javascript:window.attacked=3) [data](data:text/html,<script>1</script>) [VB]( vbscript:x )
![picture](https://example.org/a.png "a title") <a href="javascript:1">a</a> <https://example.org/?a="><b>

```html"><img src=x onerror=1>
<iframe src="javascript:window.attacked = 4"></iframe>
```

| <svg onload=window.attacked=5> | b |
|---|---|
| <style>*{display:none}</style> | `<b>x</b>` |
"""
RICH = Path(__file__).with_name("rich.md").read_text(encoding="utf-8")
WEATHER = '{"city": "Z\u00fcrich", "days": 2}'


@dataclass
class Script:
    """What the server was asked, and what holds its answers back.

    gate: the second half of "gated" comes once it is set. closed: an "endless" answer has ended with its
    reader. key: what requests must have. thinks: whether the model is said to think.
    """

    requests: list[dict[str, Any]] = field(default_factory=list)
    gate: Event = field(default_factory=Event)
    closed: Event = field(default_factory=Event)
    key: str = ""
    thinks: bool = True


def delta(**fields: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields}]}


def call(index: int, text: str, name: str | None = None) -> dict[str, Any]:
    function = {"arguments": text, **({"name": name} if name else {})}
    begun = {"id": f"call-{index}", "type": "function"} if name else {}
    return delta(tool_calls=[{"index": index, **begun, "function": function}])


def end(reason: str = "stop", **more: Any) -> list[dict[str, Any]]:
    """The last chunks: why it ended, and what it cost."""
    last = {"index": 0, "delta": {}, "finish_reason": reason}
    return [{"choices": [last]}, {"choices": [], "usage": USAGE, **more}]


def pieces(text: str, size: int = 5) -> list[dict[str, Any]]:
    return [delta(content=text[at : at + size]) for at in range(0, len(text), size)]


ANSWERS: dict[str, list[dict[str, Any]]] = {
    "hello": [
        *pieces("Hello **world**, how are you?"),
        *end(x_edge={"choices": [{"tokens_per_second": 41.25, "ttft_seconds": 0.25}]}),
    ],
    "attack": [*pieces(ATTACK, 7), *end()],
    "long": [*pieces("A sentence of a long answer.\n\n" * 60, 40), *end("length")],
    "empty": end(x_edge={"choices": [{"note": "The model ended its answer at once."}]}),
    "rich": [
        *(delta(reasoning_content=word) for word in ("The user wants ", "*everything*", " at once.")),
        *pieces(RICH, 9),
        *end(),
    ],
    "weather": [
        delta(reasoning_content="I need the weather."),
        delta(content="Let me look."),
        call(0, "", "get_weather"),
        *(call(0, WEATHER[at : at + 6]) for at in range(0, len(WEATHER), 6)),
        call(1, "{}", "get_time"),
        *end("tool_calls"),
    ],
}


async def answer(script: Script, text: str) -> AsyncIterator[dict[str, Any]]:
    if text == "gated":
        yield delta(content="The first half, ")
        while not script.gate.is_set():
            await asyncio.sleep(0.005)
        for chunk in (delta(content="the second half."), *end()):
            yield chunk
    elif text == "endless":
        try:
            while True:
                yield delta(content="word ")
                await asyncio.sleep(0.005)
        finally:
            script.closed.set()
    elif text == "breaks":
        yield delta(content="Half an ans")
    elif text == "fails":
        yield delta(content="Half an ans")
        yield {"error": {"message": "The machine is out of memory.", "type": "server_error", "code": 500}}
    else:
        for chunk in ANSWERS[text]:
            yield chunk


def refused(script: Script, text: str, request: Request) -> Response | None:
    """The answers that are none."""
    asked = [each for each in script.requests if each["messages"][-1]["content"] == text]
    if script.key and request.headers.get("Authorization") != f"Bearer {script.key}":
        return JSONResponse({"error": {"message": "no key"}}, 401)
    if text == "busy" and len(asked) == 1:
        return JSONResponse({"error": {"message": "Queue full."}}, 429, {"Retry-After": "7"})
    if text == "refused":
        error = {"message": "The prompt has 9000 tokens, 808 more than fit.", "type": "invalid_request_error"}
        return JSONResponse({"error": error}, 400)
    return None


def application(script: Script) -> Starlette:
    async def models(request: Request) -> Response:
        if script.key and request.headers.get("Authorization") != f"Bearer {script.key}":
            return JSONResponse({"error": {"message": "no key"}}, 401)
        facts = {"thinking": script.thinks}
        return JSONResponse(
            {
                "object": "list",
                "data": [{"id": "minicpm5-1b", "object": "model", "max_model_len": 8192, "x_edge": facts}],
            }
        )

    async def completions(request: Request) -> Response:
        body = await request.json()
        script.requests.append(body)
        last = body["messages"][-1]
        text = {"tool": "hello", "user": last["content"]}[last["role"]]
        if (refusal := refused(script, text, request)) is not None:
            return refusal

        async def events() -> AsyncIterator[str]:
            async for chunk in answer(script, "hello" if text == "busy" else text):
                yield f"data: {json.dumps(chunk)}\r\n\r\n: a comment keeps it alive\n\n"
            if text != "breaks":
                yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def file(request: Request) -> Response:
        path = PAGE / request.path_params.get("name", "index.html")
        headers = {
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "max-age=600",
        }
        return FileResponse(path, headers=headers)

    return Starlette(
        routes=[
            Route("/", file),
            Route("/page/{name}", file),
            Route("/v1/models", models),
            Route("/v1/chat/completions", completions, methods=["POST"]),
        ]
    )


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """The address of the page."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # from now on nobody is refused
        config = uvicorn.Config(application(script), log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)
