"""The protocol over one executor: reach a depth, prefill, decode with sampling, and what memory that took."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
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
from edge.measure.profile.schema import ProfileError

SAMPLING = SamplingParams(temperature=0.8, top_p=0.8, seed=0)
"""What the sampler does after every decode step."""
_SEED_ROWS = 64  # rows of real keys and values that a synthetic cache repeats
_WARM_UP = 4  # decode steps that do not count
_OPERATOR_STEPS = 8


@dataclass(frozen=True)
class Measured:
    """One measurement: wall time of the whole, of the single tokens of a decode, the process's highest
    resident memory, and the energy of the machine's processors.
    """

    seconds: float
    token_seconds: tuple[float, ...]
    peak_memory_bytes: int
    joules: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class Bench:
    """Measures one executor; a KV cache for every depth stays filled from one measurement to the next."""

    def __init__(self, executor: Executor, fill: str) -> None:
        if fill == "synthetic" and not isinstance(executor, RepeatsRows):
            raise ProfileError("This executor can't fill its cache synthetically: leave --fill out.")
        self._executor, self._fill = executor, fill
        self._row_bytes = executor.config.kv_bytes_per_token(executor.info.kv_type)
        self._caches: dict[int, KVCache] = {}
        self._warm: set[tuple[str, int, int]] = set()
        self._meter = EnergyMeter()

    def measure(self, test: str, tokens: int, depth: int) -> Measured:
        """A prefill or a decode of `tokens` tokens after `depth` others; the first call warms up before."""
        cache = self._cache(depth)
        if (test, tokens, depth) not in self._warm:
            self._warm.add((test, tokens, depth))
            self._run(test, cache, min(tokens, self._executor.max_batch if test == "prefill" else _WARM_UP))
        _reset_peak()
        self._meter.start()
        started = time.perf_counter()
        single = self._run(test, cache, tokens)
        seconds = time.perf_counter() - started
        others = sum(other.length for other in self._caches.values()) - depth
        peak = _peak_memory() - others * self._row_bytes
        return Measured(seconds, tuple(single), max(peak, 0), self._meter.joules())

    def operators(self, test: str, tokens: int, depth: int) -> list[list[dict[str, Any]]]:
        """The operators of some passes: decode steps, or a prefill of `tokens` tokens."""
        executor, cache = self._executor, self._cache(depth)
        if not isinstance(executor, Observable):
            raise ProfileError("This executor does not report its operators: leave --ops out.")
        passes = []
        self._run(test, cache, 1 if test == "decode" else tokens)
        for _ in range(min(tokens, _OPERATOR_STEPS) if test == "decode" else 1):
            with observed(executor) as events:
                self._run(test, cache, 1 if test == "decode" else tokens)
            passes.append(decode_events(events))
        return passes

    def _run(self, test: str, cache: KVCache, tokens: int) -> list[float]:
        depth = cache.length
        try:
            return self._decode(cache, tokens) if test == "decode" else self._prefill(cache, tokens)
        finally:
            self._executor.truncate(cache, depth)

    def _prefill(self, cache: KVCache, tokens: int) -> list[float]:
        logits = self._feed(cache, self._prompt(tokens))
        Sampler(SAMPLING).sample(logits)
        return []

    def _decode(self, cache: KVCache, tokens: int) -> list[float]:
        sampler, token, times = Sampler(SAMPLING), int(self._prompt(1)[0]), []
        for index in range(tokens):
            started = time.perf_counter()
            result = run_step(self._executor, SequenceStep(cache, [token]))
            assert result.logits is not None
            token = sampler.sample(result.logits[0], index=index).token
            times.append(time.perf_counter() - started)
        return times

    def _feed(self, cache: KVCache, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        step = self._executor.max_batch
        for start in range(0, len(tokens), step):
            wanted: Logits = "last" if start + step >= len(tokens) else "none"
            result = run_step(
                self._executor, SequenceStep(cache, tokens[start : start + step], logits=wanted)
            )
        assert result.logits is not None
        return result.logits[0]

    def _cache(self, depth: int) -> KVCache:
        if depth not in self._caches:
            cache = self._executor.new_cache()
            if depth:
                self._feed(
                    cache, self._prompt(min(depth, _SEED_ROWS) if self._fill == "synthetic" else depth)
                )
            if depth > cache.length:
                assert isinstance(self._executor, RepeatsRows)
                self._executor.repeat(cache, depth)
            self._caches[depth] = cache
        return self._caches[depth]

    def _prompt(self, tokens: int) -> npt.NDArray[np.int32]:
        """Random tokens, the same ones every time."""
        vocabulary = self._executor.config.vocab_size
        return np.random.default_rng(0).integers(0, vocabulary, tokens, dtype=np.int32)


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
