"""Times decoding in turn with llama.cpp on the same shape, alone and beside busy processes.

    python scripts/bench_peers.py --llama-bench PATH --gguf FILE [--model NAME] [--busy 0,1,2]

Rounds alternate between the programs, each in a fresh process, so that a drift touches all; the
figures are medians. A busy process is one endless loop. llama.cpp runs with flash attention on and off, and
the better median counts. The last line is one JSON document. Random weights will do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter

CONTEXT, STEPS = 512, 64


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.2)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def decode_here(model: str, threads: int) -> float:
    """Tokens/s of the native executor, sampling included; runs in a process of its own."""
    from edge.engine.sampling import Sampler
    from edge.engine.settings import SamplingParams
    from edge.executors.opening import open_executor
    from edge.executors.options import RunOptions
    from edge.executors.protocol import SequenceStep
    from edge.hub.resolve import open_model

    executor = open_executor(open_model(model), RunOptions(context=2 * CONTEXT, threads=threads))
    cache, prompt = executor.new_cache(), list(range(3, 3 + CONTEXT))
    for start in range(0, CONTEXT, executor.max_batch):
        executor.forward([SequenceStep(cache, prompt[start : start + executor.max_batch])])
    sampler, token = Sampler(SamplingParams(temperature=0.8, top_p=0.8, seed=0)), 5
    started = perf_counter()
    for _ in range(STEPS):
        (result,) = executor.forward([SequenceStep(cache, [token])])
        assert result.logits is not None
        token = sampler.sample(result.logits[0], []).token
    return STEPS / (perf_counter() - started)


def ours(options: argparse.Namespace) -> float:
    command = [
        sys.executable,
        __file__,
        "--here",
        "--model",
        options.model,
        "--threads",
        str(options.threads),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def llama(options: argparse.Namespace, flash_attention: int) -> float:
    command = [
        options.llama_bench,
        "-m",
        options.gguf,
        "-t",
        str(options.threads),
        "-fa",
        str(flash_attention),
    ]
    command += ["-p", "0", "-n", str(STEPS), "-d", str(CONTEXT), "-r", "1", "-o", "json"]
    return float(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]["avg_ts"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-bench", help="the llama-bench program of a llama.cpp build for this machine")
    parser.add_argument("--gguf", help="a model of the same shape for it")
    parser.add_argument("--model", default="random:minicpm4-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", default="0,1,2", help="numbers of busy processes beside")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(decode_here(options.model, options.threads))
        return
    if not options.llama_bench or not options.gguf:
        parser.error("--llama-bench and --gguf are needed.")
    load = os.getloadavg()[0]
    programs = {
        "edge": lambda: ours(options),
        "llama.cpp": lambda: llama(options, 0),
        "llama.cpp, flash attention": lambda: llama(options, 1),
    }
    speeds: dict[tuple[int, str], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for busy in map(int, options.busy.split(",")):
            with busy_processes(busy):
                for name, run in programs.items():
                    speeds[busy, name].append(run())
    rows = []
    for (busy, name), values in speeds.items():
        alone = speeds.get((0, name))
        kept = round(median(values) / median(alone), 3) if alone else None
        rows.append(
            {
                "busy_processes": busy,
                "program": name,
                "tokens_per_second": round(median(values), 1),
                "samples": [round(v, 1) for v in values],
                "share_of_alone": kept,
            }
        )
        print(f"busy {busy}  {name:28} {median(values):8.1f} tokens/s  {kept or '':>6}")
    ratios = {}
    for busy in sorted({busy for busy, _ in speeds}):
        peer = max((name for name in programs if name != "edge"), key=lambda n: median(speeds[busy, n]))
        per_round = [a / b for a, b in zip(speeds[busy, "edge"], speeds[busy, peer], strict=True)]
        ratios[busy] = round(median(per_round), 3)
        print(f"busy {busy}  median ratio to {peer}: {ratios[busy]:.2f}")
    print(json.dumps({"load": load, "model": options.model, "results": rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
