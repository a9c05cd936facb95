"""Sizes and counts for people: kB, MB and GB are powers of 1000, wherever the program says them."""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """A size: 141 kB, 4.40 GB."""
    return _scaled(count, (" B", " kB", " MB", " GB"))


def format_count(count: float) -> str:
    """A number of parameters: 35.1K, 135M, 8.19B."""
    return _scaled(count, ("", "K", "M", "B"))


def _scaled(count: float, units: tuple[str, ...]) -> str:
    """Three significant digits, and never fewer than stand before the point."""
    size, power = float(count), 0
    while size >= 999.5 and power < len(units) - 1:
        size, power = size / 1000, power + 1
    digits = 0 if power == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f}{units[power]}"
