"""Holds the predictions against this machine: the same arithmetic for a core of it, beside what it measures.

    python -m scripts.cycles.check [--quantize int4,int4-g128,ternary] [--repeat 9]

One thread, and its processor time, of the fastest repeat: so other programs take nothing but their share of
what cores have in common, and as little of that as can be. Clock and bandwidth are measured in turn with
the tests; what is held against the machine is the cycles by llvm-mca and the model of a pass around them.
The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.hub.resolve import open_model
from edge.measure.profile.cores import Core, Rates
from edge.measure.profile.cpu import Cluster, Cpu
from edge.measure.profile.measure import Bench
from edge.measure.profile.options import Case
from edge.measure.profile.plan import PlannedDevice, plan
from edge.measure.profile.roofline import Region

from .__main__ import measure
from .assembly import LoopError
from .cores import CORES
from .tools import ToolError, compiler

_MODEL = "random:minicpm4-0.5b"
_CPUS = {  # vendor and family, models: core
    ("GenuineIntel", 6): {
        143: "sapphire-rapids",
        207: "sapphire-rapids",
    },  # 207 is Emerald Rapids: the same core
    ("AuthenticAMD", 25): dict.fromkeys((*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0)), "zen4"),
}
_TILE_ROWS = 8  # of the tier avx512vnni
_CONTEXT = 8192
_TESTS = (
    Case("prefill", 512, 0),
    Case("prefill", 512, 4096),
    Case("decode", 32, 0),
    Case("decode", 32, 4096),
)
_READ = 1 << 29  # bytes
_TURNS, _LATENCY = 1 << 22, 24  # cycles of a turn: eight multiplications of three each, on all these cores
_LOOPS = """
extern "C" long total(const long *at, long count) {
    long sum = 0;
    for (long i = 0; i < count; ++i) sum += at[i];
    return sum;
}
extern "C" void chain(long turns) {
    for (long i = 0, x = 3; i < turns; ++i) {
        asm volatile("imul %0, %0; imul %0, %0; imul %0, %0; imul %0, %0; "
                     "imul %0, %0; imul %0, %0; imul %0, %0; imul %0, %0" : "+r"(x));
    }
}
"""


def own_core() -> str:
    """The name in CORES of this machine's core. Raises ToolError."""
    path = Path("/proc/cpuinfo")
    told: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    family = (told.get("vendor_id", ""), int(told.get("cpu family", "0")))
    found = _CPUS.get(family, {}).get(int(told.get("model", "0")))
    if found is None:
        known = ", ".join(sorted({core for models in _CPUS.values() for core in models.values()}))
        raise ToolError(f"This machine's core is none of {known}: the check runs on those only.")
    return found


class Loops:
    """Measures clock and bandwidth with two loops of its own."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source, built = Path(folder) / "loops.cpp", Path(folder) / "loops.so"
            source.write_text(_LOOPS, encoding="utf-8")
            command = [compiler("avx512vnni"), "-O3", "-mavx512f", "-shared", "-fPIC", "-o", str(built)]
            subprocess.run([*command, str(source)], check=True)
            self._library = ctypes.CDLL(str(built))
        self._region = Region(_READ)

    def clock_ghz(self) -> float:
        """Multiplications that wait for each other."""
        return _LATENCY * _TURNS / _seconds(lambda: self._library.chain(ctypes.c_long(_TURNS))) / 1e9

    def read_gb_s(self) -> float:
        """A plain sum; docs/log.md says how little a better loop adds."""
        count = ctypes.c_long(_READ // 8)
        return _READ / _seconds(lambda: self._library.total(self._region.pointer, count)) / 1e9

    def close(self) -> None:
        """Give the memory back."""
        self._region.close()


def _seconds(call: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = process_time()
    call()
    return process_time() - start


def measured(name: str, repeat: int) -> tuple[float, float, dict[Case, float]]:
    """The best in one quantization: clock in GHz, GB read per second, and tokens per second of each test."""
    executor = open_executor(
        open_model(_MODEL, quantize=name), RunOptions(context=_CONTEXT, threads=1, attention="dense")
    )
    bench, loops = Bench(executor, "synthetic"), Loops()
    speeds: dict[Case, list[float]] = defaultdict(list)
    clocks, reads = [], []
    for each in _TESTS:
        bench.measure(*each)  # fills the cache
    for _ in range(repeat):
        clocks.append(loops.clock_ghz())
        reads.append(loops.read_gb_s())
        for each in _TESTS:
            seconds = _seconds(lambda: bench.measure(*each))  # noqa: B023
            speeds[each].append(each.tokens / seconds)
    loops.close()
    return max(clocks), max(reads), {each: max(found) for each, found in speeds.items()}


def compared(name: str, core: Core, repeat: int) -> dict[str, Any]:
    """Every test in one quantization beside its prediction."""
    ghz, read, speeds = measured(name, repeat)
    cpu = Cpu((Cluster(1, core, ghz),), 1.0, "measured")
    device = PlannedDevice("this machine", read, None, "measured", cpu)
    rows = []
    for case, speed in speeds.items():
        (planned,) = plan(
            _MODEL, quantize=(name,), context=_CONTEXT, device=device, depth=(case.depth,), prefill=(512,)
        )
        (found,) = (each for each in planned.predicted if each.test == case.test)
        shown = {"measured": round(speed, 1), "predicted": round(found.tokens_per_second, 1)}
        ratio = round(found.tokens_per_second / speed, 2)
        facts = {"test": case.test, "tokens": case.tokens, "depth": case.depth}
        rows.append({**facts, **shown, "ratio": ratio, "limit": found.limit})
    return {"quantize": name, "clock_ghz": round(ghz, 2), "read_gb_s": round(read, 1), "rows": rows}


def main() -> int:
    """See the head of this file; exits with 1 and a sentence where a tool or a loop is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quantize", default="int4,int4-g128,ternary")
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    try:
        name = own_core()
        cycles = measure([core for core in CORES if core.name == name])
    except (LoopError, ToolError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    (found,) = cycles["results"]
    rates = Rates(**{loop: each["per_cycle"] for loop, each in found["loops"].items()})
    core = Core(found["tier"], found["model"], rates, _TILE_ROWS)
    results = [compared(each, core, options.repeat) for each in options.quantize.split(",")]
    for result in results:
        print(f"{result['quantize']}: {result['clock_ghz']} GHz, {result['read_gb_s']} GB/s read by one core")
        for row in result["rows"]:
            what = f"  {row['test']} {row['tokens']} at depth {row['depth']}"
            print(
                f"{what:30} {row['measured']:8} measured {row['predicted']:8} predicted, ratio {row['ratio']}"
            )
    print(
        json.dumps(
            {**{key: found[key] for key in ("core", "model")}, "llvm": cycles["llvm"], "results": results}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
