"""What a benchmark and a table are, and what the pages' modules share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

Document = dict[str, Any]
"""What a benchmark prints on its last line, or the part of it that is kept."""
Lines = list[list[str]]
"""Headers, then rows, of cells."""


def needs_module(name: str, sentence: str) -> Callable[[], str | None]:
    """A requirement: the sentence where a Python package is missing."""
    return lambda: None if importlib.util.find_spec(name) else sentence


@dataclass(frozen=True)
class Benchmark:
    """A command whose last line of output is a JSON document.

    command: `python`, `edge` or a script, and its arguments; TEXT and BUILD stand for the folders of texts
    and of what is kept between runs. prepare: commands before it, each with the file or folder in BUILD that
    it makes, and left out where that exists. state: the file or folder in BUILD by which a run that was ended
    goes on; it goes away when the document is kept. minutes: on the two cores of the tables. timed: whether a
    busy machine would spoil it. needs: each a function that gives a sentence when something is missing. kept:
    the part of the document that is worth keeping. per_machine: whether each kind of machine has a document
    of its own, so that tables show them side by side; else the last one measured stands.
    """

    command: str
    minutes: float
    timed: bool = True
    prepare: tuple[tuple[str, str], ...] = ()
    state: str | None = None
    needs: tuple[Callable[[], str | None], ...] = ()
    kept: Callable[[Document], Document] = lambda document: document
    per_machine: bool = False


@dataclass(frozen=True)
class Table:
    """A table of a page. rows: headers and rows from the documents of the benchmarks, in that order.

    keys: the first columns, which say what a row is about; machines share them where the table is of several.
    partial: whether it is also of a machine that lacks some of the documents, which are None then. picture: a
    file in docs/images that stands below the table once it is there.
    """

    page: str
    benchmarks: tuple[str, ...]
    rows: Callable[..., Lines]
    keys: int = 1
    partial: bool = False
    picture: str | None = None


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def ratio(ours: Iterable[float], others: Iterable[float]) -> float:
    """The median of the ratios of samples that were taken in turn."""
    return median(a / b for a, b in zip(ours, others, strict=True))


def short_profile(document: Document) -> Document:
    """A profile without the latencies of single tokens, and with the operators of all layers summed up."""
    kept = {**document, "results": []}
    for row in document["results"]:
        sums: dict[str, dict[str, float]] = {}
        for each in row["operators"]:
            found = sums.setdefault(
                each["operation"], dict.fromkeys(("seconds", "bytes", "limit_seconds"), 0.0)
            )
            found["seconds"] += each["seconds"]
            found["bytes"] += each["bytes"]
            found["limit_seconds"] += each["limit_share"] * each["seconds"]
        latencies = row["latency_percentiles"]
        short = {key: value for key, value in row.items() if key != "latency_percentiles"}
        kept["results"].append(
            {**short, "operators": sums, "median_seconds": latencies[50] if latencies else None}
        )
    return kept


def row_of(document: Document, **wanted: Any) -> Document:
    """The only row of a profile with these settings."""
    (row,) = (row for row in document["results"] if all(row[key] == value for key, value in wanted.items()))
    found: Document = row
    return found


def rate(row: Document) -> float:
    """Tokens per second of a profile's row."""
    return float(row["tokens_per_second"]["median"])


def attention_of(row: Document) -> tuple[float, float, float]:
    """Seconds, bytes per second and share of the limit of the attention of a profile's row."""
    found = row["operators"]["attention"]
    return found["seconds"], found["bytes"] / found["seconds"], found["limit_seconds"] / found["seconds"]
