"""The tables of docs/cuda.md: what the machine code needs, and predictions. None is measured on a GPU."""

from __future__ import annotations

from collections.abc import Callable

from .declaration import Document, Lines, Table

PAGE = "docs/cuda.md"


def code(document: Document) -> Lines:
    """A row for every kernel; stars where a rule is broken, so that it is not packed."""
    lines: Lines = [["kernel", "warps", "registers", "stack", "spills", "shared", "HMMA", "128-bit loads"]]
    for each in document["kernels"]:
        names = ("warps", "registers", "stack", "spills", "shared", "tensor_cores", "wide_loads")
        star = " \\*" if each["faults"] else ""
        lines.append([f"`{each['kernel']}`{star}", *(str(each[name]) for name in names)])
    return lines


def decode(document: Document) -> Lines:
    """A row for each GPU and context; columns for numbers of sequences, then what others have published."""
    rows = [each for each in document["results"] if each["test"] == "decode"]
    counts = sorted({each["rows"] for each in rows})
    speeds = {(each["gpu"], each["context"], each["rows"]): each for each in rows}
    lines: Lines = [
        [
            "predicted tokens/s",
            "context",
            *(f"{count} sequences" if count > 1 else "1 sequence" for count in counts),
            "1 sequence, of the bandwidth",
            "CPM.cu, published",
            "with guesses, published",
        ]
    ]
    for gpu, context in dict.fromkeys((each["gpu"], each["context"]) for each in rows):
        of = [speeds[gpu, context, count] for count in counts]
        share = of[0]["bandwidth_seconds"] / of[0]["seconds"]
        published = (_published(of[0]["published"].get(kind)) for kind in ("decode", "decode, with guesses"))
        rates = map(_speed, of)
        lines.append([_title(document, gpu), f"{context:,}", *rates, f"{100 * share:.0f} %", *published])
    return lines


def prefill(document: Document) -> Lines:
    """A row for each GPU; columns for lengths of prompts, each with what CPM.cu has published."""
    rows = [each for each in document["results"] if each["test"] == "prefill"]
    contexts = sorted({each["context"] for each in rows})
    lines: Lines = [["predicted tokens/s (CPM.cu, published)", *(f"{context:,}" for context in contexts)]]
    for gpu in dict.fromkeys(each["gpu"] for each in rows):
        cells = []
        for each in (each for each in rows if each["gpu"] == gpu):
            theirs = each["published"].get("prefill")
            cells.append(_speed(each) + (f" ({theirs:g})" if theirs else ""))
        lines.append([_title(document, gpu), *cells])
    return lines


def kernels(test: str) -> Callable[[Document], Lines]:
    """A row for every kernel of a pass, the slowest first."""

    def table(document: Document) -> Lines:
        (row,) = (each for each in document["results"] if each["test"] == test and "kernels" in each)
        lines: Lines = [
            ["kernel", "launches", "predicted ms", "share", "MB", "G multiply-adds", "M issue slots", "limit"]
        ]
        found = sorted(row["kernels"].items(), key=lambda item: -item[1]["ms"])
        for name, each in found:
            share = each["ms"] / 1e3 / row["seconds"]
            figures = (each["megabytes"], each["giga_multiply_adds"], each["mega_slots"])
            lines.append(
                [
                    f"`{name}`",
                    str(each["launches"]),
                    f"{each['ms']:,.10g}",
                    f"{100 * share:.1f} %",
                    *(f"{figure:,.10g}" for figure in figures),
                    each["limit"],
                ]
            )
        gaps = sum(each["gaps_ms"] for each in row["kernels"].values())
        lines.append(["between kernels", "", f"{gaps:.3g}", f"{gaps / 10 / row['seconds']:.1f} %", *[""] * 4])
        return lines

    return table


def _title(document: Document, gpu: str) -> str:
    return str(document["gpus"][gpu]["title"])


def _speed(row: Document) -> str:
    return f"{row['tokens_per_second']:g}" if row["fits"] else "does not fit"


def _published(speed: float | None) -> str:
    return f"{speed:g}" if speed else ""


TABLES = {
    "cuda-kernels": Table(PAGE, ("cuda-kernels",), code),
    "cuda-decode": Table(PAGE, ("cuda-predictions",), decode, keys=2),
    "cuda-prefill": Table(PAGE, ("cuda-predictions",), prefill),
    "cuda-decode-kernels": Table(PAGE, ("cuda-predictions",), kernels("decode")),
    "cuda-prefill-kernels": Table(PAGE, ("cuda-predictions",), kernels("prefill")),
}
