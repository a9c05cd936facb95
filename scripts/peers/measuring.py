"""Runs processes in turn and makes rows of what they print.

A worker gets one JSON object: model, vocabulary, threads, tests (kind, tokens, depth, streams), and
arguments of its own. It prints one: speeds (tokens per second, a test each), facts, and perhaps the read
bandwidth (GB/s) meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .parts import Run
from .programs import EDGE

Outcome = dict[str, Any]


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many endless loops beside."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.2 if count else 0)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def apart(python: str, run: Run, job: dict[str, Any]) -> Outcome:
    """What a run prints, in a process of its own."""
    worker = str(Path(__file__).parent / run.program.worker)
    tests = [[test.kind, test.tokens, test.depth, test.streams] for test in run.tests]
    command = [python, worker, json.dumps({**job, "tests": tests, **run.arguments})]
    environment = {**os.environ, **run.environment}
    with busy_processes(run.busy):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stderr[-3000:]}\n{run.program.name} failed: {' '.join(command)}")
    outcome: Outcome = json.loads(done.stdout.splitlines()[-1])
    return outcome


@dataclass
class Measured:
    """The outcomes of a run, one a round."""

    run: Run
    outcomes: list[Outcome] = field(default_factory=list)

    def samples(self, test: int) -> list[float]:
        """Tokens per second of a test, round by round."""
        return [outcome["speeds"][test] for outcome in self.outcomes]


def in_turn(runs: Sequence[Run], rounds: int, measure: Callable[[Run], Outcome]) -> list[Measured]:
    """Every run once a round, every second round backwards."""
    found = [Measured(run) for run in runs]
    for turn in range(rounds):
        for each in found[:: -1 if turn % 2 else 1]:
            if turn < each.run.rounds:
                each.outcomes.append(measure(each.run))
    return found


def rows_of(part: str, found: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row for every test of every run.

    ratio: of a peer: how many times as fast our first run with the same weights beside as many busy processes
    is, median over rounds. share: of the read bandwidth over the bytes of all weights, by the best bandwidth
    of the round. share_of_alone: of the speed without busy processes.
    """
    limits: list[float] = []
    for turn in range(max(len(each.outcomes) for each in found)):
        of_turn = [each.outcomes[turn] for each in found if turn < len(each.outcomes)]
        limits.append(max((each.get("bandwidth") or 0.0 for each in of_turn), default=0.0))
    rows = []
    for each in found:
        run, facts = each.run, each.outcomes[0]["facts"]
        same = [other for other in found if other.run.weights == run.weights]
        ours = next((o for o in same if o.run.program is EDGE and o.run.busy == run.busy), None)
        alone = next(
            (o for o in same if (o.run.program, o.run.setting, o.run.busy) == (run.program, run.setting, 0)),
            None,
        )
        for index, test in enumerate(run.tests):
            samples = each.samples(index)
            row: dict[str, Any] = {
                "part": part,
                "program": run.program.name,
                "weights": run.weights.label,
                "setting": run.setting,
                "test": test.kind,
                "tokens": test.tokens,
                "depth": test.depth,
                "streams": test.streams,
                "busy_processes": run.busy,
                "tokens_per_second": round(median(samples), 2),
                "samples": [round(value, 2) for value in samples],
            }
            if ours is not None and run.program is not EDGE and test in ours.run.tests:
                pairs = zip(ours.samples(ours.run.tests.index(test)), samples, strict=True)
                row["ratio"] = round(median(a / b for a, b in pairs), 3)
            if test.kind == "decode" and all(limits) and "read_bytes" in facts:
                shares = (v * facts["read_bytes"] / 1e9 / g for v, g in zip(samples, limits, strict=False))
                row["share"] = round(median(shares), 3)
            if part == "busy" and alone is not None:
                row["share_of_alone"] = round(median(samples) / median(alone.samples(index)), 3)
            rows.append(row)
    return rows
