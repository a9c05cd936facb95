"""What each type of the KV cache costs in quality: divergence, perplexity, and needles found at 32K.

    python scripts/bench_kv_quality.py --text FILE

The text is scored by SmolLM2-135M, its first `--tokens` tokens in disjoint windows, beside exact arithmetic:
float32 activations and cache. With float32 activations the cache alone rounds.

Then a network of two layers is trained to recall facts (`edge.train.long_needle`), and asked for 32 of them
at the end of each of `--sequences` texts of 32768 tokens, with dense attention and with sparse attention by
the published constants. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from edge.config import KVType, SparseConfig
from edge.config.presets import preset
from edge.executors.native.library import default_threads
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.measure.divergence import divergence
from edge.runtime import load
from edge.train import long_needle, needle

MODEL, SHAPE = "smollm2-135m", preset("minicpm4-0.5b")
EXACT: Literal["float32"] = "float32"
ACTIVATIONS = (EXACT, "int8")
KV_TYPES: list[KVType] = sorted(get_args(KVType), key=SHAPE.kv_bytes_per_token, reverse=True)


def language(text: str, options: argparse.Namespace) -> dict[KVType, dict[str, dict[str, float]]]:
    """Divergence from exact arithmetic, and perplexity, by KV type and activations."""
    settings: dict[str, Any] = {"context": options.window, "threads": options.threads}
    found: dict[KVType, dict[str, dict[str, float]]] = {kv_type: {} for kv_type in KV_TYPES}
    with load(MODEL, activations=EXACT, kv_type=EXACT, **settings) as exact:
        ids = exact.tokenizer.encode(text[: 16 * options.tokens], add_bos=False)[: options.tokens]
        for activations, kv_type in product(ACTIVATIONS, KV_TYPES):
            if activations == kv_type == EXACT:
                continue
            with load(MODEL, activations=activations, kv_type=kv_type, **settings) as other:
                row = divergence(exact, other, ids, window=options.window)
            found[EXACT][EXACT] = {"perplexity": round(row.perplexity_a, 4)}
            names = ("kl_divergence", "kl_p99", "kl_max", "top1_agreement")
            shown = {name: float(f"{getattr(row, name):.4g}") for name in names}
            found[kv_type][activations] = {**shown, "perplexity": round(row.perplexity_b, 4)}
            print(f"{activations} activations, {kv_type} KV: {json.dumps(shown)}", flush=True)
    return found


def needles(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """What was trained and asked, and the share of right answers by KV type and kind of attention."""
    torch.set_num_threads(1)  # as the needle test: threads would change the order of sums
    started = time.process_time()
    decoder = long_needle.train()
    facts = {
        "length": long_needle.LENGTH,
        "span": long_needle.SPAN,
        "questions": options.sequences * needle.KEYS,
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "phases": [asdict(phase) for phase in long_needle.PHASES],
        "processor_seconds": round(time.process_time() - started, 1),
        "sparse": asdict(SparseConfig()),
    }
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = long_needle.write_bundle(decoder, Path(folder) / "needle")
        for kv_type in KV_TYPES:
            shares = found[kv_type] = {}
            for attention in ("dense", "sparse"):
                run = RunOptions(
                    context=long_needle.LENGTH,
                    threads=options.threads,
                    activations="float32",
                    kv_type=kv_type,
                    attention=attention,
                )
                executor = open_executor(bundle, run)
                shares[attention] = long_needle.recall(executor, options.sequences)
                executor.close()
            print(f"needles, {kv_type} KV: {json.dumps(shares)}", flush=True)
    return facts, found


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=Path, required=True, help="UTF-8 text: WikiText-2 raw, validation part"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="tokens to score")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--sequences", type=int, default=8, help="texts with 32 needles each")
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    scored = language(text, options)
    facts, found = needles(options)
    results = [
        {
            "kv_type": kv_type,
            "bytes_per_token": SHAPE.kv_bytes_per_token(kv_type),
            "language": scored[kv_type],
            "needles": found[kv_type],
        }
        for kv_type in KV_TYPES
    ]
    document = {"model": MODEL, "text": options.text.name, "tokens": options.tokens, "window": options.window}
    print(json.dumps({**document, "threads": options.threads, "needle": facts, "results": results}))


if __name__ == "__main__":
    main()
