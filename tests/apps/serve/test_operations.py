"""Servers from their start to their end: keys, sockets, signals, and what a restart finds."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

ServerOf = Callable[..., Any]
PROMPT = np.random.default_rng(1).integers(3, 110, 1500).tolist()


def complete(server: Any, tokens: int = 4, **given: Any) -> httpx.Response:
    body = {
        "model": "default",
        "prompt": PROMPT,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        **given,
    }
    return httpx.post(f"{server.address}/v1/completions", json=body, timeout=60)


def cached(response: httpx.Response) -> int:
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_restarted_server_finds_what_the_last_one_computed(
    start: ServerOf, tiny_folder: str, tmp_path: Path
):
    """After a SIGTERM all of it; after a kill what has been written by then, and never a broken file."""
    folder = tmp_path / "prefixes"
    first = start(tiny_folder, "--prefix-folder", str(folder))
    answer = complete(first)
    assert answer.status_code == 200 and cached(answer) == 0
    assert first.end() == 0
    assert [line["event"] for line in first.log[-2:]] == ["draining", "stopped"]

    assert len(list(folder.glob("*.kv"))) == 1
    second = start(tiny_folder, "--prefix-folder", str(folder))
    again = complete(second, seed=1)
    assert cached(again) == 1499 and again.json()["choices"] == answer.json()["choices"]
    longer = {"prompt": PROMPT + PROMPT[:500]}
    assert cached(complete(second, **longer)) >= 1499
    end = time.monotonic() + 30
    while len(names := set(folder.glob("*.kv"))) != 2:
        assert time.monotonic() < end
    assert second.end(signal.SIGKILL) == -signal.SIGKILL

    third = start(tiny_folder, "--prefix-folder", str(folder))
    assert set(folder.glob("*.kv")) == names
    assert cached(complete(third, **longer)) >= 1499
    assert third.end(signal.SIGINT) == 0


def test_sigterm_lets_answers_end(start: ServerOf, tiny_folder: str):
    server = start(tiny_folder, "--prefix-folder", "off")
    lines: list[str] = []
    body = {"model": "default", "prompt": "abc", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=60) as response:
        stream = response.iter_lines()
        lines.append(next(stream))
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.address}/health")
        lines += stream
    assert lines[-2:] == ["data: [DONE]", ""] and server.end() == 0
    last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert [c["finish_reason"] for each in last for c in each["choices"]][-1] == "length"


def half_sent(server: Any) -> socket.socket:
    """A connection whose request's body never ends."""
    at = urlsplit(server.address)
    connection = socket.create_connection((at.hostname, at.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {at.netloc}\r\nExpect: 100-continue\r\n"
    connection.sendall(f"{head}Content-Length: 500\r\n\r\n".encode())
    assert b" 100 " in connection.recv(100)  # the server waits for the body
    return connection


def test_a_deadline_ends_answers_with_an_error(start: ServerOf, tiny_folder: str):
    """And does not wait for who says nothing."""
    server = start(tiny_folder, "--prefix-folder", "off", "--drain", "0")
    silent = half_sent(server)
    body = {"model": "default", "prompt": "abc", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=60) as response:
        stream = response.iter_lines()
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        lines = [line for line in stream if line]
    assert json.loads(lines[-1][6:])["error"]["code"] == "shutting_down" and server.end() == 0
    silent.close()


def test_a_second_signal_ends_at_once(start: ServerOf, tiny_folder: str):
    server = start(tiny_folder, "--prefix-folder", "off", "--drain", "3000")
    with half_sent(server):
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        assert server.end() == 0


def test_keys_origins_and_limits(start: ServerOf, tiny_folder: str, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nfirst-secret-key\n\nsecond-secret-key\n")
    page = "http://page.example"
    server = start(tiny_folder, "--api-keys", str(keys), "--cors", page, "--time-limit", "1", "--drain", "0")

    def models(**headers: str) -> httpx.Response:
        return httpx.get(f"{server.address}/v1/models", headers=headers)

    for good in (
        {"authorization": "Bearer second-secret-key"},
        {"authorization": "bearer first-secret-key"},
        {"x-api-key": "first-secret-key"},
    ):
        assert models(**good).status_code == 200
    for bad in ({}, {"authorization": "Bearer nobody"}, {"authorization": "first-secret-key"}):
        response = models(**bad)
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.address}/health").status_code == 200
    assert httpx.get(f"{server.address}/").status_code == 200
    assert httpx.get(f"{server.address}/metrics").status_code == 401

    asked = {"origin": page, "access-control-request-method": "POST"}
    allowed = httpx.options(f"{server.address}/v1/completions", headers=asked)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == page
    shown = models(origin=page, authorization="Bearer first-secret-key")
    assert shown.headers["access-control-allow-origin"] == page
    refused = models(origin=page)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == page
    other = models(origin="http://other.example", authorization="Bearer first-secret-key")
    assert other.status_code == 403 and "access-control-allow-origin" not in other.headers
    assert "secret-key" not in json.dumps(server.log)


def test_an_answer_that_takes_too_long(start: ServerOf, tiny_folder: str):
    server = start(tiny_folder, "--time-limit", "1", "--prefix-folder", "off", "--parallel", "1")
    many = {"prompt": [PROMPT[n:] for n in range(60)], "max_tokens": 2000}
    response = complete(server, **many)
    assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
    assert complete(server).status_code == 200


def test_a_unix_socket(start: ServerOf, tiny_folder: str, tmp_path: Path):
    path = tmp_path / "edge.sock"
    server = start(tiny_folder, "--unix-socket", str(path), "--prefix-folder", "off")
    assert path.stat().st_mode & 0o777 == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://anything/v1/models").json()["object"] == "list"
    server.end(signal.SIGKILL)
    again = start(tiny_folder, "--unix-socket", str(path), "--prefix-folder", "off")  # over the dead one's
    assert again.end() == 0 and not path.exists()


def test_sentences_of_the_command(run_edge: Callable[..., Any], tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        (tmp_path / "empty").write_text("# nothing\n")
        for arguments, sentence in (
            (("a", "b"), "a server has one model"),
            (("--port", port), f"Can't listen at 127.0.0.1:{port}"),
            (("--max-request", "much"), "is not a size such as 16MB"),
            (("--api-keys", str(tmp_path / "empty")), "has none: write one a line"),
            (("--api-keys", str(tmp_path / "nowhere")), "can't be read"),
            (("--unix-socket", str(tmp_path / "empty")), "is no socket"),
        ):
            done = run_edge("serve", *arguments)
            assert done.returncode in (1, 2) and sentence in done.stderr and done.stdout == "", done.stderr
            assert len([line for line in done.stderr.splitlines() if line.startswith("Error")]) == 1


def test_a_server_that_others_reach_and_that_logs_prompts(start: ServerOf, tiny_folder: str, server: Any):
    loud = start(tiny_folder, "--host", "0.0.0.0", "--prefix-folder", "off", "--log-prompts")
    assert any("Everybody who reaches 0.0.0.0" in line for line in loud.said)
    loud.address = loud.address.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{loud.address}/v1/models", headers={"host": "box.example"}).status_code == 200
    for each in (loud, server):
        assert complete(each, prompt="abracadabra").status_code == 200
    assert loud.end() == 0
    assert "abracadabra" in json.dumps(loud.log) and "abracadabra" not in json.dumps(server.log)
