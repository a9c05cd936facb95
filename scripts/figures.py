"""Writes tables of the docs from benchmark documents, so that no figure is copied by hand: `make figures`.

    python scripts/figures.py                      # the tables, from the documents in docs/figures
    python scripts/figures.py --measure            # runs every benchmark first (minutes; the machine is idle)
    python scripts/figures.py --measure sampler    # only this one

A table stands in its page between `<!-- figures: NAME -->` and `<!-- end -->`; the line below it names
machine and command. Times are not measured on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge.measure.profile import machine

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ROOT / "docs" / "figures"
Lines = list[list[str]]


@dataclass(frozen=True)
class Figure:
    """One table. command: arguments of Python; the last line of its output is the document. table: headers,
    then rows, of a document. timed: whether a busy machine would spoil it.
    """

    page: str
    command: tuple[str, ...]
    table: Callable[[dict[str, Any]], Lines]
    timed: bool = True


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def sampler(document: dict[str, Any]) -> Lines:
    times, shares = document["microseconds"], document["percent_of_token"]
    rows = [[name, f"{times[name]:.0f}", f"{shares[name]:.2f} %"] for name in shares]
    return [["setting", "µs per token", "share of a token's time"], *rows]


def linear(document: dict[str, Any]) -> Lines:
    shares = document["kernels"]
    columns = {"n=1 share of read bandwidth": "1 token: read bandwidth"}
    columns |= {f"n={n} share of int8 peak": f"{n} tokens: int8 peak" for n in (8, 256)}
    schemes = dict.fromkeys(name.partition(" ")[0] for name in shares)
    rows = [[scheme, *(percent(shares[f"{scheme} {key}"]) for key in columns)] for scheme in schemes]
    return [["weights", *columns.values()], *rows]


def kv_error(document: dict[str, Any]) -> Lines:
    rows = []
    for found in document["results"]:
        heads, kv_heads, dim = found["shape"]
        errors = (percent(found["errors"][kv_type], 2) for kv_type in ("float16", "int8"))
        rows.append([f"{heads}/{kv_heads} heads of {dim}", str(found["positions"]), *errors])
    return [["attention", "positions", "float16 KV", "int8 KV"], *rows]


def needle(phase: str) -> Callable[[dict[str, Any]], Lines]:
    def table(document: dict[str, Any]) -> Lines:
        found = document[phase]["accuracy"]
        kinds = list(next(iter(found.values())))
        rows = [[length, *(percent(right[kind]) for kind in kinds)] for length, right in found.items()]
        named = {"window": "window of 4 blocks", "wide window": "window of 12 blocks"}
        return [["tokens", *(named.get(kind, kind) for kind in kinds)], *rows]

    return table


NEEDLE = ("-m", "edge.train.needle")
FIGURES = {
    "sampler": Figure("docs/performance.md", ("scripts/bench_sampler.py",), sampler),
    "linear": Figure("docs/performance.md", ("scripts/bench_kernels.py",), linear),
    "kv-error": Figure("docs/performance.md", ("scripts/bench_kv_error.py",), kv_error, timed=False),
    "needle-long": Figure("docs/sparse-attention.md", NEEDLE, needle("long"), timed=False),
    "needle-short": Figure("docs/sparse-attention.md", NEEDLE, needle("short"), timed=False),
}


def document_of(name: str) -> Path:
    """Where the document of a figure lies; figures of one command share it."""
    command = FIGURES[name].command
    return DOCUMENTS / f"{next(other for other in FIGURES if FIGURES[other].command == command)}.json"


def measure(name: str) -> None:
    """Runs the benchmark of a figure and keeps its document, with machine and command."""
    figure, load = FIGURES[name], machine.load()
    if figure.timed and machine.noise_remarks(load, None, machine.core_count()):
        raise SystemExit(f"{name}: {load} processes are running here; times need an idle machine.")
    print(f"{name}: python {' '.join(figure.command)}", flush=True)
    done = subprocess.run(
        [sys.executable, *figure.command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    kept = {
        "command": f"python {' '.join(figure.command)}",
        "created": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{machine.cpu_name()}, {machine.core_count()} cores, {platform.system()}",
        "document": json.loads(done.stdout.splitlines()[-1]),
    }
    DOCUMENTS.mkdir(exist_ok=True)
    document_of(name).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def rendered(name: str) -> str:
    """What stands between the marks of a figure."""
    kept = json.loads(document_of(name).read_text(encoding="utf-8"))
    headers, *rows = FIGURES[name].table(kept["document"])
    lines = [headers, ["---"] * len(headers), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table}\n\n{kept['machine']}; `{kept['command']}`, {kept['created']}.\n"


def written(page: str) -> str:
    """The text of a page with all its figures anew."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(
        r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end -->)",
        lambda found: found[1] + rendered(found[2]) + found[3],
        text,
        flags=re.S,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FIGURES)}; by default all")
    parser.add_argument("--measure", action="store_true", help="run the benchmarks first")
    options = parser.parse_args()
    chosen = options.names or list(FIGURES)
    if unknown := set(chosen) - set(FIGURES):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}")
    if options.measure:
        for name in {document_of(name): name for name in reversed(chosen)}.values():
            measure(name)
    for page in dict.fromkeys(FIGURES[name].page for name in chosen):
        (ROOT / page).write_text(written(page), encoding="utf-8")


if __name__ == "__main__":
    main()
