"""Times the native sampler against plain numpy, over logits shaped like a language model's.

    python scripts/bench_sampler.py [--vocabulary 73448] [--repeats 300]

The last line is one JSON document: median microseconds per token for each setting.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from time import perf_counter

import numpy as np

from edge.sampling import Sampler, SamplingParams

SETTINGS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 0.8, "top_k": 40},
    "top_p": {"temperature": 0.8, "top_p": 0.8},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
    "typical_p": {"temperature": 0.8, "typical_p": 0.9},
    "top_k, top_p, min_p": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "top_p, repetition_penalty": {"temperature": 0.8, "top_p": 0.8, "repetition_penalty": 1.1},
}


def numpy_top_p(logits: np.ndarray, random: np.random.Generator) -> int:
    """The baseline: temperature 0.8 and top-p 0.8 with a full sort."""
    order = np.argsort(-logits)
    p = np.exp((logits[order] - logits[order[0]]) / 0.8)
    p /= p.sum()
    p[np.cumsum(p) - p >= 0.8] = 0
    return int(order[np.searchsorted(np.cumsum(p), random.random() * p.sum(), side="right")])


def median_microseconds(call: Callable[[np.ndarray], object], rows: list[np.ndarray], repeats: int) -> float:
    times = []
    for i in range(repeats):
        start = perf_counter()
        call(rows[i % len(rows)])
        times.append(perf_counter() - start)
    return round(float(np.median(times)) * 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=73448)
    parser.add_argument("--repeats", type=int, default=300)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        # Real logits: a bulk about 20 below the best token with a few rivals near it.
        logits = random.normal(-20, 3.5, arguments.vocabulary)
        logits[random.integers(0, arguments.vocabulary, 12)] = -random.exponential(3, 12)
        rows.append(logits.astype(np.float32))
    history = random.integers(0, arguments.vocabulary, 2000).astype(np.int32)
    figures = {"numpy top_p (baseline)": median_microseconds(lambda x: numpy_top_p(x, random), rows, 30)}
    for name, settings in SETTINGS.items():
        sampler = Sampler(SamplingParams(**settings, seed=1))  # type: ignore[arg-type]
        figures[name] = median_microseconds(
            lambda x, sampler=sampler: sampler.sample(x, history),  # type: ignore[misc]
            rows,
            arguments.repeats,
        )
    print(
        json.dumps(
            {"microseconds": figures, "vocabulary": arguments.vocabulary, "machine": platform.processor()}
        )
    )


if __name__ == "__main__":
    main()
