"""Servers as processes of their own, and a client of plain sockets that notes when each event comes.

No client library is measured. The requests are those of `/v1/completions`, which llama.cpp's server has too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
import psutil

_EVENT = b"\ndata: "
SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_p": 0.8, "seed": 0}
"""What the profiler's passes do after every token (`edge.measure.profile.measure.SAMPLING`)."""


@dataclass(frozen=True)
class Answer:
    """times: when each event came, in seconds after the request; the last two are the usage and the end."""

    times: list[float]
    usage: dict[str, Any]

    @property
    def cached(self) -> int:
        """Tokens of the prompt that were not computed."""
        return int(self.usage["prompt_tokens_details"]["cached_tokens"])


def ask(at: SplitResult, prompt: Sequence[int], tokens: int, **settings: Any) -> Answer:
    """An answer of exactly so many tokens, streamed. SystemExit where it is another one."""
    body = {
        **{"model": "default", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True},
        **{"stream": True, "stream_options": {"include_usage": True}, **settings},
    }
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    times: list[float] = []
    answer = last = b""
    with socket.create_connection((at.hostname, at.port or 80)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = perf_counter()
        connection.sendall(head.encode() + data)
        while part := connection.recv(1 << 16):
            now = perf_counter() - started
            last += part  # an event's beginning may be spread over two parts
            times += [now] * last.count(_EVENT)
            last = last[1 - len(_EVENT) :]
            answer += part
    events = [line[6:] for line in answer.split(b"\n") if line.startswith(b"data: {")]
    usage = next((found for event in reversed(events) if (found := json.loads(event).get("usage"))), None)
    if usage is None or usage["completion_tokens"] != tokens:
        raise SystemExit(f"This is no answer of {tokens} tokens: {answer[:2000]!r}")
    return Answer(times, usage)


def random_prompt(seed: int, length: int, vocabulary: int) -> list[int]:
    """Random tokens, none of the control tokens at both ends of a vocabulary."""
    found: list[int] = np.random.default_rng(seed).integers(100, vocabulary - 100, length).tolist()
    return found


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the calls return, each made by a thread of its own; the first error is raised."""
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class Server:
    """`edge serve` on a free port. A context manager, which kills it."""

    def __init__(
        self,
        model: str,
        folder: Path | None = None,
        arguments: Sequence[str] = ("--speculate", "off", "--time-limit", "3600"),
        log: Path | None = None,
    ) -> None:
        """folder: of KV caches, by default none are kept. log: a file that what it says is added to."""
        started = perf_counter()
        command = [sys.executable, "-m", "edge", "serve", model, "--alias", "default", "--port", "0"]
        command += ["--prefix-folder", "off" if folder is None else str(folder), *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = ""
        while not (found := re.search(r'"at": "(http[^"]+)"', line := self.process.stderr.readline())):
            said += line
            if not line:
                raise SystemExit(f"{said}The server did not start.")
        self.at = urlsplit(found[1])
        self.start_seconds = perf_counter() - started
        self._log = log
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with (self._log or Path(os.devnull)).open("a", encoding="utf-8") as file:
            for line in self.process.stderr:
                file.write(line)
                file.flush()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def ask(self, prompt: Sequence[int], tokens: int, **settings: Any) -> Answer:
        """See `ask`."""
        return ask(self.at, prompt, tokens, **settings)

    def private_bytes(self) -> int:
        """Memory that only the server's processes have, all of them together; mapped files are not in it."""
        main = psutil.Process(self.process.pid)
        return sum(
            part.private_dirty
            for each in (main, *main.children(recursive=True))
            for part in each.memory_maps(grouped=True)
        )
