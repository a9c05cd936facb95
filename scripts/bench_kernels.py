"""Times the native kernels and the decoder beside the limits of the machine, measured in the same run.

    python scripts/bench_kernels.py [--model random:minicpm4-0.5b] [--threads N] [--repeats 5] [--depth N]

Every repeat measures the limits, then each figure once, so that a drift of the machine touches all alike. The
figures are medians. The last line is one JSON document. Let the machine be idle: the
output names its load.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
from collections import defaultdict
from collections.abc import Callable
from time import perf_counter

import numpy as np

from edge.executors.native import library as native
from edge.executors.native.pool import ScratchBuffer, ThreadPool
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import Executor
from edge.hub.resolve import open_model
from edge.measure.profile.cost import NetworkCost
from edge.measure.profile.measure import Bench
from edge.measure.profile.roofline import MOST_BYTES, Region, RooflineProbe
from edge.quant.scheme import QuantScheme

SCHEMES = [
    QuantScheme("int4", 32),
    QuantScheme("int4", 128),
    QuantScheme("int8", 32),
    QuantScheme("ternary", 128),
]
STREAM_ROWS, COLUMNS = 1 << 19, 1024  # 300 MB of int4: far beyond the caches that are ours
BATCH_ROWS = 16384
BATCHES = (1, 2, 4, 8, 16)
CONTEXT = 512
DECODE_STEPS = 24


def seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def linear(
    pool: ThreadPool, tier: str, region: Region, scheme: QuantScheme, rows: int, n: int
) -> tuple[float, int]:
    """Seconds of one operator on n tokens, and its weight bytes."""
    size = scheme.packed_bytes(rows, COLUMNS)
    matrix = native.matrix(scheme.packing, rows, COLUMNS, region.pointer.value or 0)
    x = np.random.default_rng(0).standard_normal((n, COLUMNS)).astype(np.float32)
    y = np.empty((n, rows), np.float32)
    buffer = ScratchBuffer()
    place = (ctypes.byref(pool.parallel), ctypes.byref(buffer.scratch), tier.encode())
    arguments = (*place, ctypes.byref(matrix), native.ACTIVATIONS["int8"])
    call = native.library().edge_linear
    call(*arguments, x.ctypes.data, n, y.ctypes.data)
    return seconds(lambda: native.check(call(*arguments, x.ctypes.data, n, y.ctypes.data))), size


def decoder(bench: Bench, samples: dict[str, list[float]]) -> None:
    """Prefill, decode with sampling, and verification of n tokens in passes of one, after CONTEXT tokens."""
    samples["prefill tokens/s"].append(CONTEXT / bench.measure("prefill", CONTEXT, 0).seconds)
    step = float(np.median(bench.measure("decode", DECODE_STEPS, CONTEXT).token_seconds))
    samples["decode tokens/s"].append(1 / step)
    one, *others = (bench.measure("verify", n, CONTEXT).seconds for n in BATCHES)
    for n, several in zip(BATCHES[1:], others, strict=True):
        samples[f"verify {n} / decode"].append(several / one)


def deep(executor: Executor, depth: int, samples: dict[str, list[float]]) -> None:
    """Decode and prefill at `depth`, over a cache of repeated rows."""
    bench, batch = Bench(executor, "synthetic"), executor.max_batch
    step = float(np.median(bench.measure("decode", 5, depth).token_seconds))
    samples[f"decode tokens/s at {depth}"].append(1 / step)
    prefill = bench.measure("prefill", batch, depth).seconds
    samples[f"prefill {batch} tokens/s at {depth}"].append(batch / prefill)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random:minicpm4-0.5b")
    parser.add_argument("--quantize", default=None)
    parser.add_argument("--head", default=None, help="quantization of embedding and head")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--depth", type=int, default=0, help="also measure at this context depth")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    pool = ThreadPool(options.threads)
    bundle = open_model(options.model, quantize=options.quantize, head=options.head)
    context = max(2 * CONTEXT, options.depth + 1024)
    executor = open_executor(bundle, RunOptions(context=context, threads=options.threads))
    tier = executor.info.tier
    tensors = [(info.name, info.shape, info.scheme) for info in bundle.tensors.values()]
    weights = NetworkCost.of(bundle.config, tensors, "float16").streamed
    region = Region(max(MOST_BYTES, SCHEMES[2].packed_bytes(STREAM_ROWS, COLUMNS)))
    probe, bench = RooflineProbe(region), Bench(executor, "prefill")

    limits: dict[str, list[float]] = defaultdict(list)
    kernels: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeats):
        limit = probe.measure(pool.threads, tier)
        limits["read GB/s"].append(limit.read_bytes / 1e9)
        limits["int8 GMAC/s"].append(limit.int8 / 1e9)
        limits["float GMAC/s"].append(limit.float32 / 1e9)
        if limit.region_seconds is not None:
            limits["parallel region us"].append(limit.region_seconds * 1e6)
        for scheme in SCHEMES:
            time, size = linear(pool, tier, region, scheme, STREAM_ROWS, 1)
            kernels[f"{scheme} n=1 share of read bandwidth"].append(size / time / limit.read_bytes)
            for n in (8, 256):
                time, _ = linear(pool, tier, region, scheme, BATCH_ROWS, n)
                share = BATCH_ROWS * COLUMNS * n / time / limit.int8
                kernels[f"{scheme} n={n} share of int8 peak"].append(share)
        decoder(bench, steps)
        steps["decode share of read bandwidth"].append(
            steps["decode tokens/s"][-1] * weights / limit.read_bytes
        )
    if options.depth:
        deep(executor, options.depth, steps)
    probe.close()

    document = {
        "machine": {"tier": tier, "threads": executor.info.threads, "load": round(load, 2)},
        "model": {
            "name": options.model,
            "quantize": options.quantize,
            "weight_bytes": weights,
            "context": CONTEXT,
        },
        **{
            title: {name: round(float(np.median(values)), 3) for name, values in table.items()}
            for title, table in (("limits", limits), ("kernels", kernels), ("decoder", steps))
        },
    }
    for title in ("limits", "kernels", "decoder"):
        for name, value in document[title].items():
            print(f"{title:8}  {name:44} {value:10.3f}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
