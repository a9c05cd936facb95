"""Requests that no client would send: each is refused in the API's own form, and none is a surprise."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

CHAT = "/v1/chat/completions"
GOOD = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


def post(server: Any, body: bytes | str, path: str = CHAT, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.address}{path}", content=body, headers=headers)


def refused(response: httpx.Response) -> dict[str, Any]:
    """The error in a response, whose form is always the same."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"].endswith(".")
    assert len(response.headers["x-request-id"]) == 24
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{",
        b'{"model": "default", "messages": 1}',
        b'{"model": "default", "messages": [1]}',
        b'{"model": "default", "messages": [{"role": "user"}]}',
        b'{"model": "default", "messages": [{"role": "user", "content": 5}]}',
        b'{"model": "default", "messages": [], "messages": [1]}',
        b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}',
        b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 400 + b"}",
        b'{"model": "default", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"a": ' + b"[" * 4000 + b"]" * 4000 + b"}",
        b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "made_up": -Infinity}',
        b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "stop": [""]}',
        b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}',
        b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "stream_options": {}}',
        b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "logit_bias": {"9999999": 1}}',
        b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "top_k": -2}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_bodies(server: Any, body: bytes):
    response = post(server, body)
    error = refused(response)
    assert response.status_code == 400 and error["type"] == "invalid_request_error"


def test_unknown_fields_are_ignored(server: Any):
    given = {**GOOD, "made_up": {"x": 1}, "user": "me", "metadata": {"a": "b"}, "store": False, "tools": None}
    assert post(server, json.dumps(given)).status_code == 200


def test_a_body_that_is_too_large(server: Any):
    response = post(server, b" " * 1_100_000)
    assert response.status_code == 413 and refused(response)["code"] == "request_too_large"


def test_paths_and_methods(server: Any):
    for path, method, status, code in (
        ("/v1/nothing", "GET", 404, "not_found"),
        ("/page/../../secret", "GET", 404, "not_found"),
        ("/page/%2e%2e%2fapp.py", "GET", 404, "not_found"),
        (CHAT, "GET", 405, "method_not_allowed"),
        ("/v1/models", "DELETE", 405, "method_not_allowed"),
    ):
        response = httpx.request(method, f"{server.address}{path}")
        assert (response.status_code, refused(response)["code"]) == (status, code), path


def test_only_names_of_this_machine_are_answered(server: Any):
    def status(**headers: str | bytes) -> int:
        return httpx.get(f"{server.address}/v1/models", headers=headers).status_code

    port = urlsplit(server.address).port
    for host in (f"localhost:{port}", "127.0.0.1", "[::1]:80", "127.8.9.1", "LOCALHOST."):
        assert status(host=host) == 200, host
    for host in ("example.com", f"example.com:{port}", "localhost.example.com", "", "127.0.0.1.example.com"):
        assert status(host=host) == 403, host
    assert status(origin=f"http://127.0.0.1:{port}") == 200
    for origin in ("https://example.com", "null", "http://[", "http://[x]", "//", "http://\u2100.example"):
        assert status(origin=origin.encode()) == 403, origin


def test_broken_http(server: Any):
    """What is no HTTP, or ends in the middle, harms nobody."""
    at = urlsplit(server.address)
    for data in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\n",
    ):
        with socket.create_connection((at.hostname, at.port)) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)
    with socket.create_connection((at.hostname, at.port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"
        connection.sendall(head.encode() + b'{"model": "default", "messages": ')
    assert post(server, json.dumps(GOOD)).status_code == 200


def test_nothing_was_a_surprise(server: Any):
    assert [line for line in server.log if line["event"] in ("error", "library")] == [] or all(
        "Invalid HTTP request" in line["message"] for line in server.log if line["event"] == "library"
    )
    assert not any(line["event"] == "error" for line in server.log)
