"""What clients should not do, and what a server must take calmly: each returns a status, or None for none."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult

import httpx

from .known import KNOWN, PATIENCE

LARGEST = 200_000
"""Bytes of a request, as the server is told."""
_SHORT = {"max_tokens": 4, "max_output_tokens": 4, "seed": 5}
"""So that answers to odd settings are neither long nor kept by the prefix cache: memory is watched."""


def _send(at: SplitResult, path: str, body: bytes, length: int | None = None) -> socket.socket:
    connection = socket.create_connection((at.hostname, at.port or 80), PATIENCE)
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode() + body)
    return connection


LONG = tuple(
    (known.path, {**known.body, "max_tokens": 150, "ignore_eos": True})
    for known in KNOWN
    if known.name in ("chat 0", "messages 1", "completions 3")
)
"""What is left in the middle. Few, and shorter than a page of the cache, so that memory can be watched."""


def _long(chance: random.Random) -> tuple[str, bytes]:
    path, body = chance.choice(LONG)
    return path, json.dumps({**body, "stream": True}).encode()


def cancel(at: SplitResult, client: httpx.Client, chance: random.Random) -> int | None:
    """Leave in the middle of a stream."""
    with _send(at, *_long(chance)) as connection:
        left, begin = chance.randrange(1, 4000), b""
        while left > 0 and (part := connection.recv(4096)):
            begin, left = begin or part, left - len(part)
    return int(begin[9:12]) if begin else None


def leave(at: SplitResult, client: httpx.Client, chance: random.Random) -> int | None:
    """Leave before the answer, or in the middle of the request; sometimes with a reset."""
    path, body = _long(chance)
    cut = chance.choice((len(body), chance.randrange(len(body))))
    with _send(at, path, body[:cut], len(body)) as connection:
        if chance.random() < 0.5:
            reset = b"\x01\0\0\0\0\0\0\0"  # struct linger: on, no seconds
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    return None


def garbage(at: SplitResult, client: httpx.Client, chance: random.Random) -> int | None:
    """Bytes that are no HTTP, or hardly."""
    lines: list[bytes] = [
        chance.randbytes(200),
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET " + b"/a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\xfe%00%zz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    with socket.create_connection((at.hostname, at.port or 80), 10) as connection, suppress(OSError):
        connection.sendall(chance.choice(lines))
        connection.shutdown(socket.SHUT_WR)
        begin = connection.recv(4096)
        if begin.startswith(b"HTTP/1.1 "):
            return int(begin[9:12])
    return None


_PLAIN = tuple(known for known in KNOWN if "tools" not in known.body)
"""Their prompts are too short for the prefix cache."""
_WRONG: tuple[Any, ...] = (None, -1, 1e308, "", "x" * 5000, [], {}, [[]], True, {"type": "a"}, "\ud83d")


def malformed(at: SplitResult, client: httpx.Client, chance: random.Random) -> int | None:
    """A known request with a field that is wrong, broken JSON, or JSON that is none of an object."""
    known = chance.choice(_PLAIN)
    body = dict(known.body)
    kind = chance.randrange(4)
    if kind == 0:
        data = json.dumps(body).encode()
        data = data[: chance.randrange(len(data))]
    elif kind == 1:
        data = chance.choice((b"[" * 5000, b"nul", b'{"a":1,"a":2}', b"\xff\xfe", b"", b"[]", b"1e999"))
    else:
        name = chance.choice([*body, "stream", "n", "tools", "stop", "logit_bias", "response_format", "seed"])
        body |= {each: _SHORT[each] for each in _SHORT if each in body or each == "seed"}
        body[name] = chance.choice(_WRONG[name in _SHORT :])  # None would be no limit
        data = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    return client.post(known.path, content=data, headers=headers).status_code


def oversized(at: SplitResult, client: httpx.Client, chance: random.Random) -> int | None:
    """More bytes than a request may have, or more tokens than the context."""
    if chance.random() < 0.5:
        body = {"model": "default", "prompt": "a b c " * (LARGEST // 5)}
    else:
        body = {"model": "default", "prompt": [300] * 30_000}
    response = client.post("/v1/completions", json=body)
    assert response.status_code in (400, 413, 429), response.text[:500]
    return response.status_code


def ask_around(at: SplitResult, client: httpx.Client, chance: random.Random) -> int | None:
    """The paths that need no model."""
    wanted: dict[str, Any] = {
        "/tokenize": {"content": "Hello, world"},
        "/detokenize": {"tokens": [300, 301]},
        "/apply-template": {"messages": KNOWN[0].body["messages"]},
        "/v1/messages/count_tokens": {"model": "default", "messages": KNOWN[0].body["messages"]},
    }
    path = chance.choice(
        (*wanted, "/health", "/metrics", "/v1/models", "/openapi.json", "/", "/none", "/v1/responses/resp_1")
    )
    if path in wanted:
        return client.post(path, json=wanted[path]).status_code
    return client.request(chance.choice(("GET", "GET", "DELETE", "PUT")), path).status_code


Rude = Callable[[SplitResult, httpx.Client, random.Random], "int | None"]
RUDE: dict[Rude, int] = {cancel: 4, leave: 3, garbage: 2, malformed: 4, oversized: 1, ask_around: 2}
"""Each with its weight."""
