"""Times a start: from the birth of the process to its first word, and holds its memory against the plan.

    python scripts/bench_start.py [--model random:minicpm4-8b] [--context 2048] [--runs 3] [--[no-]mmap]

Every run is a fresh `edge chat` in a pipe, as a person would start it. The model is converted before, and one
more start, which does not count, brings its file into the page cache. The resident memory is read at the
first word and compared with what `edge` announces: weights, KV cache at the full context, workspace. The last
line is one JSON document; seconds and bytes are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import IO

import numpy as np

from edge.executors.memory import memory_plan
from edge.hub.resolve import open_model

PROMPT = "Why is the sky blue, and why does it turn red in the evening?"
TOKENS = 24


def resident(process: int) -> int:
    """Bytes of memory that a process has, pages of mapped files included."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not tell how much memory a process has")


def start(command: list[str]) -> tuple[float, int]:
    """Seconds to the first byte of the answer, and the memory of the process at that moment."""
    began = perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        stdout: IO[bytes] | None = process.stdout
        assert stdout is not None
        first = stdout.read(1)
        seconds, memory = perf_counter() - began, resident(process.pid) if first else 0
        stdout.read()
    if process.returncode or not first:
        raise SystemExit(f"`{' '.join(command)}` failed with exit code {process.returncode}.")
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random:minicpm4-8b")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mmap", action=argparse.BooleanOptionalAction, help="as for `edge chat`")
    options = parser.parse_args()

    load = os.getloadavg()[0]
    bundle = open_model(options.model)
    plan = memory_plan(bundle, options.context, mapped_weights=bool(options.mmap))
    edge = [sys.executable, "-m", "edge.apps.cli.main"]
    command = [*edge, "chat", options.model, "--context", str(options.context), "--prompt", PROMPT]
    command += [
        "--max-tokens",
        str(TOKENS),
        "--temperature",
        "0",
        *({True: ["--mmap"], False: ["--no-mmap"]}.get(options.mmap, [])),
    ]
    start(command)
    runs, bare = [], []
    for _ in range(options.runs):
        began = perf_counter()
        subprocess.run([*edge, "--version"], check=True, stdout=subprocess.DEVNULL)
        bare.append(perf_counter() - began)
        runs.append(start(command))
        print(f"first word after {runs[-1][0]:.2f} s, resident {runs[-1][1] / 1e6:.0f} MB")

    seconds, memory = (float(np.median(values)) for values in zip(*runs, strict=True))
    document = {
        "model": options.model,
        "mmap": options.mmap,
        "machine": {"cores": len(os.sched_getaffinity(0)), "load": round(load, 2)},
        "seconds": {
            "to the first word": round(seconds, 3),
            "all runs": [round(run[0], 3) for run in runs],
            "a start that loads nothing": round(float(np.median(bare)), 3),
        },
        "bytes": {
            "resident": int(memory),
            "weights": plan.weights,
            "KV cache": plan.kv_cache,
            "workspace": plan.workspace,
        },
        "resident / plan": round(memory / plan.total, 4),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
