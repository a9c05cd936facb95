"""Decode speed of exported ONNX folders beside the native executor, in turn, as one JSON document.

    python scripts/bench_onnx.py [MODEL] [--threads N] [--genai FOLDER]

MODEL: as everywhere, by default random:minicpm4-0.5b; int4 in groups of 32. --genai: a folder for
onnxruntime-genai, for example of its own builder, measured through onnxruntime-genai beside the portable one.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from edge.artifact import Artifact
from edge.executors.native import NativeExecutor
from edge.executors.registry import open_artifact_executor
from edge.resolve import open_model
from export.artifact import export_model
from export.options import ExportOptions
from export.source import Source

CONTEXT, PROMPT, TOKENS, REPEATS = 1024, 64, 16, 25


def export(model: str, out: str, portable: bool) -> None:
    """Write one folder and print what that took; runs in a process of its own."""
    source = Source(open_model(model))
    started = time.perf_counter()
    export_model(source, ExportOptions("onnx", portable=portable, context=CONTEXT), out)
    facts = {
        "seconds": time.perf_counter() - started,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bytes": sum(file.stat().st_size for file in Path(out).iterdir()),
    }
    print(json.dumps(facts))


def through_executor(executor) -> Callable[[], list[float]]:
    """Seconds of every token of a decode after a prompt."""
    cache = executor.new_cache()
    executor.forward(cache, np.arange(PROMPT, dtype=np.int32) % 90)

    def decode() -> list[float]:
        executor.truncate(cache, PROMPT)
        seconds = []
        for token in range(TOKENS):
            started = time.perf_counter()
            executor.forward(cache, [token])
            seconds.append(time.perf_counter() - started)
        return seconds

    return decode


def through_genai(folder: str, threads: int) -> Callable[[], list[float]]:
    """The same through onnxruntime-genai's generator, sampling greedily."""
    import onnxruntime_genai as genai

    config = genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = genai.Model(config)

    def decode() -> list[float]:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(
            max_length=PROMPT + TOKENS + 1, min_length=PROMPT + TOKENS + 1, do_sample=False
        )
        generator = genai.Generator(model, parameters)
        generator.append_tokens((np.arange(PROMPT, dtype=np.int32) % 90)[None])
        generator.generate_next_token()
        seconds = []
        for _ in range(TOKENS):
            started = time.perf_counter()
            generator.generate_next_token()
            seconds.append(time.perf_counter() - started)
        return seconds

    return decode


def main() -> None:
    """Export twice, then measure in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="random:minicpm4-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--genai")
    parser.add_argument("--export", nargs=2, metavar=("OUT", "FLAVOUR"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.export:
        export(given.model, given.export[0], given.export[1] == "portable")
        return
    document: dict[str, object] = {"model": given.model, "threads": given.threads, "context": CONTEXT}
    with tempfile.TemporaryDirectory() as scratch:
        runs = {}
        bundle = open_model(given.model)
        runs["native"] = through_executor(NativeExecutor(bundle, context=CONTEXT, threads=given.threads))
        for flavour in ("full", "portable"):
            out = f"{scratch}/{flavour}"
            command = [sys.executable, __file__, given.model, "--export", out, flavour]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            document[f"export_{flavour}"] = json.loads(printed.splitlines()[-1])
            executor = open_artifact_executor("onnx", Artifact.open(out, verify=False), threads=given.threads)
            runs[flavour] = through_executor(executor)
        if given.genai:
            runs["portable_in_genai"] = through_genai(f"{scratch}/portable", given.threads)
            runs["genai_builder"] = through_genai(given.genai, given.threads)
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(REPEATS):
            for name, decode in runs.items():
                found[name].append(TOKENS / sum(decode()))
    document["tokens_per_second"] = {
        name: {"median": median(rates), "max": max(rates), "all": rates} for name, rates in found.items()
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
