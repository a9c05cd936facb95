"""`python -m tests.fuzz --executions N [--reader NAME] [--folder DIR]`: fuzz, one reader after the other.

Each reader runs in a process of its own and continues where it stopped; the table at the end is the one of
docs/fuzzing.md. Exits with 1 if there are findings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from faulthandler import dump_traceback_later
from pathlib import Path

from tests.fuzz.engine import SECONDS, Fuzzer, State, limit_memory
from tests.fuzz.readers import READERS


def main() -> int:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--executions", type=int, default=200_000, help="of each reader, in all runs together"
    )
    parser.add_argument("--reader", choices=READERS, action="append", help="by default every one")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="of states and findings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.reader or list(READERS)
    if options.child:
        (name,) = names
        limit_memory()
        fuzzer = Fuzzer(READERS[name], options.folder / name, options.seed)
        # The alarm of an execution raises in Python code only; other code that hangs ends the process.
        fuzzer.run(
            options.executions // READERS[name].slow,
            heartbeat=lambda: dump_traceback_later(64 * SECONDS, exit=True),
        )
        return 0
    ended = {}
    for name in names:
        command = [sys.executable, "-m", "tests.fuzz", "--child", "--reader", name]
        command += ["--executions", str(options.executions), "--folder", str(options.folder)]
        ended[name] = subprocess.run([*command, "--seed", str(options.seed)], check=False).returncode
        print(row(name, options.folder / name), flush=True)
    crashed = [name for name, code in ended.items() if code]
    for name in crashed:
        print(f"{name}: the process ended with {ended[name]}; see its trace above")
    found = [line for name in names for line in findings(options.folder / name)]
    print("\n".join(found))
    return 1 if crashed or found else 0


def row(name: str, folder: Path) -> str:
    """A line of the table: reader, executions, share accepted, seconds, lines covered, findings."""
    fuzzer = Fuzzer(READERS[name], folder)
    state, (reached, lines) = fuzzer.state, fuzzer.coverage()
    share = state.accepted / max(state.executions, 1)
    cells = (name, f"{state.executions:,}", f"{share:.0%}", f"{state.seconds:.0f}")
    return f"| {' | '.join(cells)} | {reached} of {lines} ({reached / lines:.0%}) | {len(state.findings)} |"


def findings(folder: Path) -> list[str]:
    """What was found by a run, a line each."""
    path = folder / "state.json"
    return State(**json.loads(path.read_bytes())).findings if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
