"""The protocol over one executor: reach a depth, prefill, decode with sampling, verify, and what memory
that took.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.engine.sampling import Sampler
from edge.engine.settings import SamplingParams
from edge.executors.protocol import (
    Executor,
    KVCache,
    Logits,
    Observable,
    RepeatsRows,
    SequenceStep,
    run_step,
)
from edge.measure.profile.energy import EnergyMeter
from edge.measure.profile.operators import decode_events, observed
from edge.measure.profile.options import Case, Test
from edge.measure.profile.schema import ProfileError

SAMPLING = SamplingParams(temperature=0.8, top_p=0.8, seed=0)
"""What the sampler does after every decode step."""
_SEED_ROWS = 64  # rows of real keys and values that a synthetic cache repeats
_WARM_UP = 4  # decode steps that do not count
_OPERATOR_STEPS = 8
_VERIFICATIONS = 8  # passes of one measurement


@dataclass(frozen=True)
class Measured:
    """One measurement: wall time of the whole, of the single passes of a decode or of repeated verifications
    (whose whole is their median), the process's highest resident memory, and the energy of the machine's
    processors.
    """

    seconds: float
    token_seconds: tuple[float, ...]
    peak_memory_bytes: int
    joules: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class Bench:
    """Measures one executor; KV caches for every depth stay filled from one measurement to the next."""

    def __init__(self, executor: Executor, fill: str) -> None:
        if fill == "synthetic" and not isinstance(executor, RepeatsRows):
            raise ProfileError("This executor can't fill its cache synthetically: leave --fill out.")
        self._executor, self._fill = executor, fill
        self._row_bytes = executor.config.kv_bytes_per_token(executor.info.kv_type)
        self._caches: dict[int, list[KVCache]] = {}  # by depth, one for each stream
        self._warm: set[Case] = set()
        self._meter = EnergyMeter()

    def measure(self, test: Test, tokens: int, depth: int, streams: int = 1) -> Measured:
        """One test (see `Case`); the first call warms up before."""
        case = Case(test, tokens, depth, streams)
        caches = self._filled(depth, streams)
        if case not in self._warm:
            self._warm.add(case)
            least = {"prefill": self._executor.max_batch, "decode": _WARM_UP, "verify": tokens}[test]
            self._run(case._replace(tokens=min(tokens, least)), caches)
        _reset_peak()
        self._meter.start()
        started = time.perf_counter()
        single = self._run(case, caches)
        seconds, joules = time.perf_counter() - started, self._meter.joules()
        if test == "verify":
            seconds, joules = median(single), None if joules is None else joules / len(single)
        rows = sum(cache.length for filled in self._caches.values() for cache in filled)
        peak = _peak_memory() - (rows - depth * streams) * self._row_bytes
        return Measured(seconds, tuple(single), max(peak, 0), joules)

    def operators(self, test: Test, tokens: int, depth: int, streams: int = 1) -> list[list[dict[str, Any]]]:
        """The operators of some passes: decode steps, a verification, or a prefill of `tokens` tokens."""
        executor, caches = self._executor, self._filled(depth, streams)
        if not isinstance(executor, Observable):
            raise ProfileError("This executor does not report its operators: leave --ops out.")
        case, passes = Case(test, 1 if test == "decode" else tokens, depth, streams), []
        self._run(case, caches, 1)
        for _ in range(min(tokens, _OPERATOR_STEPS) if test == "decode" else 1):
            with observed(executor) as events:
                self._run(case, caches, 1)
            passes.append(decode_events(events))
        return passes

    def _run(self, case: Case, caches: list[KVCache], verifications: int = _VERIFICATIONS) -> list[float]:
        """Seconds of the single passes, none of a prefill; leaves the caches as they were."""
        try:
            if case.test == "decode":
                return self._decode(caches, case.tokens)
            if case.test == "verify":
                return [self._verify(caches[0], case.tokens) for _ in range(verifications)]
            return self._prefill(caches[0], case.tokens)
        finally:
            for cache in caches:
                self._executor.truncate(cache, case.depth)

    def _prefill(self, cache: KVCache, tokens: int) -> list[float]:
        logits = self._feed(cache, self._prompt(tokens))
        Sampler(SAMPLING).sample(logits)
        return []

    def _decode(self, caches: list[KVCache], tokens: int) -> list[float]:
        samplers = [Sampler(SAMPLING, choice=stream) for stream in range(len(caches))]
        last, times = [int(self._prompt(1, stream)[0]) for stream in range(len(caches))], []
        for index in range(tokens):
            started = time.perf_counter()
            steps = [SequenceStep(cache, [token]) for cache, token in zip(caches, last, strict=True)]
            results = self._executor.forward(steps)
            for stream, (sampler, result) in enumerate(zip(samplers, results, strict=True)):
                if result.error is not None:
                    raise result.error
                assert result.logits is not None
                last[stream] = sampler.sample(result.logits[0], index=index).token
            times.append(time.perf_counter() - started)
        return times

    def _verify(self, cache: KVCache, rows: int) -> float:
        """Seconds of one pass over `rows` candidates in a row, as a tree where the executor has trees."""
        depth, tree = cache.length, None
        if rows <= self._executor.capabilities.max_tree:
            tree = np.array([(1 << (row + 1)) - 1 for row in range(rows)], np.uint64)
        step = SequenceStep(cache, self._prompt(rows), tree=tree, logits="all")
        started = time.perf_counter()
        run_step(self._executor, step)
        seconds = time.perf_counter() - started
        self._executor.truncate(cache, depth)
        return seconds

    def _feed(self, cache: KVCache, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        step = self._executor.max_batch
        for start in range(0, len(tokens), step):
            wanted: Logits = "last" if start + step >= len(tokens) else "none"
            result = run_step(
                self._executor, SequenceStep(cache, tokens[start : start + step], logits=wanted)
            )
        assert result.logits is not None
        return result.logits[0]

    def _filled(self, depth: int, streams: int) -> list[KVCache]:
        """Caches of `depth` tokens, which share no memory: each stream reads keys and values of its own."""
        filled = self._caches.setdefault(depth, [])
        while len(filled) < streams:
            cache = self._executor.new_cache()
            if depth:
                rows = min(depth, _SEED_ROWS) if self._fill == "synthetic" else depth
                self._feed(cache, self._prompt(rows, len(filled)))
            if depth > cache.length:
                assert isinstance(self._executor, RepeatsRows)
                self._executor.repeat(cache, depth)
            filled.append(cache)
        return filled[:streams]

    def _prompt(self, tokens: int, stream: int = 0) -> npt.NDArray[np.int32]:
        """Random tokens, the same ones every time for a stream."""
        vocabulary = self._executor.config.vocab_size
        return np.random.default_rng(stream).integers(0, vocabulary, tokens, dtype=np.int32)


def _reset_peak() -> None:
    with suppress(OSError):  # Linux; elsewhere the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """The highest resident memory of this process in bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
