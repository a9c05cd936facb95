"""The tables of docs/fuzzing.md."""

from __future__ import annotations

from .declaration import Document, Lines, Table, percent

PAGE = "docs/fuzzing.md"


def readers(document: Document) -> Lines:
    lines: Lines = [["reader", "executions", "accepted", "lines of its functions reached", "findings"]]
    for name, found in document["readers"].items():
        reached, lines_of = found["reached"], found["lines"]
        share = f"{reached} of {lines_of} ({percent(reached / lines_of)})"
        accepted = percent(found["accepted"] / max(found["executions"], 1))
        lines.append([name, f"{found['executions']:,}", accepted, share, str(len(found["findings"]))])
    return lines


def programs(document: Document) -> Lines:
    lines: Lines = [["program", "executions", "edges reached"]]
    for name, found in document["readers"].items():
        lines.append([f"`fuzz_{name}`", f"{found['executions']:,}", f"{found['edges']:,} of {found['of']:,}"])
    return lines


def torture(document: Document) -> Lines:
    lines: Lines = [["write", "kills (while writing)", "full disks (failed)", "limits (failed)", "races"]]
    for name, found in document["writes"].items():
        disks = found["full_disks"]
        pairs = [
            "skipped: may not mount a disk" if pair is None else f"{pair[0]} ({pair[1]})"
            for pair in (found["kills"], disks, found["limits"])
        ]
        lines.append([name, *pairs, str(found["races"])])
    return lines


def soak(document: Document) -> Lines:
    lines: Lines = [["what", "target", "found"]]
    growth = document["most_growth"]
    flat = "not measured" if growth is None else f"{percent(growth, 1)}{': missed' if growth > 0.02 else ''}"
    statuses = ", ".join(f"{count:,} with {name}" for name, count in sorted(document["statuses"].items()))
    ends = ", ".join(f"{count} by {name}" for name, count in document["ends"].items())
    found = len(document["findings"])
    return [
        *lines,
        ["traffic", "1 hour", f"{document['seconds'] / 60:.0f} minutes"],
        ["requests", "", f"{sum(document['requests'].values()):,}"],
        ["ends of the server", "", ends],
        ["responses by status (none: the client left, or sent no request)", "", statuses],
        ["answers equal to those of a quiet server", "all", f"{document['compared']:,} compared"],
        ["long conversations found again", "all", f"{document['prefixes']:,} times asked"],
        ["most growth of private memory in a life", "2 %", flat],
        [
            "findings, of these kinds and statuses of 500 and above",
            "0",
            str(found) if not found else f"{found}: missed",
        ],
    ]


TABLES = {
    "fuzz": Table(PAGE, ("fuzz",), readers),
    "fuzz-native": Table(PAGE, ("fuzz-native",), programs),
    "torture": Table(PAGE, ("torture",), torture),
    "soak": Table(PAGE, ("soak",), soak),
}
