"""Times `edge serve` from outside, a server of its own for every part and model.

    python scripts/bench_server.py [--model NAME] [--parts memory,one,...] [--peer PROGRAM] [--state FOLDER]

memory   private memory of all processes, idle and after answers
one      one stream: what HTTP, JSON and scheduling add to a token, in short turns with the bare pass
streams  tokens per second of four streams and of one
first    the first token of a short prompt beside three running streams
restart  a long conversation (--depth tokens, or what the model's context holds) after kill -9 and a new start
peer     four streams in turn with llama.cpp's server on one GGUF file; scripts/build-llama-server makes it,
         --peer or $EDGE_PEER_LLAMA_SERVER names it. Measured where it is asked for only.

What was measured is kept in the folder, if one is named, and not measured again; a long conversation that was
half computed goes on there. Figures are medians between quartiles. Let the machine be idle. The last line is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from server.parts import PARTS, Job

import edge
from edge.formats.atomic import write_file

_VARIABLE = "EDGE_PEER_LLAMA_SERVER"


def main() -> None:
    options = options_of()
    found: dict[str, dict[str, Any]] = {}
    machine: dict[str, Any] = {"load": round(psutil.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as place:
        kept = options.state or Path(place)
        for model in options.model:
            folder = kept / model.replace(":", "-")
            folder.mkdir(parents=True, exist_ok=True)
            with edge.load(model, speculate="off", prefix_memory=0) as opened:
                info = opened.executor.info
                machine |= {"tier": info.tier, "threads": info.threads}
                job = Job(model, opened.config.vocab_size, opened.context, folder, info.threads, options)
            found[model] = {part: measured(part, job) for part in options.parts}
    document = {
        "schema": 2,
        "machine": machine,
        "options": {name: getattr(options, name) for name in _SIZES},
        "models": found,
    }
    print(json.dumps(document))


def measured(part: str, job: Job) -> dict[str, Any]:
    """A part, or what an earlier run has kept of it."""
    path = job.folder / f"{part}.json"
    if not path.exists():
        print(f"{job.model}: {part}", file=sys.stderr, flush=True)
        write_file(path, json.dumps(PARTS[part](job)).encode())
    kept: dict[str, Any] = json.loads(path.read_bytes())
    print(f"{job.model}: {part} {json.dumps(kept)}", flush=True)
    return kept


_SIZES = {
    "tokens": (96, "of an answer"),
    "rounds": (5, "of streams, restarts and peers"),
    "turns": (40, "of the part one"),
    "turn": (32, "tokens of such a turn"),
    "first": (60, "prompts beside three streams"),
    "depth": (32640, "tokens of the conversation that comes back"),
}


def options_of() -> argparse.Namespace:
    """The command line, or a sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", help="repeatable; by default the two of the docs")
    parser.add_argument("--parts", help=f"of {', '.join(PARTS)}; by default all but the last")
    parser.add_argument("--peer", default=os.environ.get(_VARIABLE), help="llama.cpp's server")
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="where to go on from")
    for name, (size, about) in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=about)
    options = parser.parse_args()
    options.model = options.model or ["random:minicpm4-0.5b", "smollm2-135m"]
    options.parts = options.parts.split(",") if options.parts else [*PARTS][:-1]
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if "peer" in options.parts and not options.peer:
        parser.error(f"the part peer needs --peer or ${_VARIABLE}: llama.cpp's server")
    return options


if __name__ == "__main__":
    main()
