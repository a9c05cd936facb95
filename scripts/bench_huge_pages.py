"""Ways to have a weights file in memory, in turn: how long each takes, how fast it reads, and what it costs.

    python scripts/bench_huge_pages.py [--model random:minicpm4-0.5b] [--repeats 5] [--cold]

copied: read into anonymous huge pages, as the executor does where files don't lie in huge pages; mapped: the
file's own pages, huge where the system keeps them so; mapped, 4 KB: the same file in the usual pages;
collapse: mapped, then MADV_COLLAPSE. With --cold the file leaves the page cache once, at the beginning. Speed
is the best of three passes of all threads, taken by the library's own measurement of read bandwidth. The last
line is one JSON document with medians.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

from edge.errors import EdgeError
from edge.executors.native import library as native
from edge.executors.native.pool import ThreadPool
from edge.executors.weights import CopiedWeights
from edge.formats.bundle.reader import Bundle
from edge.hub.resolve import open_model
from edge.system.huge_pages import huge_page_bytes

COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1


def private_bytes() -> int:
    """Anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def mapped(bundle: Bundle, before: int, after: int | None = None) -> tuple[int, int, object]:
    """Address, size and owner of the mapped file, with an advice before and one after it is read."""
    size = bundle.weights_file.stat().st_size
    with bundle.weights_file.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    mapping.madvise(before)
    array = np.frombuffer(mapping, np.uint8)
    native.check(native.library().edge_mapping_prefault(array.ctypes.data, size))
    if after is not None:
        try:
            mapping.madvise(after)
        except OSError as error:
            raise EdgeError(error.strerror or str(error)) from None
    return array.ctypes.data, size, array


def copied(bundle: Bundle) -> tuple[int, int, object]:
    """The same of a private copy; tensors start some KB into the file, which makes no difference here."""
    memory = CopiedWeights(bundle)
    first = next(iter(bundle.tensors))
    return memory.address(first) - bundle.offset(first), memory.bytes, memory


def read_speed(pool: ThreadPool, address: int, size: int) -> float:
    out = native.Roofline()
    best = 0.0
    for _ in range(3):
        arguments = (ctypes.byref(pool.parallel), None, address, size, ctypes.byref(out))
        native.check(native.library().edge_measure_roofline(*arguments))
        best = max(best, out.read_bytes_per_second)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random:minicpm4-0.5b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    load, pool = os.getloadavg()[0], ThreadPool()
    path = open_model(options.model).path
    if options.cold:
        descriptor = os.open(path / "weights.safetensors", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    bundle = Bundle.open(path)
    ways: dict[str, Callable[[], tuple[int, int, object]]] = {
        "mapped": lambda: mapped(bundle, mmap.MADV_HUGEPAGE),
        "mapped, 4 KB": lambda: mapped(bundle, mmap.MADV_NOHUGEPAGE),
        "collapse": lambda: mapped(bundle, mmap.MADV_NORMAL, COLLAPSE),
        "copied": lambda: copied(bundle),
    }
    figures: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in ways}
    refused: dict[str, str] = {}
    for _ in range(options.repeats):
        for way, make in ways.items():
            before, began = private_bytes(), perf_counter()
            try:
                address, size, owner = make()
            except EdgeError as error:
                refused[way] = str(error)
                continue
            figures[way]["seconds"].append(perf_counter() - began)
            figures[way]["read GB/s"].append(read_speed(pool, address, size) / 1e9)
            figures[way]["in huge pages"].append((huge_page_bytes(address, size) or 0) / size)
            figures[way]["private MB"].append((private_bytes() - before) / 1e6)
            del owner
    document = {
        "machine": {"threads": pool.threads, "load": round(load, 2), "kernel": os.uname().release},
        "model": options.model,
        "bytes": bundle.weights_file.stat().st_size,
        "ways": {
            way: {name: round(float(np.median(values)), 3) for name, values in table.items()} or refused[way]
            for way, table in figures.items()
        },
        "first seconds": {way: round(table["seconds"][0], 3) for way, table in figures.items() if table},
    }
    for way, result in document["ways"].items():
        print(f"{way:14} {result}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
