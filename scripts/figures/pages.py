"""Writes the tables into the pages: between `<!-- figures: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import json
import re
from textwrap import fill
from typing import Any

from . import (
    attention,
    cuda,
    drafts,
    exports,
    fuzzing,
    peers,
    performance,
    profile,
    quantization,
    server,
    speculation,
    targets,
    training,
)
from .benchmarks import BENCHMARKS
from .declaration import Lines
from .measuring import ROOT, document_of, kinds_of, machine_label, machine_line, shown

TABLES = {
    **targets.TABLES,
    **performance.TABLES,
    **peers.TABLES,
    **attention.TABLES,
    **quantization.TABLES,
    **exports.TABLES,
    **drafts.TABLES,
    **speculation.TABLES,
    **server.TABLES,
    **fuzzing.TABLES,
    **profile.TABLES,
    **cuda.TABLES,
    **training.TABLES,
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
    ("docs/training.md", "Training"): "targets, without figures of their own",
    ("docs/training.md", "Presets"): "published constants, and choices",
    ("docs/log.md", ""): "history: what no committed code makes again",
}
"""Tables that hold units and stand outside of marks, by page and heading (none: every heading), and why."""
PICTURES = ROOT / "docs" / "images"
_WAITING = "Not measured yet:"


def documents(name: str) -> dict[str | None, list[dict[str, Any] | None]]:
    """The documents of a table by kind of machine, None for those that it lacks.

    The only key is None where the last machine measured counts.
    """
    names = TABLES[name].benchmarks
    kinds: list[str | None] = list(kinds_of(names)) if BENCHMARKS[names[0]].per_machine else [None]
    paths = {kind: [document_of(each, kind) for each in names] for kind in kinds}
    return {
        kind: [json.loads(path.read_text(encoding="utf-8")) if path.exists() else None for path in found]
        for kind, found in paths.items()
    }


def shown_documents(name: str) -> list[list[dict[str, Any] | None]]:
    """The documents of each machine that the table is of: it has all, or the table is a partial one."""
    partial = TABLES[name].partial
    return [kept for kept in documents(name).values() if partial or None not in kept]


def lacking(name: str) -> dict[str, list[str]]:
    """The kinds of machines that a table leaves out, with the benchmarks that were not measured there."""
    return {
        kind: [each for each, found in zip(TABLES[name].benchmarks, kept, strict=True) if found is None]
        for kind, kept in documents(name).items()
        if kind is not None and None in kept and not TABLES[name].partial
    }


def unmeasured(name: str) -> list[str]:
    """The benchmarks that a table waits for, where no machine has them all; it stands as it is until then."""
    if shown_documents(name):
        return []
    return [each for each in TABLES[name].benchmarks if not document_of(each).exists()]


def waiting(name: str) -> str:
    """What stands between the marks of a table until its benchmarks are measured for the first time."""
    commands = ", ".join(f"`{shown(BENCHMARKS[each].command)}`" for each in unmeasured(name))
    return f"{_WAITING} {commands}.\n"


def rendered(name: str) -> str:
    """What stands between the marks of a table: its rows, then machine, command and date of each document."""
    table, found = TABLES[name], shown_documents(name)
    parts = {}
    for kept in found:
        known = [each for each in kept if each is not None]
        lines = table.rows(*(each and each["document"] for each in kept))
        parts[machine_label(known[0]["machine"])] = lines
    headers, *rows = side_by_side(parts, table.keys)
    lines = [headers, ["---"] * len(headers), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    if table.picture and (PICTURES / table.picture).exists():
        text += f"\n\n![the runs of this table](images/{table.picture})"
    return f"{text}\n\n{origin([each for kept in found for each in kept if each is not None])}\n"


def side_by_side(parts: dict[str, Lines], keys: int) -> Lines:
    """The tables of several machines as one: they share the first `keys` columns and keep the others.

    A row that one machine lacks has empty cells there, and stands below the row that it follows elsewhere.
    The headers name the machines where there are several.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    order: list[tuple[str, ...]] = []
    for _, *rows in parts.values():
        place = 0
        for cells in rows:
            key = tuple(cells[:keys])
            if key not in order:
                order.insert(place, key)
            place = order.index(key) + 1
    headers, columns = list(next(iter(parts.values()))[0][:keys]), []
    for label, (titles, *rows) in parts.items():
        headers += [f"{label}: {title}" if title else label for title in titles[keys:]]
        columns.append({tuple(cells[:keys]): cells[keys:] for cells in rows})
    widths = [len(titles) - keys for titles, *_ in parts.values()]
    body = [
        [
            *key,
            *(
                cell
                for cells, width in zip(columns, widths, strict=True)
                for cell in cells.get(key, [""] * width)
            ),
        ]
        for key in order
    ]
    return [headers, *body]


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
    """The text of a page with all its tables anew; one whose documents are missing stands as it is."""

    def anew(found: re.Match[str]) -> str:
        before, name, stands, after = found.groups()
        if not unmeasured(name):
            return before + rendered(name) + after
        is_table = bool(stands) and not stands.startswith(_WAITING)
        return before + (stands if is_table else waiting(name)) + after

    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"(<!-- options of a run -->\n).*?(<!-- end -->)", _with_options, text, flags=re.S)
    return re.sub(r"(<!-- figures: ([\w.-]+) -->\n)(.*?)(<!-- end -->)", anew, text, flags=re.S)


def _with_options(found: re.Match[str]) -> str:
    return found[1] + training.options() + found[2]
