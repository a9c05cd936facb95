"""Finding the inner loops in assembly, and what llvm-mca says of them where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from edge.measure.profile.cores import CORES
from scripts.cycles import __main__ as command
from scripts.cycles import tools
from scripts.cycles.assembly import LoopError, turn_of
from scripts.cycles.kernels import KERNELS, Kernel

ROOT = Path(__file__).resolve().parent.parent.parent
NESTED = Kernel("a", "f", "int8", whole=True)
PLAIN = Kernel("a", "f", "float32")
# Groups of columns with an inner loop over columns; a guard that is never met leads past it.
ASSEMBLY = """
f:
\tmov\tx0, x1
#APP
\t# edge-turn 96
#NO_APP
.L4:
\tldr\tq0, [x1]
\tcmp\tx3, x4
\tble\t.L9
.L3:
\tsdot\tv1.4s, v2.16b, v3.16b  // a comment
\tsdot\tv4.4s, v2.16b, v3.16b
\tcmp\tx5, x6
\tbne\t.L3
.L9:
\tfmla\tv5.4s, v6.4s, v7.4s
\tcmp\tx7, x8
\tbgt\t.L4
\tret
\t.size\tf, .-f
"""
FLOATS = """
f:
\t# edge-turn 8
.L1:
\tfmla\tv1.4s, v2.4s, v3.s[0]
\tbne\t.L1
.L2:
\tfmla\tv1.4s, v2.4s, v3.s[0]
\tfmla\tv4.4s, v2.4s, v3.s[1]
\tbne\t.L2
\tret
\t.size\tf, .-f
"""


def test_a_turn_of_a_group_repeats_the_inner_loop():
    """Three turns of two products of 16 make the 96 multiply-adds of a group."""
    turn = turn_of(ASSEMBLY, NESTED)
    inner = ["sdot v1.4s, v2.16b, v3.16b", "sdot v4.4s, v2.16b, v3.16b", "cmp x5, x6", "bne .L3"]
    before, after = (
        ["ldr q0, [x1]", "cmp x3, x4", "ble .L9"],
        ["fmla v5.4s, v6.4s, v7.4s", "cmp x7, x8", "bgt .L4"],
    )
    assert list(turn.instructions) == before + 3 * inner + after and turn.multiply_adds == 96


def test_the_loop_of_the_largest_tile_counts():
    turn = turn_of(FLOATS, PLAIN)
    assert len(turn.instructions) == 3 and turn.multiply_adds == 8


@pytest.mark.parametrize(
    ("assembly", "kernel", "sentence"),
    [
        (ASSEMBLY.replace("f:", "g:"), NESTED, "has no function f"),
        (ASSEMBLY.replace("edge-turn", "turn"), NESTED, "no mark of EDGE_TURN"),
        (
            ASSEMBLY.replace("edge-turn 96", "edge-turn 100"),
            NESTED,
            r"whose turns make \[96\] products; one with 100",
        ),
        (ASSEMBLY.replace("sdot", "add"), NESTED, "f has 0 inner loops with sdot or smmla"),
        (FLOATS.replace("edge-turn 8", "edge-turn 12"), PLAIN, r"make \[4, 8\] products; one with 12"),
    ],
)
def test_a_loop_that_is_not_as_expected_is_named(assembly, kernel, sentence):
    with pytest.raises(LoopError, match=sentence):
        turn_of(assembly, kernel)


def test_missing_tools_are_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cycles", "--cores", "cortex-a76"])
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    tools.llvm_mca.cache_clear()
    assert command.main() == 1
    told = capsys.readouterr()
    assert told.out == "" and "llvm-mca of LLVM 16 or newer is not installed: `apt-get install" in told.err
    with pytest.raises(tools.ToolError, match="is not installed: `apt-get install"):
        tools.compiler("neon")


def test_the_loops_of_a_core(require):
    """Every loop is found in what this compiler makes, and the product's figures are near what comes out."""
    require("aarch64-linux-gnu-g++", "cmake")
    if not (shutil.which("llvm-mca-19") or shutil.which("llvm-mca")):
        pytest.skip(
            "llvm-mca is not installed: `apt-get install llvm-19` (`make test` needs it for this test only)"
        )
    run = [sys.executable, "-m", "scripts.cycles", "--cores", "cortex-a76"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    if "LLVM 16 or newer" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    by_tier = {each["tier"]: each["loops"] for each in document["results"]}
    assert set(by_tier) == {"neon", "neon-dotprod"}
    known = asdict(CORES["cortex-a76"].rates)
    for kernel in KERNELS:
        plain, best = (by_tier[tier][kernel.name] for tier in ("neon", "neon-dotprod"))
        assert best["per_cycle"] == pytest.approx(best["multiply_adds"] / best["cycles"], rel=0.01)
        assert best["per_cycle"] == pytest.approx(known[kernel.name], rel=0.3)
        if kernel.work == "int8":
            assert best["per_cycle"] > 1.3 * plain["per_cycle"] and best["per_cycle"] < 32


def test_the_table_of_cores_is_what_the_document_gives():
    kept = json.loads((ROOT / "docs" / "figures" / "cycles.json").read_text(encoding="utf-8"))
    text = command.TABLE.read_text(encoding="utf-8")
    assert command.written(kept["document"], text) == text, "run `python -m scripts.cycles --write`"


def test_cores_of_one_model_share_its_rates_unless_they_differ():
    def core(name: str, tier: str, per_cycle: float) -> dict[str, object]:
        return {"core": name, "model": "m-1", "tier": tier, "loops": {"one": {"per_cycle": per_cycle}}}

    results = [core("a", "neon", 1), core("a", "neon-x", 2), core("b", "neon-x", 2), core("c", "neon-x", 3)]
    document = {"llvm": "19", "compilers": {"neon-dotprod": "g++"}, "results": results}
    assert command.written(document, "# cycles\nold\n# end\n").splitlines() == [
        "# cycles",
        "# LLVM 19; g++",
        *("_M_1 = Rates(", "    one=2,", ")"),
        *("_M_1_C = Rates(", "    one=3,", ")"),
        "CORES: dict[str, Core] = {",
        '    "a": Core("neon-x", "m-1", _M_1),',
        '    "b": Core("neon-x", "m-1", _M_1),',
        '    "c": Core("neon-x", "m-1", _M_1_C),',
        "}",
        "# end",
    ]
