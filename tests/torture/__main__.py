"""`python -m tests.torture --kills N [--write NAME]`: all of it, as a table for docs/fuzzing.md."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

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
    failed = 0
    for name in options.write or WRITES:
        started = time.monotonic()
        try:
            cells = torture(name, options)
        except Exception:
            traceback.print_exc()
            cells, failed = ["failed: see above"], failed + 1
        print(f"| {name} | {' | '.join(cells)} | {time.monotonic() - started:.0f} |", flush=True)
    clean()
    return 1 if failed else 0


def torture(name: str, options: argparse.Namespace) -> list[str]:
    """Kills of which some hit, full disks of which some hit, limits of which some hit, races."""
    write, chance = WRITES[name], random.Random(f"{options.seed} {name}")
    prepare(name)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "kills"
        place.mkdir()
        hit = kill_writers(write, place, options.kills, chance)
        cells = [f"{options.kills} ({hit} while writing)"]
        with small_disk(Path(folder) / "disk", DISK) as disk:
            if disk is None:
                cells.append("skipped: may not mount a disk")
            else:
                cells.append(f"{options.fills} ({fill_disk(write, disk, options.fills, chance)} failed)")
        cells.append(f"{options.fills} ({limit_files(write, place, options.fills)} failed)")
        race(write, place, options.races)
    return [*cells, str(options.races)]


if __name__ == "__main__":
    sys.exit(main())
