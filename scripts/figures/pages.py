"""Writes the tables into the pages: between `<!-- figures: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import json
import re
from textwrap import fill
from typing import Any

from . import attention, exports, fuzzing, performance, profile, quantization
from .measuring import ROOT, document_of, machine_line

TABLES = {
    **performance.TABLES,
    **attention.TABLES,
    **quantization.TABLES,
    **exports.TABLES,
    **fuzzing.TABLES,
    **profile.TABLES,
}
NOT_MEASURED = {
    ("docs/architecture.md", "Foreign code"): "limits that foreign code runs under",
    ("docs/architecture.md", "Where things live"): "names of files, among them one that measures perplexity",
    ("docs/export-coreml.md", "Sparse attention"): "bytes computed from shapes; a test computes them too",
    ("docs/export-onnx.md", "Two flavours"): "what differs, without figures",
    ("docs/export-onnx.md", "What is in the folder"): "limits of formats",
    ("docs/export-onnx.md", "What was run, and what was not"): "what was run, without figures",
    ("docs/profile.md", "Reading the table"): "what the columns of a profile mean",
    ("docs/profile.md", "The JSON document"): "what the fields of a profile mean",
    ("docs/log.md", ""): "history: what no committed code makes again",
}
"""Tables that hold units and stand outside of marks, by page and heading (none: every heading), and why."""


def unmeasured(name: str) -> list[str]:
    """The benchmarks of a table that have no document yet; the table stands as it is until they have."""
    return [each for each in TABLES[name].benchmarks if not document_of(each).exists()]


def rendered(name: str) -> str:
    """What stands between the marks of a table: its rows, then machine, command and date of each document."""
    table = TABLES[name]
    kept = [json.loads(document_of(each).read_text(encoding="utf-8")) for each in table.benchmarks]
    headers, *rows = table.rows(*(each["document"] for each in kept))
    lines = [headers, ["---"] * len(headers), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{text}\n\n{origin(kept)}\n"


def origin(kept: list[dict[str, Any]]) -> str:
    """Sentences that name the machines, commands and dates of documents."""
    commands: dict[str, list[str]] = {}
    for each in kept:
        busy = "; **the machine was busy: not to be quoted**" if each["remarks"] else ""
        run = f"`{each['command']}`, {each['created']}, code {each['version']}{busy}"
        commands.setdefault(machine_line(each["machine"]), []).append(run)
    sentences = (f"{name}: {'; '.join(runs)}." for name, runs in commands.items())
    return "\n".join(fill(text, 120, break_long_words=False, break_on_hyphens=False) for text in sentences)


def written(page: str) -> str:
    """The text of a page with all its tables anew."""
    return re.sub(
        r"(<!-- figures: ([\w.-]+) -->\n).*?(<!-- end -->)",
        lambda found: found[0] if unmeasured(found[2]) else found[1] + rendered(found[2]) + found[3],
        (ROOT / page).read_text(encoding="utf-8"),
        flags=re.S,
    )
