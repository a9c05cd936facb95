"""One comparison: which programs are there, and the rows of the parts that are measured."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import edge
from edge.hub.resolve import open_bundle

from .measuring import Outcome, apart, in_turn, rows_of
from .models import INT4_32, Maker
from .options import options_of
from .parts import PARTS, Machine, Run
from .programs import EDGE, PEERS, Program


class Comparison:
    """The programs that are installed, and what they measure.

    programs: versions, and what the programs say about themselves. left_out: a sentence for each that is
    missing.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._maker = options, Maker(options.model, folder)
        self._vocabulary = open_bundle(options.model).config.vocab_size
        self._pythons = {EDGE: EDGE.python()}
        self.programs: dict[str, dict[str, Any]] = {EDGE.name: {"version": edge.__version__}}
        facts = self.measure(Run(EDGE, INT4_32, ()))["facts"]
        self.machine = Machine(facts["kv_type"], _has_amx(), options.busy)
        runs = [run for part in options.parts for run in PARTS[part](self.machine)]
        wanted = [peer for peer in PEERS if any(run.program is peer for run in runs)]
        self.left_out = [sentence for peer in wanted if (sentence := self._missing(peer))]

    def _missing(self, peer: Program) -> str | None:
        """Find a peer; the sentence where it is not installed."""
        python = peer.python(getattr(self._options, str(peer.option).replace("-", "_")))
        version = peer.version(python)
        if version is None:
            return peer.missing(python)
        self._pythons[peer] = python
        self.programs[peer.name] = {"version": version}
        return None

    def _model(self, run: Run) -> str:
        maker = replace(self._maker, python=self._pythons[run.program])
        return str(run.program.make(maker, run.weights))

    def measure(self, run: Run) -> Outcome:
        """One process of a run."""
        job = {"model": self._model(run), "vocabulary": self._vocabulary, "threads": self._options.threads}
        outcome = apart(self._pythons[run.program], run, job)
        told = self.programs[run.program.name]
        for name, value in outcome["facts"].items():
            if name != "read_bytes":
                told.setdefault(name, value)  # first comes a run of ours with nothing but defaults
        return outcome

    def rows(self, part: str) -> list[dict[str, Any]]:
        """The rows of a part, printed as well."""
        runs = [run for run in PARTS[part](self.machine) if run.program in self._pythons]
        for run in runs:
            self._model(run)  # now, and not between measurements
        rows = rows_of(part, in_turn(runs, self._options.rounds, self.measure))
        for row in rows:
            print(line_of(row), flush=True)
        return rows


def _has_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " amx_tile" in cpuinfo.read_text(encoding="utf-8")


def line_of(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    name = ", ".join(text for text in (row["program"], row["weights"], row["setting"]) if text)
    test = f"{row['test']} {row['tokens']} at {row['depth']}"
    if row["busy_processes"]:
        test += f" beside {row['busy_processes']} busy"
    text = f"{test:28} {name:60} {row['tokens_per_second']:8.1f} tokens/s"
    text += f"  ours {row['ratio']:.2f} x" if "ratio" in row else ""
    text += f"  {row['share']:.0%} of the read bandwidth" if "share" in row else ""
    return text + (f"  {row['share_of_alone']:.0%} of alone" if "share_of_alone" in row else "")


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the parts and print; the document."""
    load = os.getloadavg()[0]
    comparison = Comparison(options, folder)
    if comparison.left_out and options.need_all:
        raise SystemExit("\n".join(comparison.left_out))
    for sentence in comparison.left_out:
        print(sentence, flush=True)
    rows = [row for part in options.parts for row in comparison.rows(part)]
    return {
        "load": load,
        "model": options.model,
        "threads": options.threads,
        "rounds": options.rounds,
        "parts": options.parts,
        "amx": comparison.machine.amx,
        "programs": comparison.programs,
        "left_out": comparison.left_out,
        "results": rows,
    }


def main(description: str | None) -> None:
    """Compare as the command line asks; the last line is the document."""
    options = options_of(description=description)
    with tempfile.TemporaryDirectory() as scratch:
        document = compare(options, options.models or Path(scratch))
    print(json.dumps(document))
