"""Cycles of the kernels' inner loops on ARM cores, and on two of x86, by llvm-mca: no core is asked.

    python -m scripts.cycles                       # a table, and one JSON document as the last line
    python -m scripts.cycles --cores cortex-a76    # of these cores only
    python -m scripts.cycles --write               # also into edge/measure/profile/cores.py

Every loop is compiled with the flags of the library. Its instructions go to llvm-mca, with the model that
`cores` names. Figures are multiply-adds per cycle of one core; of `halves`, `nibbles` and `powers`, elements.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.formats.atomic import write_file

from .assembly import LoopError, Turn, turn_of
from .cores import CORES, ModelledCore
from .kernels import KERNELS
from .tools import ROOT, ToolError, assembly, compiler_version, cycles, llvm_version

TABLE = ROOT / "edge" / "measure" / "profile" / "cores.py"


def measure(cores: Sequence[ModelledCore]) -> dict[str, Any]:
    """The document. Raises LoopError and ToolError."""
    llvm, turns = llvm_version(), dict[str, dict[str, Turn]]()
    tiers = list(dict.fromkeys(tier for core in cores for tier in core.tiers))
    with tempfile.TemporaryDirectory() as folder:
        for tier in tiers:
            text = assembly(tier, Path(folder))
            turns[tier] = {kernel.name: turn_of(text, kernel) for kernel in KERNELS}
    results = []
    for core in cores:
        for tier in core.tiers:
            loops = {}
            for name, turn in turns[tier].items():
                count = len(turn.instructions)
                taken = max(cycles(turn.instructions, core.model, tier), count / core.width)
                loops[name] = {
                    "instructions": count,
                    "multiply_adds": turn.multiply_adds,
                    "cycles": round(taken, 2),
                    "per_cycle": float(f"{turn.multiply_adds / taken:.3g}"),
                }
            results.append({"core": core.name, "model": core.model, "tier": tier, "loops": loops})
    compilers = {tier: compiler_version(tier) for tier in tiers}
    return {"llvm": llvm, "compilers": compilers, "results": results}


def table(document: dict[str, Any]) -> str:
    """Multiply-adds per cycle, a line for each core and tier."""
    names = [kernel.name for kernel in KERNELS]
    lines = [f"{'':26}{' '.join(names)}"]
    for each in document["results"]:
        figures = (f"{each['loops'][name]['per_cycle']:{len(name)}.4g}" for name in names)
        lines.append(f"{each['core'] + ' ' + each['tier']:26}{' '.join(figures)}")
    return "\n".join(lines)


def written(document: dict[str, Any], text: str) -> str:
    """The text of TABLE with the figures of the document, of each core's best ARM tier.

    Cores that share a model share its rates, unless their front ends make them differ.
    """
    best = {each["core"]: each for each in document["results"] if each["tier"].startswith("neon")}
    rates: dict[tuple[str, str], str] = {}  # model and figures -> name
    entries = []
    for core, each in best.items():
        figures = "".join(f"    {name}={loop['per_cycle']:g},\n" for name, loop in each["loops"].items())
        own = _constant(each["model"])
        other = own in rates.values()
        name = rates.setdefault((each["model"], figures), f"{own}{_constant(core)}" if other else own)
        entries.append(f'    "{core}": Core("{each["tier"]}", "{each["model"]}", {name}),\n')
    inside = f"# LLVM {document['llvm']}; {document['compilers']['neon-dotprod']}\n"
    inside += "".join(f"{name} = Rates(\n{figures})\n" for (_, figures), name in rates.items())
    inside += f"CORES: dict[str, Core] = {{\n{''.join(entries)}}}\n"
    new, count = re.subn(r"(# cycles\n).*?(# end\n)", lambda m: m[1] + inside + m[2], text, flags=re.S)
    assert count == 1, f"{TABLE.name} has no marks for the figures"
    return new


def _constant(name: str) -> str:
    """The name of a core or model as that of a private constant."""
    return f"_{name.upper().replace('-', '_')}"


def main() -> int:
    """See the head of this file; exits with 1 and a sentence where a tool or a loop is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", nargs="+", choices=[core.name for core in CORES], metavar="NAME")
    parser.add_argument("--write", action="store_true", help=f"the figures of ARM cores into {TABLE.name}")
    options = parser.parse_args()
    if options.write and options.cores:
        parser.error("--write takes all cores: leave out --cores")
    try:
        document = measure([core for core in CORES if core.name in (options.cores or [core.name])])
    except (LoopError, ToolError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(table(document))
    if options.write:
        write_file(TABLE, written(document, TABLE.read_text(encoding="utf-8")).encode())
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
