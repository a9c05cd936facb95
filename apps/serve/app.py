"""The server as one ASGI application: routes, and what every request goes through before it reaches one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from edge.apps.serve import chat_completions, completions, health, models, openapi, page_files, tokens
from edge.apps.serve.anthropic import route as anthropic
from edge.apps.serve.anthropic.errors import PREFIX, anthropic_shape
from edge.apps.serve.errors import ApiError, Shape, as_api_error, openai_shape, refusal, surprise
from edge.apps.serve.json_in import read_body
from edge.apps.serve.keys import App, check_host, check_key, check_origin
from edge.apps.serve.responding import error_response
from edge.apps.serve.responses import route as responses
from edge.apps.serve.state import Asked, Note, Served
from edge.errors import ContextError

Response = App
Handler = Callable[[Served, Asked], Awaitable[Response]]


@dataclass(frozen=True)
class Post:
    """A route that takes a JSON object. text: the field with what is to be answered."""

    path: str
    handler: Handler
    text: str = "messages"


POSTS = (
    Post("/v1/chat/completions", chat_completions.chat_completions),
    Post("/v1/completions", completions.completions, "prompt"),
    Post("/v1/responses", responses.responses, "input"),
    Post("/v1/responses/compact", responses.compact, "input"),
    Post("/v1/messages", anthropic.messages),
    Post("/v1/messages/count_tokens", anthropic.count_tokens),
    Post("/tokenize", tokens.tokenize),
    Post("/detokenize", tokens.detokenize),
    Post("/apply-template", tokens.apply_template),
)
_ANSWERING = frozenset(post.path for post in POSTS)
_LARGE = 1 << 16
"""Bytes of a body that is read in a thread, so that nobody waits for it."""
_KEYLESS = ("/health",)
"""Paths that need no key, beside those of the page."""


def make_app(served: Served, keys: tuple[bytes, ...] = (), *, only_local: bool = False) -> App:
    """The whole server. keys: as `read_keys` gives them. only_local: refuse other names of the host."""
    from starlette.middleware.cors import CORSMiddleware
    from starlette.routing import Route, Router

    routes = [
        *(Route(post.path, _Posted(served, post), methods=["POST"]) for post in POSTS),
        *health.routes(served),
        *models.routes(served),
        *responses.routes(served),
        *openapi.routes(served.listed_names),
        *page_files.routes(served),
    ]
    inner: App = _Errors(Router(routes, redirect_slashes=False))
    inner = _Watched(_Checked(inner, served, keys, only_local), served)
    if served.options.cors:
        inner = CORSMiddleware(  # outside, so that a page may read errors too
            inner,
            allow_origins=list(served.options.cors),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            max_age=600,
        )
    return inner


def _shape_of(path: str) -> Shape:
    """How errors are written at a path, also at one that is not there."""
    return anthropic_shape if path == PREFIX or path.startswith(f"{PREFIX}/") else openai_shape


class _Posted:
    """Reads a request's body, and lets a handler answer it as long as the client is there."""

    def __init__(self, served: Served, post: Post) -> None:
        self._served, self._post = served, post

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        state = scope["state"]
        body = await self._body(state["started"], receive)
        if body is None:
            return
        read = partial(self._served.call, state["started"], read_body)
        fields = await read(body) if len(body) > _LARGE else read_body(body)
        self._served.log_prompt(state["number"], fields)
        asked = Asked(state["number"], fields, state["note"], state["started"])
        answering = asyncio.ensure_future(self._answer(asked, scope, receive, send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                state["left"] = True
                answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering
        finally:
            answering.cancel()
            leaving.cancel()

    async def _answer(self, asked: Asked, scope: Any, receive: Any, send: Any) -> None:
        try:
            response = await self._post.handler(self._served, asked)
        except ContextError as error:
            raise refusal(self._post.text, str(error), "context_length_exceeded") from None
        await response(scope, receive, send)

    async def _body(self, started: float, receive: Any) -> bytes | None:
        """The whole body; None if the client has gone."""
        most, parts, size = self._served.options.most_bytes, [], 0
        while True:
            try:
                left = self._served.options.time_limit - (perf_counter() - started)  # of all, not of a part
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except asyncio.TimeoutError:
                raise ApiError(
                    408,
                    "The request did not arrive in time.",
                    code="timeout",
                    headers={"connection": "close"},
                ) from None
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise ApiError(
                    413,
                    f"The request is larger than the server's limit of {most} bytes (--max-request).",
                    code="request_too_large",
                    headers={"connection": "close"},
                )
            if not message.get("more_body", False):
                return b"".join(parts)


async def _gone(receive: Any) -> None:
    """Returns when the client has left, or has its response."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Errors:
    """Gives the router's own refusals the form of all errors."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        plain: dict[str, Any] = {}

        async def changed(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] in (404, 405):
                plain["headers"] = {k: v for k, v in message["headers"] if k == b"allow"}
                plain["status"] = message["status"]
                plain["own"] = any(v.startswith(b"application/json") for k, v in message["headers"])
            if not plain or plain["own"]:
                await send(message)

        await self._app(scope, receive, changed)
        if plain and not plain["own"]:
            what = "There is no such path here" if plain["status"] == 404 else "This path has other methods"
            error = ApiError(
                plain["status"],
                f"{what}: {scope['method']} {scope['path'][:100]}.",
                code="not_found" if plain["status"] == 404 else "method_not_allowed",
                headers={k.decode(): v.decode() for k, v in plain["headers"].items()},
            )
            error.number = scope["state"]["number"]
            await error_response(error, _shape_of(scope["path"]))(scope, receive, send)


class _Checked:
    """Lets through who may ask."""

    def __init__(self, app: App, served: Served, keys: tuple[bytes, ...], only_local: bool) -> None:
        self._app, self._served, self._keys, self._only_local = app, served, keys, only_local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            if self._only_local:
                check_host(scope)
            check_origin(self._served.options.cors, scope)
            if scope["path"] not in _KEYLESS and not page_files.is_public(scope["path"]):
                check_key(self._keys, scope)
        await self._app(scope, receive, send)


class _Watched:
    """Gives each request a number, answers what was raised, and logs and counts what came of it."""

    def __init__(self, app: App, served: Served) -> None:
        self._app, self._served = app, served

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number, note, started = secrets.token_hex(12), Note(), perf_counter()
        state = scope.setdefault("state", {})
        state |= {"number": number, "note": note, "started": started, "left": False}
        status = 0

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # The first is OpenAI's name, the second Anthropic's.
                names = (b"x-request-id", b"request-id")
                message["headers"] = [*message["headers"], *((name, number.encode()) for name in names)]
                self._served.metrics.responded(status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            told = as_api_error(error)
            if told is None:
                self._served.log.surprise(number, error)
                told = surprise(number)
            if status == 0:
                told.number = number
                await error_response(told, _shape_of(scope["path"]))(scope, receive, watched)
        finally:
            seconds = perf_counter() - started
            if note.prompt_tokens is not None or scope["path"] in _ANSWERING:
                self._served.metrics.request.observe(seconds)
            self._served.log.write(
                "request",
                id=number,
                method=scope["method"],
                path=scope["path"][:200],
                status=status or None,
                seconds=round(seconds, 4),
                client_left=state["left"] or None,
                prompt_tokens=note.prompt_tokens,
                cached_tokens=note.cached_tokens,
                completion_tokens=note.completion_tokens,
                ended=note.ended or None,
            )
