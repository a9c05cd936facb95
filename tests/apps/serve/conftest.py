"""Servers as real processes: one with the default model for all tests, others with tiny ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette")


class ServerProcess:
    """`edge serve` on a free port. log: the lines that it has written as JSON."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        script = Path(sys.executable).parent / "edge"
        command = [
            str(script),
            "serve",
            *arguments,
            *(() if "--unix-socket" in arguments else ("--port", "0")),
        ]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
        )
        self.log: list[dict[str, Any]] = []
        self.said: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()
        self.address = self.wait_for("listening")["at"]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                if line.startswith("{"):
                    self.log.append(json.loads(line))
                else:
                    self.said.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, event: str, **facts: Any) -> dict[str, Any]:
        """The first line of the log with these facts, when it is there."""

        def found() -> dict[str, Any] | None:
            wanted = {"event": event, **facts}
            return next((line for line in self.log if wanted.items() <= line.items()), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() or self._ended, 60), (self.log, self.said)
            line = found()
            assert line is not None, (self.log, self.said)
            return line

    def until(self, **facts: int) -> None:
        """Return when `/health` says so."""
        end = time.monotonic() + 60
        while not facts.items() <= (found := httpx.get(f"{self.address}/health").json()).items():
            assert time.monotonic() < end, found

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., ServerProcess]]:
    """`start(*arguments)`: a server, which is ended with the tests."""
    made: list[ServerProcess] = []

    def make(*arguments: str, **options: Any) -> ServerProcess:
        made.append(ServerProcess(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.fixture(scope="session")
def server(smollm2_gguf: Path, start: Callable[..., ServerProcess]) -> ServerProcess:
    """The default model."""
    return start("--alias", "default", "--queue", "3", "--prefix-folder", "off", "--max-request", "1MB")


@pytest.fixture(scope="session")
def tiny_folder(make_bundle: Callable[..., Any], tiny_config: Any) -> str:
    """A bundle of a tiny network, which answers long prompts in no time."""
    return str(make_bundle(tiny_config(vocab_size=120, max_position_embeddings=4096), tokenizer=True).path)


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Any:
    """OpenAI's own client."""
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="not-needed", max_retries=0)
