"""The client of the server's benchmark: when events came, and answers that are not what was asked for."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit

import pytest

from scripts.server.client import Answer, ask, at_once, random_prompt

USAGE = {"completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 7}}
EVENTS = (
    *({"choices": [{"text": "data: a"}]}, {"choices": [{"text": "b"}]}),
    {"choices": [], "usage": USAGE},
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@contextmanager
def answering(parts: Sequence[bytes]) -> Iterator[SplitResult]:
    """A server that answers one request with these bytes, each when the client has read the one before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                asked = b""
                while b"]" not in asked:
                    asked += connection.recv(1 << 16)
                for part in parts:
                    connection.sendall(part)

        thread = threading.Thread(target=answer)
        thread.start()
        yield urlsplit(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def stream_of(*events: object) -> bytes:
    return HEAD + b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events)


@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_every_event_has_its_time(size: int):
    """However its bytes are spread; a text that looks like an event is none."""
    data = stream_of(*EVENTS) + b"data: [DONE]\n\n"
    with answering([data[at : at + size] for at in range(0, len(data), size)]) as at:
        found = ask(at, [1, 2], 2)
    assert len(found.times) == 4 and found.times == sorted(found.times) and found.cached == 7


def test_another_answer_than_was_asked_for_is_no_measurement():
    for data, tokens in ((stream_of(*EVENTS), 3), (b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}", 2)):
        with answering([data]) as at, pytest.raises(SystemExit, match=f"no answer of {tokens} tokens"):
            ask(at, [1, 2], tokens)


def test_calls_at_once_give_their_results_in_order_or_an_error():
    both = threading.Barrier(2, timeout=60)

    def wait(value: int) -> int:
        both.wait()
        return value

    assert at_once([lambda: wait(1), lambda: wait(2)]) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        at_once([lambda: 1, lambda: 1 // 0])
    assert random_prompt(1, 5, 300) == random_prompt(1, 5, 300) != random_prompt(2, 5, 300)
    assert Answer([], {"prompt_tokens_details": {"cached_tokens": 3}}).cached == 3
