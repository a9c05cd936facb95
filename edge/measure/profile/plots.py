"""The pictures of a profile, as SVG; needs matplotlib (the extra `profile`)."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import cycle
from typing import Any

from edge.measure.profile.operators import operator_totals
from edge.measure.profile.report import share, threads
from edge.measure.profile.schema import Profile, ProfileError, Row

_WIDTH, _HEIGHT = 4.8, 3.9  # inches: at the width of a phone the letters keep their size
_MOST_ENTRIES = 10  # of a legend
_ENTRY = 0.21  # inches of height
_MARKERS = {"decode": "o", "prefill": "s", "verify": "^"}
_DASHES = ("-", "--", ":", "-.")
_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_AXIS, _INK, _GRID, _SOFT = "#94a3b8", "#334155", "#e2e8f0", "#475569"
_VARIABLES = {
    **{colour: f"s{i}" for i, colour in enumerate(_COLOURS)},
    **{_AXIS: "axis", _INK: "ink", _GRID: "grid", _SOFT: "soft"},
}
_STYLE: Any = {
    "axes.edgecolor": _AXIS,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
    "font.size": 10.5,
    "grid.color": _GRID,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, and it can be searched
    "svg.hashsalt": "edge",  # the same profile gives the same page
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
}


def plots(profile: Profile) -> list[tuple[str, str, str]]:
    """(title, explanation, SVG) of every picture that the profile has data for. ProfileError without
    matplotlib.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    found = []
    for title, text, draw in (
        ("Roofline", _ROOFLINE, _roofline),
        ("Decode speed against context", _CONTEXT, _context),
        ("Latency of single tokens", _LATENCY, _latency),
        ("Operators", _OPERATORS, _operators),
    ):
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
            if draw(profile, figure):
                found.append((title, text, _svg(figure)))
    return found


def require_matplotlib() -> None:
    """Raise ProfileError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise ProfileError(
            "Plots need matplotlib: `pip install 'minicpm-edge[profile]'`, or leave --html out."
        )


def label(row: Row, rows: Sequence[Row]) -> str:
    """What tells a row's configuration from the others, in few words."""
    parts = [row.quantize]
    if len({other.threads for other in rows}) > 1:
        parts.append(threads(row.threads))
    if len({other.streams for other in rows}) > 1:
        parts.append(f"{row.streams} stream{'' if row.streams == 1 else 's'}")
    for name in ("executor", "attention", "kv_type"):
        if len({getattr(other, name) for other in rows}) > 1:
            parts.append(str(getattr(row, name)))
    return ", ".join(parts)


_ROOFLINE = (
    "Lines: what the machine can do at most, measured in this run. Points: what the tests reached. "
    "Left of the bend memory is the limit, right of it arithmetic. A point above the line was helped by the "
    "processor's caches, or by a machine that was faster than at any moment when its limits were measured."
)
_CONTEXT = "Median decode speed by the tokens in the KV cache; bars from the slowest to the fastest repeat."
_LATENCY = "Share of the single tokens that took at most so long. A steep line is an even answer."
_OPERATORS = (
    "Time of one decode step (or prefill) by operator, all layers together; the label is the share of its "
    "nearer limit, and what a * means stands at the end of the page."
)


def _roofline(profile: Profile, figure: Any) -> bool:
    axes = figure.subplots()
    rows = profile.results
    points = [
        row.operations_per_token / (row.weight_bytes_per_token + row.kv_bytes_per_token) for row in rows
    ]
    left = min(points) / 3
    entries = []
    for index, limits in enumerate(profile.machine.limits):
        bandwidth, peak = limits.read_bandwidth_gb_s, limits.int8_tops * 500  # G multiply-adds/s
        bend = peak / bandwidth
        right = 3 * max(*points, bend)
        (line,) = axes.plot(
            [left, bend, right],
            [left * bandwidth, peak, peak],
            _DASHES[index % len(_DASHES)],
            color=_SOFT,
        )
        entries.append((line, f"limits, {threads(limits.threads)}"))
    colours = dict(zip(_by_label(rows), _colours(), strict=False))
    for row, x in zip(rows, points, strict=True):
        speed = row.tokens_per_second.median * row.operations_per_token / 1e9
        axes.scatter(x, speed, marker=_MARKERS[row.test], color=colours[label(row, rows)], zorder=3)
    tests = [test for test in _MARKERS if any(row.test == test for row in rows)]
    entries += [(_line(_SOFT, marker=_MARKERS[test]), test) for test in tests]
    entries += [(_line(colour), name) for name, colour in colours.items()]
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds per byte", ylabel="G multiply-adds/s")
    for axis in (axes.xaxis, axes.yaxis):  # 100, not 10 to the power of 2
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    _legend(figure, entries)
    return True


def _context(profile: Profile, figure: Any) -> bool:
    decodes = tuple(row for row in profile.results if row.test == "decode")
    if len({row.depth for row in decodes}) < 2:
        return False
    axes = figure.subplots()
    entries = []
    for colour, (name, group) in zip(_colours(), _by_label(decodes).items(), strict=False):
        rows = sorted(group, key=lambda row: row.depth)
        speeds = [row.tokens_per_second for row in rows]
        bars = axes.errorbar(
            [row.depth for row in rows],
            [speed.median for speed in speeds],
            yerr=[[s.median - s.min for s in speeds], [s.max - s.median for s in speeds]],
            marker="o",
            capsize=3,
            color=colour,
        )
        entries.append((bars, name))
    axes.set(xlabel="tokens in the KV cache", ylabel="tokens/s", ylim=(0, None))
    axes.set_xscale("symlog", base=2, linthresh=256)
    ticks = sorted({row.depth for row in decodes})
    axes.set_xticks(ticks, [f"{tick // 1024}K" if tick and tick % 1024 == 0 else str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(min(ticks) / 1.4 if min(ticks) else -64, 1.4 * max(ticks))
    _legend(figure, entries)
    return True


def _latency(profile: Profile, figure: Any) -> bool:
    rows = tuple(row for row in profile.results if row.test == "decode" and row.latency_percentiles)
    if not rows:
        return False
    axes = figure.subplots()
    depths = sorted({row.depth for row in rows})
    entries = []
    for colour, (name, group) in zip(_colours(), _by_label(rows).items(), strict=False):
        for row in group:
            axes.plot(
                [1000 * value for value in row.latency_percentiles],
                range(101),
                _DASHES[depths.index(row.depth) % len(_DASHES)],
                color=colour,
            )
        entries.append((_line(colour), name))
    if len(depths) > 1:
        styles = [_DASHES[i % len(_DASHES)] for i in range(len(depths))]
        entries += [
            (_line(_SOFT, style), f"depth {depth}") for style, depth in zip(styles, depths, strict=True)
        ]
    axes.set(xlabel="ms per token", ylabel="% of tokens", ylim=(0, 101), xlim=(0, None))
    _legend(figure, entries)
    return True


def _operators(profile: Profile, figure: Any) -> bool:
    rows = [row for row in profile.results if row.operators]
    if not rows:
        return False
    row = next((row for row in rows if row.test == "decode"), rows[0])
    totals = operator_totals(row)
    names = list(totals)[::-1]
    axes = figure.subplots()
    bars = axes.barh(names, [1000 * totals[name][0] for name in names], color=_COLOURS[0])
    axes.bar_label(bars, [f" {share(totals[name][1])}" for name in names], fontsize=9)
    axes.margins(x=0.15)
    axes.set(xlabel=f"ms ({row.test} at depth {row.depth}, {label(row, rows)})")
    axes.grid(False, axis="y")
    return True


def _by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[label(row, rows)].append(row)
    return found


def _colours() -> Iterator[str]:
    return cycle(_COLOURS)


def _line(colour: str, style: Any = "-", marker: str = "") -> Any:
    """What stands for a kind of lines or points in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle="" if marker else style, marker=marker)


def _legend(figure: Any, entries: list[tuple[Any, str]]) -> None:
    """Below the picture, where it hides nothing; what is too much for it is counted."""
    shown = entries
    if len(entries) > _MOST_ENTRIES:
        shown = entries[: _MOST_ENTRIES - 1]
        shown.append((_line("none"), f"and {len(entries) - len(shown)} more, see the table"))
    columns = 2 if max(len(name) for _, name in shown) < 20 else 1
    handles, names = zip(*shown, strict=True)
    figure.legend(handles, names, loc="outside lower left", ncols=columns, fontsize=10)
    figure.set_figheight(_HEIGHT + _ENTRY * max(0, len(shown) / columns - 2))  # the picture keeps its room


def _svg(figure: Any) -> str:
    """The picture for a page, with the colours of the page's variables where it has them."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name},{colour})")
    return text
