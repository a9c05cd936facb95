"""A cache of our own, a hub on localhost, and programs that open models from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import Hub
from tests.tiny_checkpoint import write_checkpoint

Open = Callable[..., dict[str, Any]]
OPENING = """
import json, sys
from edge.hub import resolve
for line in sys.stdin:
    spec, options = json.loads(line)
    try:
        found = getattr(resolve, options.pop("by", "open_model"))(spec, **options)
        if isinstance(found, tuple):
            found = {"path": found[1].name, "source": found[0].source}
        else:
            found = {"path": found.path.name, "source": found.source}
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub(tmp_path / "hub")
    write_checkpoint(server.root / "org" / "tiny")
    (server.root / "org" / "tiny" / "pytorch_model.bin").write_bytes(b"not wanted: there are safetensors")
    (server.root / "org" / "tiny" / "README.md").write_text("not wanted")
    write_checkpoint(server.root / "org" / "gated")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub_program(tmp_path: Path) -> Iterator[Callable[..., Callable[..., dict[str, Any]]]]:
    """`hub_program(code, hub_url, **environment)(*arguments)`: what a program answers to a line of JSON.

    One process for each code and environment, since huggingface_hub reads it when it is imported; starting a
    process takes far longer than opening.
    """
    programs: dict[Any, subprocess.Popen[str]] = {}

    def make(code: str, hub_url: str, **environment: str) -> Callable[..., dict[str, Any]]:
        settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        inherited.pop("HF_HUB_OFFLINE", None)
        key = (code, hub_url, *environment.items())
        if key not in programs:
            programs[key] = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=Path(__file__).parents[3],
                env={**inherited, **settings, **environment},
            )
        program = programs[key]

        def ask(*arguments: Any) -> dict[str, Any]:
            assert program.stdin and program.stdout
            program.stdin.write(json.dumps(arguments) + "\n")
            program.stdin.flush()
            while not (line := program.stdout.readline()).startswith("{"):  # libraries may print as well
                assert line, "the program ended"
            return dict(json.loads(line))

        return ask

    yield make
    for program in programs.values():
        program.communicate()


@pytest.fixture
def edge_open(hub_program: Callable[..., Callable[..., dict[str, Any]]]) -> Open:
    """`edge_open(hub_url, spec, options, **environment)`: what a program with this environment finds.

    options: of `edge.hub.resolve.open_model`, or of the function there that `by` names.
    """

    def ask(hub_url: str, spec: str, options: dict[str, Any], **environment: str) -> dict[str, Any]:
        return hub_program(OPENING, hub_url, **environment)(spec, options)

    return ask
