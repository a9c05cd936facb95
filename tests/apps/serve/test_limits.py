"""What one request may take: refused where it would be too much, in a server of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from time import perf_counter, sleep
from typing import Any

import httpx
import pytest

from edge.apps.serve.anthropic.request import read_request as messages_request
from edge.apps.serve.app import make_app
from edge.apps.serve.chat_request import read_chat_request
from edge.apps.serve.errors import ApiError
from edge.apps.serve.json_in import Fields
from edge.apps.serve.options import ServeOptions
from edge.apps.serve.responses.request import read_request as responses_request
from edge.apps.serve.state import Served
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.runtime import Model

pytest.importorskip("starlette")


@pytest.fixture
def serve(make_bundle: Callable[..., Any], tiny_config: Any) -> Iterator[Callable[..., Served]]:
    """`serve(**options)`: a tiny model that is served."""
    bundle = make_bundle(tiny_config(vocab_size=120, max_position_embeddings=512), tokenizer=True)
    made: list[Served] = []
    with Model(bundle, open_executor(bundle, RunOptions(context=512, threads=1)), name="tiny") as model:

        def make(**options: Any) -> Served:
            made.append(Served(model, ServeOptions(prefix_folder="off", **options)))
            return made[-1]

        yield make
        for each in made:
            each.close()


async def post(served: Served, path: str, **body: Any) -> httpx.Response:
    transport = httpx.ASGITransport(make_app(served))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        return await client.post(path, json={"model": "tiny", **body})


def posted(served: Served, path: str, **body: Any) -> httpx.Response:
    return asyncio.run(post(served, path, **body))


def tools_of(kind: str, count: int) -> list[dict[str, Any]]:
    """Tools in the form of an API."""
    names = [f"f{n}" for n in range(count)]
    if kind == "messages":
        return [{"name": name, "input_schema": {"type": "object"}} for name in names]
    if kind == "responses":
        return [{"type": "function", "name": name} for name in names]
    return [{"type": "function", "function": {"name": name}} for name in names]


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
def test_tools(serve: Callable[..., Served], kind: str):
    served = serve()
    body = {"model": "tiny", "input": "a", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}

    def read(tools: list[dict[str, Any]]) -> Any:
        fields = Fields({**body, "tools": tools})
        if kind == "chat":
            return read_chat_request(fields, supports_thinking=False)
        return (
            messages_request(served, fields) if kind == "messages" else responses_request(served, fields, ())
        )

    for tools, sentence in (
        (tools_of(kind, 1025), "tools may have 1024 entries at most"),
        (tools_of(kind, 2) * 2, "Two tools have the name 'f0'"),
    ):
        with pytest.raises(ApiError, match=sentence) as raised:
            read(tools)
        assert (raised.value.param or "").startswith("tools")


def test_requests_that_are_read_are_counted_and_timed(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
):
    """Also one whose time is up, as long as a thread is busy with it."""
    served = serve(parallel=1, queue=0, time_limit=100)
    gate = threading.Event()
    submit = served._workers.submit

    def begun(function: Callable[..., Any], *values: object) -> Future[Any]:
        future = submit(function, *values)
        while not future.running():
            sleep(0.001)
        return future

    async def ask() -> tuple[list[Any], httpx.Response, httpx.Response]:
        now = perf_counter()
        with monkeypatch.context() as patch:
            patch.setattr(served._workers, "submit", begun)
            late = [served.call(now - 200, gate.wait), served.call(now - 200, gate.wait)]
            ended = await asyncio.gather(*late, return_exceptions=True)
        waiting = asyncio.ensure_future(served.call(now, gate.wait))
        await asyncio.sleep(0)
        busy = await post(served, "/tokenize", content="a")
        gate.set()
        await waiting
        return ended, busy, await post(served, "/tokenize", content="a")

    ended, busy, free = asyncio.run(ask())
    assert [(each.status, each.code) for each in ended] == [(504, "timeout")] * 2
    assert busy.status_code == 429 and "retry-after" in busy.headers and free.status_code == 200


def test_a_body_that_comes_in_drops(serve: Callable[..., Served]):
    """Each in time, and all of it never."""
    app, sent = make_app(serve(time_limit=1)), []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/tokenize", "headers": [], "query_string": b""}
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]


def test_answers_and_ids(serve: Callable[..., Served]):
    served = serve()
    many = posted(served, "/v1/completions", prompt=["a"] * 33, n=2)
    assert many.status_code == 400 and "64 answers at most" in many.text
    ids = posted(served, "/detokenize", tokens=[1] * (1 << 18) + [1])
    assert ids.status_code == 400 and "262144 ids at most" in ids.text
    large = posted(served, "/detokenize", tokens=[3] * 50_000)  # read in a thread
    assert large.status_code == 200 and large.json()["content"]
    assert posted(served, "/detokenize", tokens=[[]] * 50_000).json()["error"]["param"] == "tokens[0]"
