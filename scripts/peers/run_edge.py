"""Measures this project's native executor: `python run_edge.py JSON`, see `measuring`.

Further arguments: quantize and head of the weights, kv and attention (by default the runtime's own), limits:
whether the read bandwidth is measured before and after.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.hub.resolve import open_model
from edge.measure.profile.cost import NetworkCost
from edge.measure.profile.measure import Bench
from edge.measure.profile.roofline import RooflineProbe

ROOM, SHORT, PROBES = 256, 1024, 4


def bandwidth(threads: int) -> float:
    """The best of some measurements of the read bandwidth, GB/s."""
    probe = RooflineProbe()
    best = max(probe.measure(threads).read_bytes for _ in range(PROBES)) / 1e9
    probe.close()
    return best


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of every test; decoding includes sampling."""
    limits = [bandwidth(job["threads"])] if job.get("limits") else []
    bundle = open_model(job["model"], quantize=job.get("quantize"), head=job.get("head"))
    longest = max((tokens + depth for _, tokens, depth, _ in job["tests"]), default=0)
    chosen = {"attention": job.get("attention"), "kv_type": job.get("kv")}
    options = RunOptions(
        context=longest + ROOM,
        threads=job["threads"],
        **{name: value for name, value in chosen.items() if value is not None},
    )
    executor = open_executor(bundle, options)
    speeds = []
    for test, tokens, depth, streams in job["tests"]:
        bench = Bench(executor, "prefill" if depth <= SHORT else "synthetic")
        speeds.append(streams * tokens / bench.measure(test, tokens, depth, streams).seconds)
    if limits:
        limits.append(bandwidth(job["threads"]))
    info = executor.info
    tensors = [(tensor.name, tensor.shape, tensor.scheme) for tensor in bundle.tensors.values()]
    facts = {
        "tier": info.tier,
        "activations": info.activations,
        "kv_type": info.kv_type,
        "read_bytes": NetworkCost.of(bundle.config, tensors, info.kv_type).streamed,
    }
    return {"speeds": speeds, "facts": facts, "bandwidth": max(limits, default=None)}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
