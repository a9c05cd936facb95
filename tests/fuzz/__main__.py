"""`python -m tests.fuzz --executions N [--reader NAME] [--folder DIR]`: fuzz, one reader after the other.

Each reader runs in a process of its own and continues where it stopped. The last line is a JSON document, of
which `make figures` makes a table of docs/fuzzing.md. Exits with 1 if there are findings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from faulthandler import dump_traceback_later
from pathlib import Path
from typing import Any

from tests.fuzz.engine import SECONDS, Fuzzer, limit_memory
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
    ended, document = {}, {}
    for name in names:
        command = [sys.executable, "-m", "tests.fuzz", "--child", "--reader", name]
        command += ["--executions", str(options.executions), "--folder", str(options.folder)]
        ended[name] = subprocess.run([*command, "--seed", str(options.seed)], check=False).returncode
        document[name] = summary(name, options.folder / name)
        print(f"{name}: {json.dumps(document[name])}", flush=True)
    crashed = [name for name, code in ended.items() if code]
    for name in crashed:
        print(f"{name}: the process ended with {ended[name]}; see its trace above")
    unseen = [name for name in names if options.executions and not document[name]["reached"]]
    for name in unseen:
        print(f"{name}: none of its lines was seen to run; `edge` must be imported from this checkout")
    found = [f"{name}: {line}" for name in names for line in document[name]["findings"]]
    print("\n".join([*found, json.dumps({"readers": document})]))
    return 1 if crashed or unseen or found else 0


def summary(name: str, folder: Path) -> dict[str, Any]:
    """Of all runs of a reader in this folder: executions, lines of its functions reached, findings."""
    fuzzer = Fuzzer(READERS[name], folder)
    state, (reached, lines) = fuzzer.state, fuzzer.coverage()
    return {
        "executions": state.executions,
        "accepted": state.accepted,
        "seconds": round(state.seconds),
        "reached": reached,
        "lines": lines,
        "findings": state.findings,
    }


if __name__ == "__main__":
    sys.exit(main())
