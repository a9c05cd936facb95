"""Speed of exported folders in their runtimes beside the native executor, as one JSON document.

    python scripts/bench_runtimes.py onnx|executorch [MODEL] [--threads N] [--rounds N] [--genai FOLDER]

MODEL: as everywhere, by default random:minicpm4-0.5b; int4 in groups of 32. --genai: a folder of
onnxruntime-genai's own builder, made if it does not exist (a Llama of the same shape, random weights) and
measured beside the portable one, also with the session's entries of ours. Every measurement has a process of
its own, in another order each round: where a process finds its memory changes its speed by some percent.
Ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from peers.models import build_genai, write_llama

from edge.executors.onnx.flavours import SESSION_ENTRIES
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import SequenceStep, run_step
from edge.formats.artifact.folder import Artifact
from edge.hub.resolve import open_bundle, open_model

CONTEXT, TOKENS = 1024, 32


def through_executor(executor: Any, prompt: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
    """Run the prompt, run one more token."""
    cache = executor.new_cache()

    def prefill() -> None:
        executor.truncate(cache, 0)
        for start in range(0, len(prompt), executor.max_batch):
            run_step(executor, SequenceStep(cache, prompt[start : start + executor.max_batch]))

    def decode() -> Any:
        result = run_step(executor, SequenceStep(cache, [5]))
        assert result.logits is not None
        return result.logits[-1].argmax()

    return prefill, decode


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
        options = RunOptions(context=CONTEXT, threads=threads, activations="int8")  # as the folders compute
        prefill, step = through_executor(open_executor(open_model(where), options), prompt)
    else:
        artifact = Artifact.open(where, verify=False)
        options = RunOptions(artifact.manifest.target, threads=threads)
        prefill, step = through_executor(open_executor(artifact, options), prompt)
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
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    document: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return document


def main() -> None:
    """Export twice, then measure in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target", choices=("onnx", "executorch"))
    parser.add_argument("model", nargs="?", default="random:minicpm4-0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--genai", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    common = ("--threads", str(given.threads), "--prompt", str(given.prompt))
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
    bundle = open_bundle(given.model)
    with tempfile.TemporaryDirectory() as scratch:
        runs = {"native": given.model}
        for flavour, words in (("full", []), ("portable", ["--portable"])):
            runs[flavour] = f"{scratch}/{flavour}"
            command = [sys.executable, "-m", "edge", "export", given.model, "--to", given.target, *words]
            command += ["--context", str(CONTEXT), "--out", runs[flavour]]
            subprocess.run(command, check=True, stdout=sys.stderr)
        if given.genai:
            if not given.genai.exists():
                llama = Path(scratch) / "llama"
                write_llama(bundle, llama)
                build_genai(sys.executable, llama, given.genai, group=32)
            runs["portable_in_genai"] = runs["portable"]
            runs["genai_builder"] = runs["genai_builder_our_entries"] = str(given.genai)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
        for _ in range(given.rounds):
            for name in random.sample(list(runs), len(runs)):
                found[name].append(apart(given.target, "--measure", name, runs[name], *common))
    for kind in ("prefill", "decode"):
        rates = {name: [round(result[kind], 2) for result in results] for name, results in found.items()}
        document[kind] = {name: {"median": median(values), "all": values} for name, values in rates.items()}
        for peer in ("native", "genai_builder", "genai_builder_our_entries"):
            if peer in rates:
                document[f"{kind}_of_{peer}"] = {
                    name: round(median(ours / its for ours, its in zip(values, rates[peer], strict=True)), 4)
                    for name, values in rates.items()
                }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
