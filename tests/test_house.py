"""The rules of the house, checked over the tree: imports go down, the runtime is light, files are small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("edge", "model", "export", "train", "apps")  # each may import those before it
PRESENT = [room for room in ROOMS if (ROOT / room).is_dir()]
HEAVY = ("torch", "transformers", "torchao", "executorch", "coremltools")  # never in edge, not even lazily
MAX_LINES = 450
SOURCES = (".py", ".c", ".cc", ".cpp", ".h", ".hpp")


def imported_packages(source: str) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import statement, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]


def offences(room: str, source: str) -> list[tuple[int, str]]:
    """The imports in `source` that a file of `room` must not have."""
    above = ROOMS[ROOMS.index(room) + 1 :]
    forbidden = {*above, "tests", *(HEAVY if room == "edge" else ())}
    return [(line, package) for line, package in imported_packages(source) if package in forbidden]


def files_of(folder: str, *suffixes: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


@pytest.mark.parametrize("room", PRESENT)
def test_imports_go_down_only(room: str):
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {package}"
        for path in files_of(room, ".py")
        for line, package in offences(room, path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_the_rule_sees_offences():
    assert offences("edge", "def f():\n    from model.rope import rotate\n") == [(2, "model")]
    assert offences("edge", "import numpy, torch.nn as nn") == [(1, "torch")]
    assert offences("model", "import torch\nimport edge.config\n") == []
    assert offences("export", "import apps.cli") == [(1, "apps")]


def test_the_rule_sees_files():
    assert {path.name for path in files_of("edge", ".py")} >= {"config.py", "packing.py", "native.py"}
    assert files_of("kernels", ".cpp", ".h")


@pytest.mark.parametrize("folder", [*PRESENT, "kernels", "scripts", "tests"])
def test_files_stay_small(folder: str):
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files_of(folder, *SOURCES)}
    long = [
        f"{path.relative_to(ROOT)} has {count} lines" for path, count in lines.items() if count > MAX_LINES
    ]
    assert not long, f"over {MAX_LINES} lines: {'; '.join(long)}"


@pytest.mark.parametrize("room", PRESENT)
def test_files_say_what_they_own(room: str):
    """Every Python file begins with a docstring."""
    silent = [
        str(path.relative_to(ROOT))
        for path in files_of(room, ".py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, f"no docstring: {', '.join(silent)}"
