"""Traces of executor calls in the format of Chrome and Perfetto, with a checksum of every operator's output.

`EDGE_TRACE=file.json` makes `edge.load` trace every model of the process; the file is written when the models
are closed and at the end. `edge align` compares two such files: the first operator whose outputs differ shows
where a port goes wrong.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import threading
import time
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError
from edge.executors.native import library as native
from edge.executors.protocol import (
    Executor,
    Observable,
    OneByOne,
    SequenceStep,
    Staged,
    StepResult,
    run_step,
)
from edge.formats.atomic import write_failure, write_file

TRACE_VARIABLE = "EDGE_TRACE"
"""Environment variable with the path of the trace to write."""
CALL = "forward"
"""Name of the event of a whole call; all others are operators in one."""
SKETCH = 32
"""Length of a checksum's sketch: the distance of two sketches estimates the distance of the outputs."""

_Floats = npt.NDArray[np.float32]


def checksum(output: _Floats) -> dict[str, Any]:
    """Numbers that stand for an array [rows][columns]: its norm, largest magnitude, and a random projection.

    The projections of two arrays differ by about as much as the arrays do (Johnson-Lindenstrauss, with signs
    that are a product of one per row and one per column).
    """
    values = output.astype(np.float64)
    rows, columns = values.shape
    row_signs, column_signs = _signs(rows, 1), _signs(columns, 2)
    sketch = np.einsum("kr,rk->k", row_signs, values @ column_signs.T) / np.sqrt(SKETCH)
    return {
        "shape": [rows, columns],
        "norm": float(np.linalg.norm(values)),
        "largest": float(np.abs(values).max(initial=0.0)),
        "sketch": [float(f"{value:.9g}") for value in sketch],
    }


class Trace:
    """Collects events of any number of executors and writes them as one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._executors = 0
        try:
            write_file(path, b'{"traceEvents": []}\n')  # better refused now than after minutes of work
        except OSError as error:
            raise EdgeError(write_failure(path, error)) from None

    def next_executor(self) -> int:
        """A number for another executor."""
        with self._lock:
            self._executors += 1
            return self._executors

    def add(
        self, name: str, category: str, start: float, seconds: float, executor: int, facts: dict[str, Any]
    ) -> None:
        """One finished call; start: on the monotonic clock, in seconds."""
        event = {
            "name": name,
            "cat": category,
            "ph": "X",
            "ts": round(start * 1e6, 3),
            "dur": round(seconds * 1e6, 3),
            "pid": os.getpid(),
            "tid": executor,
            "args": facts,
        }
        with self._lock:
            self._events.append(event)

    def write(self) -> None:
        """Write what was collected so far; raises EdgeError."""
        with self._lock:
            text = json.dumps({"traceEvents": self._events, "displayTimeUnit": "ms"})
        try:
            write_file(self._path, text.encode() + b"\n")
        except OSError as error:
            raise EdgeError(write_failure(self._path, error)) from None


class TracedExecutor(OneByOne):
    """An executor that reports its calls, and their operators if it knows them, to a trace.

    The steps of a pass run in calls of their own, so that every operator belongs to one sequence.
    """

    def __init__(self, executor: Executor, trace: Trace) -> None:
        self._executor, self._trace, self._id = executor, trace, trace.next_executor()
        self._call = 0
        self._stage_started = 0.0
        if isinstance(executor, Observable):
            executor.observe(self._operator)
        elif isinstance(executor, Staged):
            executor.report_stages(self._stage)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def _run_step(self, step: SequenceStep) -> StepResult:
        past, started = step.cache.length, time.monotonic()
        self._call, self._stage_started = self._call + 1, started
        result = run_step(self._executor, replace(step, held=False))  # they are looked at here
        facts: dict[str, Any] = {"call": self._call, "tokens": len(step.tokens), "past": past}
        if result.logits is not None:
            facts["checksum"] = checksum(result.logits)
        self._trace.add(CALL, "executor", started, time.monotonic() - started, self._id, facts)
        return result

    def close(self) -> None:
        """Close the executor and write the trace."""
        self._executor.close()
        self._trace.write()

    def _stage(self, operation: str, layer: int, output: _Floats) -> None:
        """A stage began when the one before it had been reported."""
        facts = {"call": self._call, "layer": layer, "checksum": checksum(output)}
        started, ended = self._stage_started, time.monotonic()
        self._trace.add(operation, "operator", started, ended - started, self._id, facts)
        self._stage_started = time.monotonic()

    def _operator(self, raw: bytes) -> None:
        event = native.Event.from_buffer_copy(raw)
        facts = {
            "call": self._call,
            "layer": event.layer,
            "kernel": event.kernel.decode(),
            "bytes": event.bytes,
            "operations": event.operations,
            "checksum": checksum(_output(event)),
        }
        self._trace.add(
            event.operation.decode(),
            "operator",
            event.start_ns / 1e9,
            event.nanoseconds / 1e9,
            self._id,
            facts,
        )


def traced(executor: Executor) -> Executor:
    """The executor itself, or one that is traced if `EDGE_TRACE` names a file."""
    path = os.environ.get(TRACE_VARIABLE)
    return TracedExecutor(executor, _trace(path)) if path else executor


@cache
def _trace(path: str) -> Trace:
    trace = Trace(Path(path))
    atexit.register(trace.write)
    return trace


def _output(event: native.Event) -> _Floats:
    """What an operator wrote, while it is valid."""
    last = (event.rows - 1) * event.stride + event.columns
    flat = np.ctypeslib.as_array(ctypes.cast(event.output, ctypes.POINTER(ctypes.c_float)), (last,))
    padded: _Floats = np.zeros(event.rows * event.stride, np.float32)
    padded[:last] = flat
    return padded.reshape(event.rows, event.stride)[:, : event.columns]


@lru_cache(maxsize=64)
def _signs(count: int, seed: int) -> npt.NDArray[np.float64]:
    """[SKETCH][count] of -1 and 1; longer ones begin with the shorter ones' values."""
    bits = np.random.default_rng(seed).integers(0, 2, (count, SKETCH))
    signs: npt.NDArray[np.float64] = (2.0 * bits - 1.0).T
    return signs
