"""Clients that leave, wait, or ask too much at once."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

LONG = {
    "model": "default",
    "messages": [{"role": "user", "content": "Tell a long story."}],
    "max_tokens": 2000,
    "ignore_eos": True,
    "temperature": 0,
}


def send(server: Any, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
    """A connection that has sent a request."""
    at = urlsplit(server.address)
    data = json.dumps(body).encode()
    connection = socket.create_connection((at.hostname, at.port))
    head = f"POST {path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        more = connection.recv(65536)
        assert more, data
        data += more
    return data


def request_lines(server: Any) -> list[dict[str, Any]]:
    return [line for line in server.log if line.get("client_left")]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_ends_its_answer(server: Any, stream: bool):
    """Far from its 2000 tokens: within a step of its connection's end."""
    before = len(request_lines(server))
    with send(server, {**LONG, "stream": stream}) as connection:
        if stream:
            read_until(connection, b'"delta":{"content":"')
        else:
            server.until(running=1)
    with server._changed:
        assert server._changed.wait_for(lambda: len(request_lines(server)) > before, 60)
    server.until(running=0)  # after the pass that was under way
    text = httpx.get(f"{server.address}/metrics").text
    assert 'edge_request_success_total{finished_reason="cancelled"' in text
    generated = next(line for line in text.splitlines() if line.startswith("edge_generation_tokens_total{"))
    assert float(generated.split()[-1]) < 2000


def test_a_client_that_waits_in_the_queue_and_leaves(server: Any):
    busy = [send(server, {**LONG, "stream": True}) for _ in range(4)]
    for connection in busy:
        read_until(connection, b'"delta":{"content":"')
    waiting = send(server, {**LONG, "stream": True})
    server.until(waiting=1)
    waiting.close()
    server.until(waiting=0, running=4)
    for connection in busy:
        connection.close()
    server.until(running=0)


def test_too_many_requests_are_told_to_come_again(server: Any):
    busy = [send(server, {**LONG, "stream": True}) for _ in range(7)]
    server.until(waiting=3, running=4)
    response = httpx.post(f"{server.address}/v1/chat/completions", json=LONG)
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    for connection in busy:
        connection.close()
    server.until(waiting=0, running=0)
    response = httpx.post(f"{server.address}/v1/chat/completions", json={**LONG, "max_tokens": 2})
    assert response.json()["choices"][0]["finish_reason"] == "length"


def test_answers_made_at_the_same_time_are_those_of_a_quiet_server(server: Any):
    def ask(n: int) -> str:
        body = {**LONG, "max_tokens": 12, "temperature": 1.0, "seed": n}
        found = httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=60)
        return found.json()["choices"][0]["message"]["content"]

    alone = [ask(n) for n in range(4)]
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: ask(n)})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(4)] == alone
