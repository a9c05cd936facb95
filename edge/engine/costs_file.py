"""What numbers of rows cost beside one, kept from one run to the next: measured once per machine and
model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from edge.engine.costs import DEPTHS, Shape
from edge.errors import EdgeError
from edge.executors.protocol import Executor, StoresCaches
from edge.formats.atomic import write_file
from edge.formats.guarded_json import parse_object
from edge.system.paths import cache_folder

_MOST_ROWS, _MOST = 4096, 1e4  # rows, and times of one row, beyond which a file makes no sense

_MOST_FILES = 64


def costs_path(executor: Executor) -> Path | None:
    """Where they are for this executor's weights, kernels and threads; None for one that does not name
    them.
    """
    if not executor.capabilities.cache_files:
        return None
    store, info = cast(StoresCaches, executor), executor.info
    facts = (dict(store.cache_identity), store.arithmetic, info.threads, DEPTHS)
    return cache_folder() / "costs" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"


def read_shapes(path: Path) -> list[Shape]:
    """What `write_shapes` wrote; empty if there is none, or none that makes sense."""
    with suppress(OSError, EdgeError, KeyError, TypeError, ValueError, AttributeError):
        shapes = parse_object(path.read_bytes(), path, EdgeError, "remove it")["shapes"]
        found = [{int(rows): float(cost) for rows, cost in shape.items()} for shape in shapes]
        costs = [(rows, cost) for shape in found for rows, cost in shape.items()]
        if len(found) == len(DEPTHS) + 1 and all(
            0 < rows <= _MOST_ROWS and 1 / _MOST < cost < _MOST for rows, cost in costs
        ):
            return list(found)
    return []


def write_shapes(path: Path, shapes: Sequence[Shape]) -> None:
    """Atomically; a folder that can't be written is no reason to complain."""
    with suppress(OSError, EdgeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"shapes": [dict(shape) for shape in shapes]}).encode())
        files = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in files[:-_MOST_FILES]:  # of models and builds that are long gone
            old.unlink(missing_ok=True)
