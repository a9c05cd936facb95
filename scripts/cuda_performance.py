"""Predicts how fast the CUDA kernels run MiniCPM4-8B on GPUs that nobody has here. Nothing is measured.

    python -m scripts.cuda_performance

int4 weights in groups of 128, head and embedding too; float16 KV cache; sparse attention from 8192 tokens on.
Decoding is of 1, 8 and 16 sequences, each as long as the context, without guesses; a prompt goes through in
pieces of 2048 tokens. Launches are those of the executor, instructions those of its machine code for sm_87
(compiled first, unless `make cubins ARCHITECTURES=87` was run). The last line is one JSON document.

What it leaves out: the host (sampling, Python, the upload of tables, the download of logits), power limits
and clocks that follow them, other users of a Jetson's memory, conflicts of memory banks and pages, waits at
barriers, and programs that end at once. So it is nearer to a bound than to a measurement.
"""

from __future__ import annotations

import json
from typing import Any

from edge.config import SparseConfig
from edge.config.presets import preset
from edge.executors.cuda.executor import PREFILL_ROWS

from .cuda_model.code import ARCHITECTURE
from .cuda_model.gpus import GPUS, ISSUED, REACHED, USED, Gpu
from .cuda_model.passes import Rows, launches_of, resident
from .cuda_model.published import published
from .cuda_model.times import Time, seconds_of, times_of
from .cuda_model.work import Model

MODEL, KIND, GROUP = "minicpm4-8b", "int4", 128
CONTEXTS = (4096, 32768, 65536, 131072)
ROWS = (1, 8, 16)
SHOWN = ("jetson-agx-orin", 32768)
"""Of which every kernel is listed."""


def decode(model: Model, gpu: Gpu, context: int, rows: int) -> dict[str, Time]:
    """A step of so many sequences, by kernel; the new tokens are the last ones of the context."""
    taken = Rows(context - 1, rows, prompt=False)
    launches = launches_of(model.config, KIND, GROUP, taken, model.sparse, wanted=rows)
    return times_of(launches, model, taken, gpu)


def piece(model: Model, gpu: Gpu, first: int, last: bool) -> dict[str, Time]:
    """A piece of a prompt after `first` tokens, by kernel. last: whether it needs logits."""
    taken = Rows(first, PREFILL_ROWS, prompt=True)
    launches = launches_of(model.config, KIND, GROUP, taken, model.sparse, wanted=int(last))
    return times_of(launches, model, taken, gpu)


def predicted(name: str, gpu: Gpu, model: Model) -> list[dict[str, Any]]:
    """A row for every test."""
    found = []
    for context in CONTEXTS:
        for rows in ROWS:
            fit, times = fits(gpu, model, context, rows), decode(model, gpu, context, rows)
            found.append(_row(name, gpu, "decode", context, rows, rows, fit, times))
    pieces: dict[str, Time] = {}
    for first in range(0, CONTEXTS[-1], PREFILL_ROWS):
        end = first + PREFILL_ROWS
        for kernel, time in piece(model, gpu, first, end in CONTEXTS).items():
            pieces.setdefault(kernel, Time()).add(time)
        if end in CONTEXTS:
            fit = fits(gpu, model, end, 1)
            found.append(_row(name, gpu, "prefill", end, PREFILL_ROWS, end, fit, pieces))
    return found


def fits(gpu: Gpu, model: Model, context: int, sequences: int) -> bool:
    """Whether weights and caches do; more memory is needed for passes, some of which can be smaller."""
    return resident(model.config, KIND, GROUP, context, sequences) <= gpu.memory * USED


def _row(
    name: str, gpu: Gpu, test: str, context: int, rows: int, tokens: int, fit: bool, times: dict[str, Time]
) -> dict[str, Any]:
    seconds = seconds_of(times)
    moved = sum(time.moved for time in times.values())
    row: dict[str, Any] = {
        "gpu": name,
        "test": test,
        "context": context,
        "rows": rows,
        "tokens_per_second": float(f"{tokens / seconds:.3g}"),
        "seconds": float(f"{seconds:.4g}"),
        "bandwidth_seconds": float(f"{moved / gpu.bandwidth:.4g}"),
        "waiting_seconds": float(f"{sum(time.waiting for time in times.values()):.3g}"),
        "launches": sum(time.launches for time in times.values()),
        "fits": fit,
        "published": {
            kind: round(speed, 1)
            for kind in (test, f"{test}, with guesses")
            if rows in (1, PREFILL_ROWS) and (speed := published(name, kind, context))
        },
    }
    if (name, context) == SHOWN and rows in (1, PREFILL_ROWS):
        row["kernels"] = {kernel: _kernel(time) for kernel, time in times.items()}
    print(f"{name:24} {test:8} {context:7} {rows:5} rows: {row['tokens_per_second']:g} tokens/s, predicted")
    return row


def _kernel(time: Time) -> dict[str, Any]:
    return {
        "launches": time.launches,
        "ms": float(f"{time.seconds * 1e3:.3g}"),
        "gaps_ms": float(f"{time.waiting * 1e3:.3g}"),
        "megabytes": float(f"{time.moved / 1e6:.4g}"),
        "giga_multiply_adds": float(f"{time.multiply_adds / 1e9:.3g}"),
        "mega_slots": float(f"{time.slots / 1e6:.3g}"),
        "limit": time.limit,
    }


def main() -> None:
    """See the head of this file."""
    config = preset(MODEL)
    model = Model(config, config.sparse or SparseConfig())
    results = [row for name, gpu in GPUS.items() for row in predicted(name, gpu, model)]
    document = {
        "predicted": True,
        "model": MODEL,
        "weights": f"{KIND}-g{GROUP}",
        "machine_code": f"sm_{ARCHITECTURE}",
        "assumed": {"share of bandwidth": REACHED, "share of issue slots and tensor cores": ISSUED},
        "gpus": {name: {"title": gpu.title, "assumed": gpu.assumed} for name, gpu in GPUS.items()},
        "results": results,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
