"""The parts of `scripts/bench_server.py`: each starts the servers that it needs and returns plain JSON."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import numpy as np
from peers.models import INT4_32, Maker, gguf_file
from speculation.run_llama import serving

import edge
from edge.measure.profile.measure import Bench
from edge.runtime import Model

from .client import SAMPLING, Server, ask, at_once, random_prompt

PROMPT = 32  # tokens
_TALK = 512  # tokens of the answers beside which a prompt comes
_GROWTH = 2  # of a long conversation from one message to the next
_SAVING = 300.0  # seconds until a file has to be there
_REST = 2.0  # seconds until a server rests
_QUESTION = 8  # tokens that are new when it comes back


class Job(NamedTuple):
    """What is measured. folder: where models and KV caches of this run are kept."""

    model: str
    vocabulary: int
    context: int
    folder: Path
    threads: int
    options: argparse.Namespace

    def prompt(self, seed: int, length: int = PROMPT) -> list[int]:
        """Random tokens."""
        return random_prompt(seed, length, self.vocabulary)


def quartiles(values: Iterable[float], digits: int) -> list[float]:
    """The first, the median, the third."""
    return [round(float(value), digits) for value in np.percentile([*values], (25, 50, 75))]


def memory(job: Job) -> dict[str, Any]:
    """Private bytes of all processes: after the start, at rest, after four answers, and at rest again.

    Beside them the time to the first token of a new prompt at rest, and of others right after it.
    """
    plain = ("--speculate", "off", "--time-limit", "3600")
    with Server(job.model, arguments=(*plain, "--rest-after", str(_REST))) as server:
        time.sleep(0.5)
        awake = server.private_bytes()
        time.sleep(2 * _REST)
        idle = server.private_bytes()
        first = [server.ask(job.prompt(seed), 2).times[0] for seed in range(4)]
        at_once([partial(server.ask, job.prompt(seed), job.options.tokens) for seed in range(4, 8)])
        after = server.private_bytes()
        time.sleep(2 * _REST)
        again = server.private_bytes()
    return {
        "start_seconds": round(server.start_seconds, 3),
        "awake_private_bytes": awake,
        "idle_private_bytes": idle,
        "private_bytes_after_answers": after,
        "idle_private_bytes_after_answers": again,
        "first_seconds_at_rest": round(first[0], 4),
        "first_seconds_awake": quartiles(first[1:], 4),
    }


def one(job: Job) -> dict[str, Any]:
    """A token's time in the server, in `Model.stream` and in the bare pass of the profiler, in short turns.

    While one of the three computes, the others sleep. The differences are of turns that follow each other, so
    that a machine whose speed drifts adds to all three.
    """
    tokens, order = job.options.turn, ("pass", "stream", "server")
    seconds: dict[str, list[float]] = {name: [] for name in order}
    with Server(job.model) as server, edge.load(job.model, speculate="off", prefix_memory=0) as model:
        bench = Bench(model.executor, "prefill")

        def spent(name: str, seed: int) -> float:
            if name == "pass":
                return float(np.mean(bench.measure("decode", tokens, PROMPT).token_seconds))
            prompt = job.prompt(seed)
            if name == "stream":
                return _step(_streamed(model, prompt, tokens), tokens)
            return _step(server.ask(prompt, tokens, **SAMPLING).times, tokens)

        for name in order:
            spent(name, 0)
        for turn in range(job.options.turns):
            at = turn % len(order)
            for name in (*order[at:], *order[:at]):
                seconds[name].append(spent(name, turn))
    differences = {
        f"{name} beyond {base}": [1e6 * (a - b) for a, b in zip(seconds[name], seconds[base], strict=True)]
        for name, base in (("server", "pass"), ("server", "stream"))
    }
    return {
        "turns": job.options.turns,
        "tokens": tokens,
        "milliseconds": {
            name: quartiles((1e3 * each for each in found), 3) for name, found in seconds.items()
        },
        "added_microseconds": {name: quartiles(found, 1) for name, found in differences.items()},
    }


def _streamed(model: Model, prompt: Sequence[int], tokens: int) -> list[float]:
    settings = {"max_new_tokens": tokens, "ignore_eos": True, **SAMPLING}
    return [perf_counter() for chunk in model.stream(prompt, **settings) if chunk.token is not None]


def _step(times: Sequence[float], tokens: int) -> float:
    """Seconds of a token after the first."""
    return (times[tokens - 1] - times[0]) / (tokens - 1)


def streams(job: Job) -> dict[str, Any]:
    """Tokens per second of one stream and of four together, in turn."""
    with Server(job.model) as server:
        _together(server, 1, job)
        rates = [[_together(server, count, job) for count in (1, 4)] for _ in range(job.options.rounds)]
    return {
        "one_tokens_per_second": quartiles((alone for alone, _ in rates), 2),
        "four_tokens_per_second": quartiles((four for _, four in rates), 2),
        "ratio": quartiles((four / alone for alone, four in rates), 3),
    }


def _together(server: Server, count: int, job: Job) -> float:
    """Tokens per second of so many streams, from the last one's first token to the first end."""
    tokens, begun = job.options.tokens, perf_counter()

    def run(seed: int) -> list[float]:
        started = perf_counter() - begun
        return [started + each for each in server.ask(job.prompt(100 + seed), tokens).times[:tokens]]

    found = at_once([partial(run, seed) for seed in range(count)])
    first, last = max(times[0] for times in found), min(times[-1] for times in found)
    return float(sum(first < at <= last for times in found for at in times) / (last - first))


def first(job: Job) -> dict[str, Any]:
    """Seconds to the first token of short prompts, each beside three running streams."""
    over = threading.Event()
    with Server(job.model) as server:

        def talk(seed: int) -> None:
            while not over.is_set():
                server.ask(job.prompt(200 + seed), min(_TALK, 4 * job.options.tokens))

        def listen() -> list[float]:
            try:
                server.ask(job.prompt(299), 8)
                return [server.ask(job.prompt(300 + n), 2).times[0] for n in range(job.options.first)]
            finally:
                over.set()

        *_, found = at_once([*(partial(talk, seed) for seed in range(3)), listen])
    p50, p95 = (round(float(value), 4) for value in np.percentile(found, (50, 95)))
    return {
        "prompts": len(found),
        "p50_seconds": p50,
        "p95_seconds": p95,
        "most_seconds": round(max(found), 4),
    }


def restart(job: Job) -> dict[str, Any]:
    """The first token of a long conversation in a server that was started after one that was killed.

    The conversation grows message by message, and each has its file before the next comes: a run that was
    ended finds them, and computes the rest only.
    """
    folder, depth = job.folder / "prefixes", min(job.options.depth, job.context - 2 * PROMPT)
    prompt = job.prompt(400, depth)
    lengths = [depth]
    while lengths[0] > 4096:
        lengths.insert(0, lengths[0] // _GROWTH)
    seconds, computed = 0.0, 0
    with Server(job.model, folder) as server:
        for length in lengths:
            before = _files(folder)
            answer = server.ask(prompt[:length], 2)
            seconds, computed = seconds + answer.times[0], computed + length - answer.cached
            end = perf_counter() + _SAVING
            while length > 1.2 * answer.cached and not _files(folder) - before:
                if perf_counter() > end:
                    raise SystemExit(f"{length} tokens have no file after {_SAVING:.0f} seconds.")
                time.sleep(0.05)
    back, cached, starts = [], [], []
    for number in range(job.options.rounds):
        with Server(job.model, folder) as server:
            answer = server.ask([*prompt, *job.prompt(500 + number, _QUESTION)], 1)
        back.append(answer.times[0])
        cached.append(answer.cached)
        starts.append(server.start_seconds)
    return {
        "tokens": depth,
        "computed_tokens": computed,
        "computed_seconds": round(seconds, 3),
        "back_seconds": quartiles(back, 4),
        "most_back_seconds": round(max(back), 4),
        "start_seconds": quartiles(starts, 3),
        "cached_tokens": min(cached),
        "file_bytes": sum(path.stat().st_size for path in _files(folder)),
    }


def _files(folder: Path) -> set[Path]:
    return set(folder.glob("*.kv"))


def peer(job: Job) -> dict[str, Any]:
    """Tokens per second of four streams, ours and llama.cpp's server in turn, on one Q4_0 file.

    From the first request to the last end, prompts included. llama.cpp runs with flash attention and without.
    """
    file, tokens, options = gguf_file(Maker(job.model, job.folder), INT4_32), job.options.tokens, job.options
    common = {"server": options.peer, "model": str(file), "threads": job.threads, "context": 4 * 1024}
    arguments = ["-np", "4"]
    rates: dict[str, list[float]] = {}
    with (
        Server(str(file)) as server,
        serving({**common, "arguments": arguments}) as plain,
        serving({**common, "arguments": [*arguments, "-fa"]}) as flash,
    ):
        places = {"edge": server.at, "llama.cpp": urlsplit(plain), "llama.cpp -fa": urlsplit(flash)}
        for round_ in range(-1, options.rounds):  # the first one warms up
            names = [*places][:: -1 if round_ % 2 else 1]
            for name in names:
                found = _total(places[name], job, 1000 + 4 * round_, tokens)
                if round_ >= 0:
                    rates.setdefault(name, []).append(found)
    others = [name for name in rates if name != "edge"]
    best = max(others, key=lambda name: float(np.median(rates[name])))
    return {
        "tokens": tokens,
        "tokens_per_second": {name: quartiles(found, 2) for name, found in rates.items()},
        "ratio": quartiles((a / b for a, b in zip(rates["edge"], rates[best], strict=True)), 3),
    }


def _total(at: SplitResult, job: Job, seed: int, tokens: int) -> float:
    started = perf_counter()
    at_once([partial(ask, at, job.prompt(seed + each), tokens) for each in range(4)])
    return 4 * tokens / (perf_counter() - started)


PARTS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "memory": memory,
    "one": one,
    "streams": streams,
    "first": first,
    "restart": restart,
    "peer": peer,
}
