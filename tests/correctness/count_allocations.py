"""Runs a bundle with kernels/tools/allocation_counter preloaded; prints how often each call allocated.

python count_allocations.py BUNDLE COUNTER; `test_allocations.py` starts it. The output's last line is JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from edge.engine.sampling import Sampler
from edge.engine.settings import SamplingParams
from edge.executors.native import library as native
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import SequenceStep, run_step
from edge.formats.bundle.reader import Bundle

PROMPT = 300  # longer than one chunk of attention, so that decoding splits the context over threads
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "every filter": {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
    "penalties": {"temperature": 1.5, "repetition_penalty": 1.1, "logprobs": 5, "logit_bias": {7: 1.0}},
}


class Counter:
    """Lets libedge's calls run under the counter; `counts` has one entry for each of them."""

    def __init__(self, path: str) -> None:
        self._counter = ctypes.CDLL(path)
        self._counter.allocations_counted.restype = ctypes.c_int64
        self.counts: list[int] = []
        for name in ("forward", "sample"):
            self._wrap(name)

    def example(self) -> int:
        """The count of a function that allocates twice."""
        self._counter.counted_example()
        return int(self._counter.allocations_counted())

    def take(self) -> list[int]:
        """The counts since the last time."""
        taken, self.counts = self.counts, []
        return taken

    def _wrap(self, name: str) -> None:
        original = native.library()[f"edge_{name}"]  # without the checks around it
        counted = getattr(self._counter, f"counted_{name}")
        counted.restype, arguments = native._FUNCTIONS[f"edge_{name}"]
        counted.argtypes = (ctypes.c_void_p, *arguments)

        def call(*arguments: Any) -> int:
            status = int(counted(ctypes.cast(original, ctypes.c_void_p), *arguments))
            self.counts.append(int(self._counter.allocations_counted()))
            return status

        setattr(native.library(), f"edge_{name}", call)


def run(
    bundle: Bundle, activations: str, kv_type: str, take: Callable[[], list[int]]
) -> dict[str, list[int]]:
    """Counts of a prompt, of decoding, and of a tree with every kind of output."""
    executor = open_executor(bundle, RunOptions(activations=activations, kv_type=kv_type, threads=2))
    cache = executor.new_cache()
    vocabulary = bundle.config.vocab_size
    prompt = np.arange(PROMPT, dtype=np.int32) % vocabulary
    take()
    counts = {}
    for start in range(0, PROMPT, executor.max_batch):
        run_step(executor, SequenceStep(cache, prompt[start : start + executor.max_batch]))
    counts["prefill"] = take()
    for token in range(5):
        run_step(executor, SequenceStep(cache, [token]))
    counts["decode"] = take()
    chain = np.array([(1 << (i + 1)) - 1 for i in range(5)], np.uint64)
    tree = SequenceStep(cache, prompt[:5], tree=chain, logits="all", hidden=True, layers=[0, 1])
    others = [executor.new_cache() for _ in range(3)]
    take()
    results = executor.forward([tree, *(SequenceStep(other, prompt[:30]) for other in others)])
    assert all(result.error is None for result in results)
    counts["tree"] = take()
    executor.close()
    return counts


def main() -> None:
    path, counter_path = sys.argv[1:]
    counter = Counter(counter_path)
    bundle = Bundle.open(path)
    counts = {"example": [counter.example()]}
    for activations in native.ACTIVATIONS:
        for kv_type in native.KV_TYPE:
            for what, taken in run(bundle, activations, kv_type, counter.take).items():
                counts[f"{what}, {activations} activations, {kv_type} KV"] = taken
    random = np.random.default_rng(0)
    for name, settings in SAMPLINGS.items():
        sampler = Sampler(SamplingParams(**settings, seed=1))  # type: ignore[arg-type]
        for length in range(20):
            logits = random.normal(0, 3, 5000).astype(np.float32)
            sampler.sample(logits, np.arange(50 * length, dtype=np.int32))
        counts[f"sampling, {name}"] = counter.take()
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
