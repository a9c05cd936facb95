"""Times the native sampler beside a decode step of MiniCPM4-0.5B, and against plain numpy.

    python scripts/bench_sampler.py [--repeats 300] [--threads 2] [--model random:minicpm4-0.5b]

The sampler gets logits shaped like a language model's, as many as the model has tokens; the step runs on the
native executor in the same process. The last line is one JSON document: median microseconds per token for
the step and for each setting, and the sampler's part of a token's time (step and sampler) in percent.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

import edge
from edge.engine.sampling import Sampler
from edge.engine.session import Session
from edge.engine.settings import SamplingParams

CONTEXT = 1024
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


def decode_step(session: Session, repeats: int) -> float:
    """Median microseconds of one token after a short prompt."""
    session.prefill(range(100, 164))
    times = []
    for i in range(min(repeats, CONTEXT - session.length)):
        start = perf_counter()
        session.step(100 + i)
        times.append(perf_counter() - start)
    return round(float(np.median(times)) * 1e6, 1)


def machine() -> str:
    """The platform, and the CPU's name where the system tells."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return ", ".join(part for part in (platform.platform(), name) if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--threads", type=int, help="of the step; the sampler uses one")
    parser.add_argument("--model", default="random:minicpm4-0.5b")
    arguments = parser.parse_args()
    with edge.load(arguments.model, context=CONTEXT, threads=arguments.threads) as model:
        vocabulary, threads = model.config.vocab_size, model.executor.info.threads
        step = decode_step(model.session(), arguments.repeats)
    random = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        # Real logits: a bulk about 20 below the best token with a few rivals near it.
        logits = random.normal(-20, 3.5, vocabulary)
        logits[random.integers(0, vocabulary, 12)] = -random.exponential(3, 12)
        rows.append(logits.astype(np.float32))
    history = random.integers(0, vocabulary, 2000).astype(np.int32)
    figures = {"numpy top_p (baseline)": median_microseconds(lambda x: numpy_top_p(x, random), rows, 30)}
    for name, settings in SETTINGS.items():
        sampler = Sampler(SamplingParams(**settings, seed=1))  # type: ignore[arg-type]
        figures[name] = median_microseconds(
            lambda x, sampler=sampler: sampler.sample(x, history),  # type: ignore[misc]
            rows,
            arguments.repeats,
        )
    share = {name: round(100 * time / (step + time), 2) for name, time in figures.items()}
    for name, time in figures.items():
        print(f"{name:28} {time:8.1f} us {share[name]:6.2f} % of a token's time")
    print(
        json.dumps(
            {
                "microseconds": {"decode step": step, **figures},
                "percent_of_token": share,
                "model": arguments.model,
                "vocabulary": vocabulary,
                "threads": threads,
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
