"""A profile as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
from typing import Any

from edge.measure.profile.schema import Profile, Row

_LISTS = ("samples", "latency_percentiles", "operators")


def to_csv(profile: Profile) -> str:
    """One line per row; nested fields become `tokens_per_second.median`, and lists are left out."""
    out = io.StringIO()
    lines = [_flat(row) for row in profile.results]
    writer = csv.DictWriter(out, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(row).items():
        if name in _LISTS:
            continue
        if hasattr(value, "__dataclass_fields__"):
            found |= {f"{name}.{inner}": part for inner, part in vars(value).items()}
        else:
            found[name] = value
    return found
