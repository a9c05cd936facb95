"""What exporting a model costs and what comes out, target by target, as one JSON document.

    python scripts/bench_exports.py MODEL FOLDER... [--context N] [--quantize SCHEME] [--text FILE]

FOLDER: a target, `-portable` behind it for that flavour: bundle, gguf, coreml, onnx, onnx-portable,
executorch, executorch-portable. Each is planned (`edge export --dry-run`), made and checked (`--check`) by
programs of their own, whose wall clock, CPU time and peak memory are noted; the model is converted before.
--text: how far each that our executors run is from exact arithmetic over the same weights
(`edge eval compare`), and native with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

EDGE = [sys.executable, "-m", "edge"]
ELSEWHERE = ("gguf", "coreml")  # no executor of ours runs them
EXACT = ["--activations-a", "float32", "--kv-a", "float32"]


def anonymous_bytes(process: int) -> int:
    """Memory of a running process that no file stands behind; 0 where the system does not tell."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    return 0


def edge(*words: str) -> tuple[dict[str, Any], dict[str, float]]:
    """The JSON document that a command prints, and what the command took."""
    began, anonymous = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen([*EDGE, *words, "--json"], stdout=printed)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            anonymous = max(anonymous, anonymous_bytes(process.pid))
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        seconds, used = time.perf_counter() - began, ended[2]
        printed.seek(0)
        text = printed.read()
    if process.returncode or not text:
        raise SystemExit(f"`edge {' '.join(words)}` failed with exit code {process.returncode}.")
    took = {
        "seconds": round(seconds, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_bytes": used.ru_maxrss * 1024,
        "peak_anonymous_bytes": anonymous,
    }
    return json.loads(text.splitlines()[-1]), took


def export(options: argparse.Namespace, kind: str, out: Path) -> dict[str, Any]:
    """Plan, make and check one folder."""
    target, _, flavour = kind.partition("-")
    words = ["export", options.model, "--to", target, *(["--portable"] if flavour else [])]
    words += ["--context", str(options.context)] if options.context else []
    words += ["--quantize", options.quantize] if options.quantize else []
    words += ["--attention", options.attention] if options.attention else []
    plan, _ = edge(*words, "--dry-run")
    made, export_took = edge(*words, "--out", str(out))
    files = {name: made["files"].get(name) for name in plan["files"]}
    found = {
        "planned_bytes": plan["bytes"],
        "bytes": sum(size or 0 for size in files.values()),
        "files": files,
        "folder_bytes": made["bytes"],
        "export": export_took,
    }
    if not options.no_check:
        result, took = edge("export", "--check", str(out))
        result.pop("artifact")
        found["check"] = {**result, **took}
    return found


def distance(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """From exact arithmetic over the same weights, on the beginning of the text."""
    words = ["--text", str(options.text), "--limit", str(options.limit), "--window", "512"]
    quantize = ["--quantize-a", options.quantize] if options.quantize else []
    rounded = ["--activations-b", "int8"] if folder == options.model else []  # as the folders compute
    if folder == options.model and options.quantize:
        quantize += ["--quantize-b", options.quantize]
    found, _ = edge("eval", "compare", options.model, folder, *EXACT, *rounded, *quantize, *words)
    return {key: value for key, value in found.items() if key not in ("a", "b")} | {"text": options.text.name}


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--context", type=int)
    parser.add_argument("--quantize")
    parser.add_argument("--attention")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--limit", type=int, default=4097, help="tokens of the text")
    options = parser.parse_args()
    convert = ["--quantize", options.quantize, "--head", "int8"] if options.quantize else []
    edge("inspect", options.model, *convert)
    document: dict[str, Any] = {"model": options.model, "folders": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.folders:
            place = Path(scratch) / kind
            document["folders"][kind] = found = export(options, kind, place)
            if options.text and kind not in ELSEWHERE:
                found["distance"] = distance(options, str(place))
            print(kind, json.dumps(found), flush=True)
            shutil.rmtree(place)
        if options.text:
            document["native_distance"] = distance(options, options.model)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
