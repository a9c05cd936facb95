"""Speed of exported ONNX folders beside the native executor, as one JSON document.

    python scripts/bench_onnx.py [MODEL] [--threads N] [--rounds N] [--genai FOLDER]

MODEL: as everywhere, by default random:minicpm4-0.5b; int4 in groups of 32. --genai: a folder for
onnxruntime-genai, for example of its own builder, measured beside the portable one, also with the session's
entries of ours. Every measurement has a process of its own, in another order each round: where a process
finds its memory changes its speed by some percent. Ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edge.executors.onnx.flavours import SESSION_ENTRIES
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import SequenceStep
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.artifact.folder import Artifact
from edge.hub.resolve import open_bundle, open_model

CONTEXT, TOKENS = 1024, 32


def export(model: str, out: str, flavour: str) -> dict[str, Any]:
    """Write one folder: what that took."""
    source = Source(open_bundle(model))
    started = time.perf_counter()
    export_model(source, ExportOptions("onnx", portable=flavour == "portable", context=CONTEXT), out)
    return {
        "seconds": time.perf_counter() - started,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bytes": sum(file.stat().st_size for file in Path(out).iterdir()),
    }


def through_executor(executor: Any, prompt: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
    """Run the prompt, run one more token."""
    cache = executor.new_cache()

    def prefill() -> None:
        executor.truncate(cache, 0)
        for start in range(0, len(prompt), executor.max_batch):
            executor.forward([SequenceStep(cache, prompt[start : start + executor.max_batch])])

    return prefill, lambda: executor.forward([SequenceStep(cache, [5])])[0].logits[-1].argmax()


def through_genai(
    folder: str, threads: int, prompt: np.ndarray, entries: dict[str, str]
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The same with onnxruntime-genai's generator, which takes the likeliest token."""
    import onnxruntime_genai as genai

    options = {"intra_op_num_threads": threads, **entries}
    config = genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = genai.Model(config)
    rows = len(prompt) + TOKENS + 1
    generators: list[Any] = []

    def prefill() -> None:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=rows, min_length=rows, do_sample=False)
        generators[:] = [genai.Generator(model, parameters)]
        generators[0].append_tokens(prompt[None])
        generators[0].generate_next_token()

    return prefill, lambda: generators[0].generate_next_token()


def measure(name: str, where: str, threads: int, tokens: int) -> dict[str, float]:
    """Tokens per second of a prefill and of the decode after it; the second of two prefills counts."""
    prompt = np.arange(tokens, dtype=np.int32) % 90
    if "genai" in name:
        entries = SESSION_ENTRIES if name.endswith("our_entries") else {}
        prefill, step = through_genai(where, threads, prompt, entries)
    elif name == "native":
        prefill, step = through_executor(
            open_executor(open_model(where), RunOptions(context=CONTEXT, threads=threads)), prompt
        )
    else:
        artifact = Artifact.open(where, verify=False)
        prefill, step = through_executor(open_executor(artifact, RunOptions("onnx", threads=threads)), prompt)
    prefill()
    started = time.perf_counter()
    prefill()
    prefilled = time.perf_counter() - started
    seconds = []
    for _ in range(TOKENS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return {"prefill": tokens / prefilled, "decode": 1 / median(seconds)}


def apart(*arguments: str) -> dict[str, Any]:
    """What this script prints in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    document: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return document


def main() -> None:
    """Export twice, then measure in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="random:minicpm4-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--genai")
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    common = ("--threads", str(given.threads), "--prompt", str(given.prompt))
    if given.export:
        print(json.dumps(export(given.model, *given.export)))
        return
    if given.measure:
        name, where = given.measure
        print(json.dumps(measure(name, where, given.threads, given.prompt)))
        return
    document: dict[str, Any] = {
        "model": given.model,
        "threads": given.threads,
        "prompt": given.prompt,
        "context": CONTEXT,
        "load": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory() as scratch:
        runs = {"native": given.model}
        for flavour in ("full", "portable"):
            runs[flavour] = f"{scratch}/{flavour}"
            document[f"export_{flavour}"] = apart(given.model, "--export", runs[flavour], flavour)
        if given.genai:
            runs["portable_in_genai"] = runs["portable"]
            runs["genai_builder"] = runs["genai_builder_our_entries"] = given.genai
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
        for _ in range(given.rounds):
            for name in random.sample(list(runs), len(runs)):
                found[name].append(apart("--measure", name, runs[name], *common))
    for kind in ("prefill", "decode"):
        rates = {name: [result[kind] for result in results] for name, results in found.items()}
        document[kind] = {name: {"median": median(values), "all": values} for name, values in rates.items()}
        for peer in ("native", "genai_builder", "genai_builder_our_entries"):
            if peer in rates:
                document[f"{kind}_of_{peer}"] = {
                    name: median(ours / its for ours, its in zip(values, rates[peer], strict=True))
                    for name, values in rates.items()
                }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
