"""Checks and times the CUDA path on a GPU: one command of at most 6 minutes, one JSON document.

    python -m scripts.test_cuda [--out FILE] [--seconds 360] [--parts NAME,...] [--models FOLDER] [--rehearse]

facts      driver, GPU, clocks, which kernels it takes, and the small check of every operator
kernels    products, choice of blocks and attention at the shapes of MiniCPM4-0.5B and 8B, 1 to 64 rows and
           2048, contexts to 128K, against exact ones; every row alone and beside others, bit by bit
ptx        the same, compiled by the driver from the PTX that all devices share
tests      the tests of the kernels (tests/kernels/cuda), on the GPU; tests-ptx: from PTX
prepare    random weights, made here in some 10 to 60 seconds: 4.6 GB of disk in --models
speed-*    bandwidth, products beside it, passes of 1 to 16 rows as graphs and as single launches, what a
           pass is made of, sparse decoding at 4K and 128K, and 2048 rows beside torch's fp16 if it has CUDA
model-*    prompts, decoding, trees, sparse attention, int8 caches against the native executor with float32
           activations; graphs, batches and pieces of prompts bit by bit; nothing allocated after the start;
           128K tokens of a model with two layers
sanitizer  the kernels at a tiny shape under compute-sanitizer, where that is on the PATH

Each part is a process with an end; what it found before a crash counts. Targets are reported, never enforced.
The last line is the document, which --out also writes (build/test-cuda/document.json by default). The exit
status is 0 if all checks are right, 1 if not, 2 if there is no GPU. --rehearse runs everything at tiny shapes
in Triton's interpreter, which measures nothing, and the document says so.

For a machine without internet, on another one of its kind (x86-64 or 64-bit ARM): `make setup` and `make
cubins ARCHITECTURES=90` (the GPU's own; PTX is always made). Copy the checkout with build/cubins and
libedge.so, `.venv/lib/python3*/site-packages/edge/executors/native/libedge.so`. There, a Python from
3.10 on with numpy, torch (its CPU part computes references) and pytest is needed, and no Triton; in the
checkout, `EDGE_LIBRARY=path/to/libedge.so python3 -m scripts.test_cuda --out FILE`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edge
from edge.errors import EdgeError
from edge.executors.cuda.cubins import Cubins
from edge.executors.cuda.driver import CudaDevice
from edge.formats.atomic import write_file

from .cuda.devices import only_ptx
from .cuda.processes import ROOT, USUAL, Part, Place, failed, run_waves
from .cuda.targets import judged

_SANITIZER = "compute-sanitizer"
NO_GPU = 2

WAVES = (
    (Part("facts", ("facts",), 60),),
    (
        Part("prepare", ("prepare",), 150),
        Part("kernels", ("kernels",), 150),
        Part("ptx", ("kernels",), 150, ptx=True),
        Part("tests", ("tests",), 120),
        Part("tests-ptx", ("tests",), 120, ptx=True),
    ),
    (Part("speed-8b", ("speed",), 70, shape="8b"),),
    (Part("model-8b", ("model",), 90, shape="8b"),),
    (Part("speed-0.5b", ("speed",), 50, shape="0.5b"),),
    (
        Part("model-0.5b", ("model",), 90, shape="0.5b"),
        Part(
            "sanitizer",
            ("kernels",),
            60,
            under=(_SANITIZER, "--error-exitcode", "1", "--target-processes", "all"),
            tiny=True,
        ),
    ),
)
"""What runs side by side shares the GPU, but never with a part that times something."""

REHEARSED = ((Part("rehearsal", ("facts", "kernels", "model", "speed"), 300, shape="tiny"),),)
"""One process, since it takes seconds to load Triton and torch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _options(arguments)
    folder = options.folder
    place = Place(folder, options.models or folder / "models", folder / "ptx", options.rehearse)
    started = time.monotonic()
    if not options.rehearse:
        try:
            with_gpu(place.ptx)
        except EdgeError as error:
            print(f"Error: {error}", file=sys.stderr)
            return NO_GPU
    results = run_waves(_chosen(options), place, options.seconds)
    document = document_of(results, options.rehearse)
    document["seconds"] = round(time.monotonic() - started, 1)
    text = json.dumps(document)
    write_file(options.out or folder / "document.json", text.encode())
    print(text)
    return 0 if document["good"] else 1


def with_gpu(ptx: Path) -> None:
    """EdgeError if there is no GPU or no kernels. ptx: where the kernels go as PTX."""
    CudaDevice(Cubins.open()).close()
    only_ptx(ptx)


def document_of(results: dict[str, Any], rehearsed: bool) -> dict[str, Any]:
    """Everything, with figures by name and the targets; `good` if all parts that ran did so to their end,
    with nothing wrong.
    """
    figures: dict[str, list[dict[str, Any]]] = {}
    for result in results.values():
        for line in result["results"]:
            if "measured" in line:
                values = {key: value for key, value in line.items() if key != "measured"}
                figures.setdefault(line["measured"], []).append(values)
    left_out = [name for name, result in results.items() if result["state"].startswith("left out")]
    return {
        "measurement": not rehearsed,
        "note": "A rehearsal in Triton's interpreter: no figure means anything." if rehearsed else "",
        "good": all(
            not failed(result) and (result["state"] == "done" or name in left_out)
            for name, result in results.items()
        ),
        "version": edge.__version__,
        "host": {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "checks": sum("check" in line for result in results.values() for line in result["results"]),
        "wrong": {name: failed(result) for name, result in results.items() if failed(result)},
        "left_out": left_out,
        "targets": [] if rehearsed else judged(figures),
        "figures": figures,
        "parts": results,
    }


def _chosen(options: argparse.Namespace) -> list[list[Part]]:
    """Waves of the parts that were asked for and can run here."""
    waves = REHEARSED if options.rehearse else WAVES
    known = [part.name for wave in waves for part in wave]
    if unknown := set(options.parts or ()) - set(known):
        raise SystemExit(f"There is no part {', '.join(sorted(unknown))}; choose of {', '.join(known)}.")
    found = [
        [
            part
            for part in wave
            if part.name in (options.parts or known) and (not part.under or shutil.which(part.under[0]))
        ]
        for wave in waves
    ]
    return [wave for wave in found if wave]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.test_cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=USUAL, help="in all; each part has its share")
    parser.add_argument("--parts", type=lambda text: text.split(","), help="by default all")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "test-cuda", help="for what parts write"
    )
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="by default in the folder")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
