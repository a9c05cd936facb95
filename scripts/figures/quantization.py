"""The tables of docs/quantization.md."""

from __future__ import annotations

from collections.abc import Callable

from .declaration import Document, Lines, Table, percent

PAGE = "docs/quantization.md"


def quantizers(digits: int) -> Callable[[Document], Lines]:
    """A table by method and group; digits: of the divergence from the source."""

    def table(document: Document) -> Lines:
        lines: Lines = []
        for name, row in document["rows"].items():
            is_source = name == "source"
            method, _, group = name.partition(" g")
            lines.append(
                [
                    name if is_source else f"{method}, group {group}",
                    f"{row['perplexity']:.3f}",
                    "" if is_source else percent(row["above_source"], digits - 2),
                    "0" if is_source else f"{row['kl_divergence']:.{digits}f}",
                    percent(row["top1_agreement"], 1),
                    f"{row['weights_megabytes']:.3g}",
                    "" if is_source else f"{row['processor_seconds']:.3g}",
                    "" if is_source else str(row["peak_megabytes"]),
                ]
            )
        headers = ["perplexity", "above source", "KL", "same top token", "MB"]
        return [["", *headers, "processor seconds", "peak memory, MB"], *lines]

    return table


TABLES = {
    "quantization-smollm2": Table(PAGE, ("quantization-smollm2",), quantizers(3)),
    "quantization-small-model": Table(PAGE, ("quantization-small-model",), quantizers(4)),
}
