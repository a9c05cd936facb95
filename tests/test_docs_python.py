"""The examples of docs/python.md, run as one program; and its tables, held against the code."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from edge.engine.completion import Completion
from edge.engine.keywords import LoadOptions
from edge.engine.settings import SETTING_NAMES

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "python.md").read_text(encoding="utf-8")


def names_of_table(header: str) -> set[str]:
    """The names in the first column of the table that begins with this header."""
    table = PAGE.partition(f"\n| {header} | |\n")[2].partition("\n\n")[0]
    return {name for row in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_the_examples_run(smollm2_gguf: Path, tmp_path: Path):
    """smollm2_gguf: only so that the test is skipped where the model is not installed."""
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^assistant \S", done.stdout, re.M)
    assert re.search(r"^[1-9]\d* of [1-9]\d* tokens were in the cache$", done.stdout, re.M)
    assert "\n[2, 2]\n" in done.stdout and "no-such-model.gguf" in done.stdout.splitlines()[-1]
    assert {"conversation.json", "prompt.kv"} == {path.name for path in tmp_path.iterdir()}


def test_the_tables_are_complete():
    assert names_of_table("setting") == set(SETTING_NAMES)
    assert names_of_table("option") == {*LoadOptions.__annotations__, "rope_override"}
    assert names_of_table("field") == {field.name for field in fields(Completion)}
