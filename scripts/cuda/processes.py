"""Runs parts, each in a process with an end, and reads what they have found, whatever became of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_LEAST = 5.0  # seconds with which a part is still begun
_SAID = 3000  # characters of a part's last words
_WORKER = (sys.executable, "-m", "scripts.cuda.worker")


@dataclass(frozen=True)
class Part:
    """name: in the document. works: of `worker`. seconds: after which it is ended, of USUAL. shape: of models
    and times. ptx: with PTX in the place of cubins. under: a program that runs it, with its arguments. tiny:
    at the shapes of a rehearsal.
    """

    name: str
    works: tuple[str, ...]
    seconds: float
    shape: str = ""
    ptx: bool = False
    under: tuple[str, ...] = ()
    tiny: bool = False


@dataclass(frozen=True)
class Place:
    """folder: for what parts write. models: of weights. ptx: kernels as PTX. rehearse: without a GPU."""

    folder: Path
    models: Path
    ptx: Path
    rehearse: bool

    def command(self, part: Part, seconds: float) -> list[str]:
        """Of a part's process."""
        asked = [*part.under, *_WORKER, *part.works, "--into", str(self.lines(part))]
        asked += ["--models", str(self.models), "--seconds", f"{seconds:.0f}"]
        asked += ["--shape", part.shape] if part.shape else []
        return asked + (["--rehearse"] if self.rehearse else []) + (["--tiny"] if part.tiny else [])

    def lines(self, part: Part) -> Path:
        """What it has found."""
        return self.folder / f"{part.name}.jsonl"

    def environment(self, part: Part) -> dict[str, str]:
        """Of its process."""
        return {**os.environ, **({"EDGE_CUBINS": str(self.ptx)} if part.ptx else {})}


USUAL = 360.0
"""Seconds of all parts, of which each has its share."""


def run_waves(waves: Sequence[Sequence[Part]], place: Place, seconds: float) -> dict[str, Any]:
    """Results by name. Parts of a wave run side by side, waves one after another, all within `seconds`."""
    end = time.monotonic() + seconds
    found: dict[str, Any] = {}
    for wave in waves:
        with ThreadPoolExecutor(len(wave)) as threads:
            results = threads.map(lambda part: _part(part, place, seconds / USUAL, end), wave)
            for part, result in zip(wave, results, strict=True):
                found[part.name] = result
                print(line_of(part.name, result), file=sys.stderr, flush=True)
    return found


def _part(part: Part, place: Place, scale: float, end: float) -> dict[str, Any]:
    seconds = min(scale * part.seconds, end - time.monotonic())
    if seconds < _LEAST:
        return {"state": "left out: no time", "seconds": 0.0, "results": []}
    command = place.command(part, seconds)
    return run_process(command, place.lines(part), seconds, place.environment(part))


def run_process(
    command: Sequence[str], lines: Path, seconds: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """state: `done`, `failed`, `out of time` or `ended by SIGABRT` and the like; results: what stands in
    `lines`; said: the end of what it printed, unless it is done.
    """
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.unlink(missing_ok=True)
    log, started, state = lines.with_suffix(".log"), time.monotonic(), "done"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            if code:
                state = f"ended by {signal.Signals(-code).name}" if code < 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state = "out of time"
    result = {"state": state, "seconds": round(time.monotonic() - started, 2), "results": _read(lines)}
    if state != "done":
        result["said"] = log.read_text(encoding="utf-8", errors="replace")[-_SAID:]
    return result


def _read(lines: Path) -> list[dict[str, Any]]:
    """All whole lines."""
    if not lines.exists():
        return []
    text = lines.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def failed(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Checks that were wrong."""
    return [line for line in result["results"] if "check" in line and not line["good"]]


def line_of(name: str, result: Mapping[str, Any]) -> str:
    """A part as it is printed."""
    checks = sum("check" in line for line in result["results"])
    wrong = failed(result)
    text = f"{name:12} {result['state']:18} {result['seconds']:6.1f} s  {checks} checks, {len(wrong)} wrong"
    return "\n".join([text, *(f"    wrong: {line}" for line in wrong[:5])])
