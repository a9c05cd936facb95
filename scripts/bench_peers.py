"""Times decoding in turn with llama.cpp on the same shape, alone and beside busy processes.

    python scripts/bench_peers.py [--model NAME] [--busy 0,1,2] [--rounds 5]

Rounds alternate between the programs, each in a fresh process, so that a drift touches all; the figures are
medians, of at most 3 rounds beside busy processes. A busy process is one endless loop. llama.cpp runs with
flash attention on and off, and the better median counts. It comes from the package llama-cpp-python, which
pip compiles for this machine, and gets the model as GGUF. The last line is one JSON document. Random weights
will do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

CONTEXT, STEPS = 512, 64
BUSY_ROUNDS = 3  # at most: beside busy processes llama.cpp takes half a minute
PEERS = {"llama.cpp": False, "llama.cpp, flash attention": True}


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


def decode_llama(gguf: str, threads: int, flash_attention: bool) -> float:
    """The same of llama.cpp through its bindings, without sampling."""
    import llama_cpp

    model = llama_cpp.Llama(
        gguf,
        n_ctx=2 * CONTEXT,
        n_batch=CONTEXT,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=flash_attention,
        verbose=False,
    )

    def forward(tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)  # a batch is a pointer to it
        if llama_cpp.llama_decode(model.ctx, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama.cpp could not decode.")
        llama_cpp.llama_get_logits(model.ctx)  # waits for them

    forward(list(range(3, 3 + CONTEXT)))
    started = perf_counter()
    for token in range(5, 5 + STEPS):
        forward([token])
    return STEPS / (perf_counter() - started)


def llama_build() -> dict[str, str]:
    """The version of the bindings, and what their library was compiled for."""
    import llama_cpp

    return {"version": llama_cpp.__version__, "features": llama_cpp.llama_print_system_info().decode()}


def apart(*arguments: str) -> float:
    """What a run of one program prints, in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def export_gguf(model: str, folder: str) -> str:
    """The same shape for llama.cpp: every matrix as Q4_0, the embedding too."""
    command = [sys.executable, "-m", "edge", "export", model, "--to", "gguf", "--quantize", "int4"]
    command += ["--head", "int4", "--context", str(2 * CONTEXT), "--out", f"{folder}/gguf"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return f"{folder}/gguf/model.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random:minicpm4-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", default="0,1,2", help="numbers of busy processes beside")
    parser.add_argument("--here", choices=("edge", *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--gguf", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here == "edge":
        print(decode_here(options.model, options.threads))
    elif options.here:
        print(decode_llama(options.gguf, options.threads, PEERS[options.here]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            compare(options, export_gguf(options.model, scratch))


def compare(options: argparse.Namespace, gguf: str) -> None:
    """Measure in turn and print."""
    load = os.getloadavg()[0]
    common = ("--model", options.model, "--threads", str(options.threads), "--gguf", gguf)
    speeds: dict[tuple[int, str], list[float]] = defaultdict(list)
    for turn in range(options.rounds):
        for busy in map(int, options.busy.split(",")):
            if busy and turn >= BUSY_ROUNDS:
                continue
            with busy_processes(busy):
                for name in ("edge", *PEERS):
                    speeds[busy, name].append(apart("--here", name, *common))
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
        peer = max(PEERS, key=lambda name: median(speeds[busy, name]))
        per_round = [a / b for a, b in zip(speeds[busy, "edge"], speeds[busy, peer], strict=True)]
        ratios[busy] = round(median(per_round), 3)
        print(f"busy {busy}  median ratio to {peer}: {ratios[busy]:.2f}")
    document = {
        "load": load,
        "model": options.model,
        "threads": options.threads,
        "rounds": options.rounds,
        "llama.cpp": {**llama_build(), "gguf_bytes": Path(gguf).stat().st_size},
        "results": rows,
        "ratios": ratios,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
