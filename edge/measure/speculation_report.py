"""What `edge profile --speculate` says, in paragraphs and a table."""

from __future__ import annotations

from statistics import median

from edge.measure.profile.report import Report, Table, Text
from edge.measure.speculation import SpeculationProfile, SpeculationRow

_HEADERS = (
    "Prompt",
    "Tokens",
    "Plain tokens/s",
    "Tokens/s",
    "Speed-up",
    "Tokens a pass",
    "Right",
    "Drafting",
)


def speculation_report(found: SpeculationProfile) -> Report:
    """How it was measured, a row for each prompt, and whether the answers were the same."""
    rows = tuple(_cells(row) for row in found.rows)
    told = [row.speedup for row in found.rows if row.speedup]
    threads = "thread" if found.threads == 1 else "threads"
    how = f"{found.executor} ({found.tier}), {found.threads} {threads}"
    title = Text(f"{found.model}: {how}, guesses by {found.speculate}")
    parts: list[Text | Table] = [title, Table(_HEADERS, rows)]
    if told:
        parts.append(Text(f"Speed-up: {median(told):.2f} in the median, {min(told):.2f} at least."))
    differ = [row.prompt for row in found.rows if not row.same]
    if differ:
        parts.append(Text(f"Other answers with guesses than without: {', '.join(differ)}.", "warning"))
    else:
        parts.append(Text("With and without guesses the answers are the same, token by token."))
    return tuple(parts)


def _cells(row: SpeculationRow) -> tuple[str, ...]:
    found = row.speculation
    return (
        row.prompt,
        str(row.tokens),
        f"{row.plain_tokens_per_second:.1f}",
        f"{row.tokens_per_second:.1f}",
        f"{row.speedup:.2f}",
        f"{found.mean_accepted_length:.2f}",
        f"{found.accepted} of {found.drafted}",
        f"{found.draft_share:.1%}",
    )
