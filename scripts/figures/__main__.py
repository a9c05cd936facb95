"""Writes the tables of the docs from the benchmark documents in docs/figures.

    python -m scripts.figures                          # the tables, from the documents
    python -m scripts.figures --list                   # every benchmark: tables, time, document, command
    python -m scripts.figures --measure peers sampler  # runs these benchmarks first, then writes
    python -m scripts.figures --measure all            # those without a good document of this code

Times are measured on an idle machine only; with --force also on a busy one, which the table then says. Every
document is kept as soon as it is measured, so a run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys

from edge.formats.atomic import write_file

from .benchmarks import BENCHMARKS
from .measuring import ROOT, document_of, is_current, kinds_of, measure, missing, shown
from .pages import TABLES, lacking, unmeasured, written


def listed(name: str) -> str:
    """The lines of --list about a benchmark."""
    benchmark, path = BENCHMARKS[name], document_of(name)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    when = f"{kept['created']}, code {kept['version']}" if kept else "not measured"
    if others := [kind for kind in kinds_of([name]) if path != document_of(name, kind)]:
        when += f" here, but on {', '.join(others)}" if not kept else f"; also on {', '.join(others)}"
    if kept and kept["remarks"]:
        when += ", on a busy machine"
    tables = ", ".join(
        f"{each} in {table.page}" for each, table in TABLES.items() if name in table.benchmarks
    )
    timed = "idle machine" if benchmark.timed else "any time"
    took = f"{kept['minutes']:g} minutes" if kept else f"some {benchmark.minutes:g} minutes"
    lines = [f"{name}: {when}; {took}, {timed}", f"    tables: {tables}"]
    lines += [f"    {shown(command)}" for command, _ in benchmark.prepare]
    lines += [f"    {shown(benchmark.command)}"]
    if sentence := missing(benchmark):
        lines.append(f"    can't run here: {sentence}")
    return "\n".join(lines)


def main() -> int:
    """See the head of this file; exits with 1 if something was not measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print every benchmark and stop")
    parser.add_argument("--measure", nargs="+", default=[], metavar="NAME", help="run benchmarks first")
    parser.add_argument("--force", action="store_true", help="on a busy machine, too")
    options = parser.parse_args()
    if options.list:
        print("\n".join(listed(name) for name in BENCHMARKS))
        return 0
    names = options.measure
    if names == ["all"]:
        names = [name for name in BENCHMARKS if not is_current(name)]
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; --list names them")
    left_out = 0
    for name in names:
        print(f"{name}: {shown(BENCHMARKS[name].command)}", flush=True)
        if sentence := measure(name, force=options.force):
            print(f"{name} was not measured: {sentence}", file=sys.stderr, flush=True)
            left_out += 1
    for table in TABLES:
        if names := unmeasured(table):
            print(f"{table} stands as it is: {', '.join(names)} was not measured.", file=sys.stderr)
        for kind, names in lacking(table).items():
            print(f"{table} has no column of {kind}: {', '.join(names)} was not measured.", file=sys.stderr)
    for page in dict.fromkeys(table.page for table in TABLES.values()):
        write_file(ROOT / page, written(page).encode())
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
