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
        port = () if "--unix-socket" in arguments else ("--port", "0")
        command = [str(script), "serve", "--alias", "default", *arguments, *port]
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
        try:
            self.address = self.wait_for("listening")["at"]
        except BaseException:
            self.process.kill()  # nobody else knows of it
            raise

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
    return start("--queue", "3", "--prefix-folder", "off", "--max-request", "1MB")


@pytest.fixture(scope="session")
def tiny_folder(make_bundle: Callable[..., Any], tiny_config: Any) -> str:
    """A bundle of a tiny network, which answers long prompts in no time."""
    return str(make_bundle(tiny_config(vocab_size=120, max_position_embeddings=4096), tokenizer=True).path)


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Any:
    """OpenAI's own client."""
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="not-needed", max_retries=0)


@pytest.fixture(scope="session")
def thinking(
    smollm2_gguf: Path, start: Callable[..., ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> ServerProcess:
    """The default model with a chat template that lets it think."""
    data = smollm2_gguf.read_bytes()
    name = b"tokenizer.chat_template"
    at = data.index(name) + len(name) + 4
    length = int.from_bytes(data[at : at + 8], "little")
    template = THINKING_TEMPLATE.ljust(length).encode()
    assert len(template) == length
    path = tmp_path_factory.mktemp("thinking") / "smollm2-135m.gguf"
    path.write_bytes(data[: at + 8] + template + data[at + 8 + length :])
    return start(str(path), "--alias", "smollm2-135m", "--prefix-folder", "off")


THINKING_TEMPLATE = (
    r"{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}"
    r"{{ '<think>\n' + m.reasoning_content + '\n</think>\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    r"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking %}"
    r"{{ '<think>\n' }}{% endif %}{% endif %}"
)
"""As long as the model's own at most, whose place it takes in the file."""


@pytest.fixture
def going_down(smollm2_gguf: Path, start: Callable[..., ServerProcess]) -> Callable[..., Any]:
    """`going_down(path, body, after)`: the events of a stream whose server is told to end after so many."""

    def events(path: str, body: dict[str, Any], after: int) -> list[tuple[str, dict[str, Any]]]:
        server = start("--prefix-folder", "off", "--drain", "0")
        found: list[tuple[str, dict[str, Any]]] = []
        name = ""
        body = {**body, "stream": True}
        with httpx.stream("POST", f"{server.address}{path}", json=body, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    found.append((name, {} if line == "data: [DONE]" else json.loads(line[6:])))
                    if len(found) == after:
                        server.process.terminate()
            assert response.status_code == 200, found
        assert server.end() == 0
        return found

    return events
