"""How profiles, comparisons and plans look in a terminal, and a comparison in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.measure.profile.report import Report, Text

if TYPE_CHECKING:
    from rich.console import Console

    from edge.measure.profile.compare import Comparison, Ratio

_STYLES = {"title": "bold", "note": "dim", "good": "green", "warning": "yellow"}


def print_report(report: Report, console: Console) -> None:
    """Paragraphs and borderless tables."""
    from rich.table import Table

    for part in report:
        if isinstance(part, Text):
            console.print(part.text, style=_STYLES[part.kind], soft_wrap=True)
            continue
        for piece in part.parts(console.width):
            table = Table(box=None, pad_edge=False, header_style="dim")
            for i, header in enumerate(piece.headers):
                table.add_column(header, justify="left" if i < piece.left else "right", no_wrap=True)
            for row in piece.rows:
                table.add_row(*row)
            console.print(table)
            console.print()


def comparison_json(found: Comparison, slower: Sequence[Ratio]) -> dict[str, Any]:
    """A stable description in plain JSON values."""
    names = ("model", "executor", "quantize", "threads", "attention", "kv_type", "fill")
    return {
        "schema": 2,
        "ratios": [
            {
                **{
                    name: getattr(ratio.after, name)
                    for name in (*names, "test", "tokens", "depth", "streams")
                },
                "before": ratio.before.tokens_per_second.median,
                "after": ratio.after.tokens_per_second.median,
                "ratio": ratio.ratio,
                "low": ratio.low,
                "high": ratio.high,
                "slower": ratio in slower,
            }
            for ratio in found.ratios
        ],
        "only_before": len(found.only_before),
        "only_after": len(found.only_after),
    }
