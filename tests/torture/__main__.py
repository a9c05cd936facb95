"""`python -m tests.torture --kills N [--write NAME]`: all of it.

The last line is a JSON document, of which `make figures` makes a table of docs/fuzzing.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.torture.harness import fill_disk, kill_writers, limit_files, race, small_disk
from tests.torture.writes import WRITES, clean, prepare

DISK = 128 << 20
# Torch is loaded before the writers are forked, and a fork has none of its threads: it would wait for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    """Exits with 1 if a write was half there, lost, or left something behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each kind of write")
    parser.add_argument("--fills", type=int, default=20, help="places at which the disk is full")
    parser.add_argument("--races", type=int, default=10, help="pairs of writers")
    parser.add_argument("--write", choices=WRITES, action="append", help="by default every one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed, document = 0, {}
    for name in options.write or WRITES:
        started = time.monotonic()
        try:
            document[name] = torture(name, options)
        except Exception:
            traceback.print_exc()
            failed += 1
            continue
        document[name]["seconds"] = round(time.monotonic() - started)
        print(f"{name}: {json.dumps(document[name])}", flush=True)
    clean()
    print(json.dumps({"writes": document, "failed": failed}))
    return 1 if failed else 0


def torture(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Pairs: kills and those while writing; full disks and limits, and how many writes they ended. Races.

    full_disks is None where no disk may be mounted.
    """
    write, chance = WRITES[name], random.Random(f"{options.seed} {name}")
    prepare(name)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "kills"
        place.mkdir()
        found: dict[str, Any] = {"kills": [options.kills, kill_writers(write, place, options.kills, chance)]}
        with small_disk(Path(folder) / "disk", DISK) as disk:
            found["full_disks"] = disk and [options.fills, fill_disk(write, disk, options.fills, chance)]
        found["limits"] = [options.fills, limit_files(write, place, options.fills)]
        race(write, place, options.races)
    return {**found, "races": options.races}


if __name__ == "__main__":
    sys.exit(main())
