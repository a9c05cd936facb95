"""`make cubins`: compiles the kernels for all devices, prints what each of them needs, and packs them.

No GPU is needed. It goes on where an earlier run was ended; what did not change is not compiled again.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import EdgeError
from edge.executors.cuda.cubins import Cubins
from edge.executors.cuda.manifest import Kernel
from edge.kernels.targets import TARGETS, Target

if TYPE_CHECKING:  # Triton, which `main` looks for first
    from edge.kernels.entry import Entry
    from edge.kernels.store import Store

_HEAD = ("kernel", "for", "registers", "stack", "spills", "shared", "HMMA", "128-bit loads", "broken rules")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status is 1 if a kernel can't be compiled or breaks a rule."""
    asked = _parser().parse_args(arguments)
    if importlib.util.find_spec("triton") is None:
        return _refuse("Triton is not installed: pip install 'minicpm-edge[cubins]' brings it.")
    if os.environ.get("TRITON_INTERPRET"):
        return _refuse("With TRITON_INTERPRET set nothing is compiled; unset it.")
    from edge.kernels.catalogue import ENTRIES
    from edge.kernels.package import pack
    from edge.kernels.store import Store, sources_of

    architectures = sorted(set(asked.architectures))
    targets = [TARGETS[each] for each in architectures]
    chosen = [entry for id, entry in ENTRIES.items() if any(fnmatchcase(id, each) for each in asked.kernels)]
    if not chosen:
        return _refuse(f"No kernel has such a name; there are {', '.join(ENTRIES)}.")
    if asked.changed:
        packed = _packed(asked.out)
        variants = {target.variant.name for target in targets}
        chosen = [
            entry for entry in chosen if not _is_packed(packed.get(entry.id), sources_of(entry), variants)
        ]
    store = Store(asked.store)
    missing = [entry for entry in chosen if not store.has(sources_of(entry), targets)]
    failures = _compile(missing, architectures, asked.store, asked.jobs) if missing else {}
    rows, broken = _rows([entry for entry in chosen if entry.id not in failures], targets, store)
    _print_table(rows)
    for id, failure in failures.items():
        _refuse(f"{id}: {failure}")
    if failures or broken:
        return _refuse(f"{len(failures) + broken} of these kernels can't be used; nothing was packed.")
    manifest = pack(asked.out, ENTRIES.values(), store)
    store.forget_others({sources_of(entry) for entry in ENTRIES.values()})
    print(f"{asked.out}: {len(manifest.kernels)} kernels for {', '.join(manifest.variants)}")
    return 0


def compile_one(id: str, architectures: Sequence[int], folder: Path) -> None:
    """Compile what is not in the store yet, in a process of its own; raises EdgeError and Triton's errors."""
    from edge.kernels.catalogue import ENTRIES
    from edge.kernels.compiling import assemble, lower
    from edge.kernels.store import Store, sources_of

    store, sources = Store(folder), sources_of(ENTRIES[id])
    lowered = store.lowered(sources)
    if lowered is None:
        lowered = lower(ENTRIES[id])
        store.keep_lowered(sources, lowered)
    for target in (TARGETS[each] for each in architectures):
        if store.usage(sources, target) is None:
            store.keep_cubin(sources, target, *assemble(lowered.ptx, target))


def _refuse(sentence: str) -> int:
    print(f"Error: {sentence}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edge.kernels.build", description=__doc__)
    known = ",".join(map(str, TARGETS))
    parser.add_argument(
        "--architectures",
        type=_architectures,
        default=list(TARGETS),
        help=f"by default {known}; PTX is always made",
    )
    parser.add_argument(
        "--kernels", nargs="+", default=["*"], metavar="GLOB", help="only those with such names"
    )
    parser.add_argument(
        "--changed", action="store_true", help="only those that are not packed as they are now"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--out", type=Path, default=Path("build/cubins"), help="where the packed kernels go")
    parser.add_argument(
        "--store", type=Path, default=Path("build/cubins-store"), help="what was compiled, one by one"
    )
    return parser


def _architectures(text: str) -> list[int]:
    found = [int(each) for each in text.split(",")]
    if unknown := set(found) - set(TARGETS):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)} are not among {', '.join(map(str, TARGETS))}")
    return found


def _packed(folder: Path) -> dict[str, Kernel]:
    try:
        return dict(Cubins.open(folder).manifest.kernels)
    except EdgeError:
        return {}


def _is_packed(kernel: Kernel | None, sources: str, variants: set[str]) -> bool:
    return kernel is not None and kernel.sources == sources and variants <= set(kernel.images)


def _compile(
    entries: Sequence[Entry], architectures: Sequence[int], folder: Path, jobs: int
) -> dict[str, str]:
    """Fill the store in several processes; the reasons of failures, by kernel."""
    failures = {}
    started = time.monotonic()
    # Not forked: the compiler, which this process has loaded, has threads.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(compile_one, entry.id, architectures, folder): entry.id for entry in entries}
        for done, future in enumerate(as_completed(running), start=1):
            id = running[future]
            error = future.exception()
            if error is not None:
                failures[id] = f"{type(error).__name__}: {error}"
            said = "failed" if error is not None else "compiled"
            print(
                f"[{done}/{len(running)}, {time.monotonic() - started:.0f} s] {id} {said}",
                file=sys.stderr,
                flush=True,
            )
    return failures


def _rows(
    entries: Sequence[Entry], targets: Sequence[Target], store: Store
) -> tuple[list[tuple[str, ...]], int]:
    """Of the table; and how many kernels break a rule."""
    from edge.kernels.store import sources_of

    rows, broken = [], set()
    for entry in entries:
        sources = sources_of(entry)
        lowered = store.lowered(sources)
        assert lowered is not None
        for target in targets:
            usage = store.usage(sources, target)
            assert usage is not None
            faults = usage.faults(target, warps=lowered.warps, dynamic_shared=lowered.shared)
            broken |= {entry.id} if faults else set()
            needs = (usage.registers, usage.stack, usage.spills, lowered.shared + usage.shared)
            counts = map(str, (*needs, usage.tensor_cores, usage.wide_loads))
            rows.append((entry.id, target.variant.name, *counts, ", ".join(faults)))
    return rows, len(broken)


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    for row in (_HEAD, *rows):
        cells = [
            text.ljust(width) if at in (0, 1, len(row) - 1) else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
