"""The tables of docs/sparse-attention.md."""

from __future__ import annotations

from collections.abc import Callable

from .declaration import Document, Lines, Table, percent, ratio, row_of

PAGE = "docs/sparse-attention.md"


def sparse(document: Document) -> Lines:
    short = row_of(document, test="decode", attention="sparse", depth=512)
    rows = [["decode step at 512 tokens", f"{1000 * short['median_seconds']:.1f} ms", "", ""]]
    for test, words, scale, unit, digits in (
        ("decode", "decode step at {}", 1000, "ms", 1),
        ("prefill", "prefill of 512 tokens after {}", 1, "s", 2),
    ):
        for depth in (32768, 130000):
            ours, dense = (
                row_of(document, test=test, attention=kind, depth=depth) for kind in ("sparse", "dense")
            )
            times = [
                each["median_seconds"] if test == "decode" else each["ttft_seconds"] for each in (ours, dense)
            ]
            share = (
                f": {percent(short['median_seconds'] / times[0])} of the speed at 512"
                if test == "decode"
                else ""
            )
            rows.append(
                [
                    words.format(depth),
                    f"{scale * times[0]:.{digits}f} {unit}{share}",
                    f"{scale * times[1]:.{digits}f} {unit}",
                    f"{ratio(ours['samples'], dense['samples']):.1f}",
                ]
            )
    return [["", "sparse", "dense", "ratio of speeds"], *rows]


def needle(phase: str) -> Callable[[Document], Lines]:
    def table(document: Document) -> Lines:
        found = document[phase]["accuracy"]
        kinds = list(next(iter(found.values())))
        rows = [[length, *(percent(right[kind]) for kind in kinds)] for length, right in found.items()]
        named = {"window": "window of 4 blocks", "wide window": "window of 12 blocks"}
        return [["tokens", *(named.get(kind, kind) for kind in kinds)], *rows]

    return table


TABLES = {
    "sparse": Table(PAGE, ("sparse",), sparse),
    "needle-long": Table(PAGE, ("needle",), needle("long")),
    "needle-short": Table(PAGE, ("needle",), needle("short")),
}
