"""One configuration in a process of its own, so that its memory and its threads are its own.

`Worker` is the parent's side. The child runs `python -m edge.measure.profile.worker` and answers JSON lines:
first a description of what to open, then one measurement per line, until its input ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.config import KVType
from edge.errors import EdgeError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.formats.guarded_json import parse_object
from edge.hub.resolve import open_model
from edge.measure.profile.measure import Bench, Measured
from edge.measure.profile.options import Case
from edge.measure.profile.schema import ProfileError


@dataclass(frozen=True)
class Setup:
    """What a worker opens: the folder of a bundle, or an exported one.

    options: the fields of RunOptions. fill: see `ProfileOptions`.
    """

    model: str
    options: dict[str, Any]
    fill: str


@dataclass(frozen=True)
class Ready:
    """What it opened.

    batch_invariant: see `edge.executors.protocol.Capabilities`. load_seconds: from the folder to an executor
    that can run.
    """

    threads: int
    kv_type: KVType
    activations: str
    tier: str
    max_batch: int
    batch_invariant: bool
    workspace_bytes: int
    load_seconds: float


class Worker:
    """A child process over one configuration; use it in a `with` block."""

    def __init__(self, setup: Setup) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "edge.measure.profile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.cpu_seconds = 0.0
        try:
            self.ready = Ready(**self._ask(asdict(setup)))
        except BaseException:
            self.close()
            raise

    def measure(self, case: Case) -> Measured:
        """See `edge.measure.profile.measure.Bench.measure`."""
        found = self._ask({**case._asdict(), "operators": False})
        return Measured(**{**found, "token_seconds": tuple(found["token_seconds"])})

    def operators(self, case: Case) -> list[list[dict[str, Any]]]:
        """See `edge.measure.profile.measure.Bench.operators`."""
        passes = self._ask({**case._asdict(), "operators": True})["passes"]
        return list(passes)

    def close(self) -> None:
        """End the child."""
        with suppress(OSError):
            if self._child.stdin:
                self._child.stdin.close()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout:
            self._child.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        with suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            code = self._child.wait()
            raise ProfileError(
                f"The measuring process ended early (exit code {code}); if it was killed, memory ran out: "
                "measure fewer depths or quantizations at a time."
            )
        reply = parse_object(line, "The measuring process's reply", ProfileError, "measure again")
        if "error" in reply:
            raise ProfileError(reply["error"])
        self.cpu_seconds = float(reply.pop("cpu_seconds"))
        return reply


def _open(setup: Setup) -> tuple[Bench, Ready]:
    started = time.perf_counter()
    executor = open_executor(open_model(Path(setup.model)), RunOptions(**setup.options))
    seconds = time.perf_counter() - started
    info = executor.info
    ready = Ready(
        threads=info.threads,
        kv_type=info.kv_type,
        activations=info.activations,
        tier=info.tier,
        max_batch=executor.max_batch,
        batch_invariant=executor.capabilities.batch_invariant,
        workspace_bytes=info.workspace_bytes,
        load_seconds=seconds,
    )
    return Bench(executor, setup.fill), ready


def main() -> None:
    """The child's side."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand between the replies

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps({**content, "cpu_seconds": time.process_time()}) + "\n")
        replies.flush()

    bench: Bench | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if bench is None:
                bench, ready = _open(Setup(**request))
                reply(asdict(ready))
            elif request.pop("operators"):
                reply({"passes": bench.operators(**request)})
            else:
                reply(bench.measure(**request).to_json())
        except EdgeError as error:
            reply({"error": str(error)})
        except MemoryError:
            reply({"error": "The memory is exhausted: measure fewer depths or quantizations at a time."})


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
