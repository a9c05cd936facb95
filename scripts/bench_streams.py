"""Times several answers at once through the scheduler, beside the bare passes that they share.

    python scripts/bench_streams.py [--model random:minicpm4-0.5b] [--threads 2] [--repeats 5]

A thread of its own reads each answer (`model.stream`). Every repeat measures, in turn: answers side by side
at a context of 512 tokens, and the same decode by the profiler's loop without scheduler, threads and text, so
that the difference is what those cost in a pass; then a prompt of 4096 tokens alone, and while two answers go
on. The figures are medians. The last line is one JSON document. Let the machine be idle.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import edge
from edge.engine.session import Session
from edge.measure.profile.measure import Bench
from edge.runtime import Model

CONTEXT = 512  # tokens before every answer
STREAMS = (1, 2, 4, 8)
BESIDE = 2  # answers beside a prompt
SETTINGS: dict[str, Any] = {"temperature": 0.8, "top_p": 0.8, "ignore_eos": True}
_SETTLED = 8  # tokens of each answer before the prompt comes


def tokens_of(model: Model, count: int, seed: int) -> list[int]:
    """Random tokens as a prompt."""
    found: list[int] = np.random.default_rng(seed).integers(3, model.config.vocab_size, count).tolist()
    return found


@dataclass
class Reader:
    """An answer that a thread of its own reads. times: when each of its tokens came, in seconds."""

    model: Model
    session: Session
    prompt: Sequence[int]
    tokens: int
    start: threading.Barrier
    times: list[float] = field(default_factory=list)
    settled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._stream = self.model.stream(
            self.prompt, session=self.session, seed=0, max_new_tokens=self.tokens, **SETTINGS
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        self.start.wait()
        try:
            for chunk in self._stream:
                if chunk.token is not None:
                    self.times.append(perf_counter())
                if len(self.times) == _SETTLED:
                    self.settled.set()
        finally:
            self.settled.set()  # after an error, too: nobody shall wait for it

    def end(self) -> None:
        """Cancel what is not finished, and wait for the thread."""
        self._stream.cancel()
        self._thread.join()

    def finish(self) -> None:
        """Wait for the whole answer."""
        self._thread.join()


def readers(model: Model, sessions: Sequence[Session], tokens: int) -> list[Reader]:
    """Answers of so many tokens that begin at once: their prompts are in the caches but for one token."""
    start, found = threading.Barrier(len(sessions)), []
    for seed, session in enumerate(sessions):
        prompt = tokens_of(model, CONTEXT, seed)
        session.prefill(prompt)
        found.append(Reader(model, session, prompt, tokens, start))
    return found


def side_by_side(model: Model, sessions: Sequence[Session], tokens: int) -> float:
    """Tokens per second of all answers together, while every one of them goes on."""
    answers = readers(model, sessions, tokens)
    for answer in answers:
        answer.finish()
    begin, end = max(each.times[0] for each in answers), min(each.times[-1] for each in answers)
    return sum(begin < time <= end for each in answers for time in each.times) / (end - begin)


def prompt_alone(model: Model, session: Session, length: int) -> float:
    """Tokens per second of a prompt in an empty cache."""
    session.reset()
    started = perf_counter()
    session.prefill(tokens_of(model, length, CONTEXT))
    return length / (perf_counter() - started)


def prompt_beside(
    model: Model, sessions: Sequence[Session], session: Session, length: int
) -> tuple[float, list[float]]:
    """Tokens per second of the same prompt while the sessions' answers go on.

    With them the times between the tokens of each of those answers meanwhile, in seconds.
    """
    answers = readers(model, sessions, model.context - CONTEXT)
    for answer in answers:
        answer.settled.wait()
    session.reset()
    started = perf_counter()
    session.prefill(tokens_of(model, length, CONTEXT))
    ended = perf_counter()
    for answer in answers:
        answer.end()
    gaps = [
        after - before
        for each in answers
        for before, after in zip(each.times, each.times[1:], strict=False)
        if after > started and before < ended
    ]
    return length / (ended - started), gaps


def share_left(alone: float, beside: float, gaps: Sequence[float], tokens: float, length: int) -> float:
    """Speed of the prompt beside answers, over the speed that it has alone less their share.

    alone, beside: tokens per second of the prompt. gaps: one for each token of the answers meanwhile.
    tokens: per second of the answers by themselves: their share is the time that they would have needed so.
    """
    theirs = len(gaps) / tokens / (length / beside)
    return beside / (alone * (1 - theirs))


def measured(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """The document's figures."""
    sessions = [model.session() for _ in STREAMS[-1] * [None]]
    asking, bench = model.session(), Bench(model.executor, "prefill")
    speeds: dict[int, list[float]] = defaultdict(list)
    passes: dict[int, list[float]] = defaultdict(list)
    alone, beside, left = [], [], []
    gaps: list[float] = []
    for _ in range(options.repeats):
        for count in STREAMS:
            speeds[count].append(side_by_side(model, sessions[:count], options.tokens))
            bare = bench.measure("decode", options.tokens, CONTEXT, count).token_seconds
            passes[count].append(float(np.mean(bare)))
        alone.append(prompt_alone(model, asking, options.prompt))
        speed, meanwhile = prompt_beside(model, sessions[:BESIDE], asking, options.prompt)
        beside.append(speed)
        left.append(share_left(alone[-1], speed, meanwhile, speeds[BESIDE][-1], options.prompt))
        gaps += meanwhile
    streams = {
        str(count): {
            "tokens/s": round(median(speeds[count]), 1),
            "samples": [round(speed, 1) for speed in speeds[count]],
            "of one": round(median(a / b for a, b in zip(speeds[count], speeds[1], strict=True)), 3),
            "pass ms": round(1000 * median(passes[count]), 3),
            "beside the pass ms": round(
                1000
                * median(
                    count / speed - bare for speed, bare in zip(speeds[count], passes[count], strict=True)
                ),
                3,
            ),
        }
        for count in STREAMS
    }
    p50, p99 = (round(1000 * float(value), 1) for value in np.percentile(gaps, (50, 99)))
    return {
        "streams": streams,
        "prompt": {
            "tokens": options.prompt,
            "streams": BESIDE,
            "tokens/s alone": round(median(alone), 1),
            "tokens/s beside": round(median(beside), 1),
            "of alone less the streams' share": round(median(left), 3),
            "p50 ms": p50,
            "p99 ms": p99,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random:minicpm4-0.5b")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer side by side")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prompt beside answers")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    context = CONTEXT + max(options.prompt, options.tokens) + 1024
    with edge.load(
        options.model, quantize=options.quantize, threads=options.threads, context=context
    ) as model:
        info = model.executor.info
        figures = measured(model, options)
        document = {
            "machine": {"tier": info.tier, "threads": info.threads, "load": round(load, 2)},
            "model": {"name": options.model, "quantize": options.quantize, "kv_type": info.kv_type},
            **{"context": CONTEXT, "tokens": options.tokens, "repeats": options.repeats, **figures},
        }
    for count, found in figures["streams"].items():
        print(
            f"{count} streams: {found['tokens/s']:7.1f} tokens/s, {found['of one']:.2f} x one; "
            f"a bare pass {found['pass ms']:.2f} ms, beside it {found['beside the pass ms']:.2f} ms"
        )
    for name, value in figures["prompt"].items():
        print(f"prompt beside streams: {name} {value}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
