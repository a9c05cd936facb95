"""The pictures of a profile, as SVG; needs matplotlib (the extra `profile`)."""

from __future__ import annotations

import io
from collections import defaultdict
from importlib.util import find_spec
from typing import Any

from edge.measure.profile.operators import operator_totals
from edge.measure.profile.schema import Profile, ProfileError, Row

_WIDTH, _HEIGHT = 6.0, 3.7
_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_STYLE: Any = {
    "axes.edgecolor": "#94a3b8",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": "#334155",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
    "font.size": 10,
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, and it can be searched
    "svg.hashsalt": "edge",  # the same profile gives the same page
    "text.color": "#334155",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
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


def threads(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} thread{'' if count == 1 else 's'}"


def label(row: Row, rows: tuple[Row, ...]) -> str:
    """What tells a row from the others of its kind, in few words."""
    parts = [row.quantize]
    if len({other.threads for other in rows}) > 1:
        parts.append(threads(row.threads))
    for name in ("executor", "attention", "kv_type", "group"):
        if len({getattr(other, name) for other in rows}) > 1:
            parts.append(f"group {row.group}" if name == "group" else str(getattr(row, name)))
    return ", ".join(parts)


_ROOFLINE = (
    "Lines: what the machine can do at most, measured in this run. Points: what the tests reached. "
    "Left of the bend memory is the limit, right of it arithmetic."
)
_CONTEXT = "Median decode speed by the tokens in the KV cache; bars from the slowest to the fastest repeat."
_LATENCY = "Share of the single tokens that took at most so long. A steep line is an even answer."
_OPERATORS = (
    "Time of one decode step (or prefill) by operator, all layers together; the label is the share of its "
    "nearer limit."
)


def _roofline(profile: Profile, figure: Any) -> bool:
    axes = figure.subplots()
    points = [
        (row, row.operations_per_token / (row.weight_bytes_per_token + row.kv_bytes_per_token))
        for row in profile.results
    ]
    left = min(point for _, point in points) / 3
    for index, limits in enumerate(profile.machine.limits):
        bandwidth, peak = limits.read_bandwidth_gb_s, limits.int8_tops * 500  # G multiply-adds/s
        right = 3 * max(*(point for _, point in points), peak / bandwidth)
        bend = peak / bandwidth
        style = ("-", "--", ":", "-.")[index % 4]
        axes.plot(
            [left, bend, right],
            [left * bandwidth, peak, peak],
            style,
            color="#64748b",
            label=f"limits, {threads(limits.threads)}",
        )
    for colour, (name, rows) in zip(_cycle(len(points)), _by_label(profile.results).items(), strict=False):
        for test, marker in (("decode", "o"), ("prefill", "s")):
            chosen = [(row, x) for row, x in points if row in rows and row.test == test]
            if chosen:
                axes.scatter(
                    [x for _, x in chosen],
                    [row.tokens_per_second.median * row.operations_per_token / 1e9 for row, _ in chosen],
                    marker=marker,
                    color=colour,
                    zorder=3,
                    label=f"{test}, {name}",
                )
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds per byte", ylabel="G multiply-adds/s")
    for axis in (axes.xaxis, axes.yaxis):  # 100, not 10 to the power of 2
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.legend(fontsize=8.5)
    return True


def _context(profile: Profile, figure: Any) -> bool:
    decodes = tuple(row for row in profile.results if row.test == "decode")
    if len({row.depth for row in decodes}) < 2:
        return False
    axes = figure.subplots()
    for colour, (name, rows) in zip(_cycle(len(decodes)), _by_label(decodes).items(), strict=False):
        rows = sorted(rows, key=lambda row: row.depth)
        speeds = [row.tokens_per_second for row in rows]
        axes.errorbar(
            [row.depth for row in rows],
            [speed.median for speed in speeds],
            yerr=[[s.median - s.min for s in speeds], [s.max - s.median for s in speeds]],
            marker="o",
            capsize=3,
            color=colour,
            label=name,
        )
    axes.set(xlabel="tokens in the KV cache", ylabel="tokens/s", ylim=(0, None))
    axes.set_xscale("symlog", base=2, linthresh=256)
    ticks = sorted({row.depth for row in decodes})
    axes.set_xticks(ticks, [f"{tick // 1024}K" if tick and tick % 1024 == 0 else str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(min(ticks) / 1.4 if min(ticks) else -64, 1.4 * max(ticks))
    axes.legend()
    return True


def _latency(profile: Profile, figure: Any) -> bool:
    rows = tuple(row for row in profile.results if row.latency_percentiles)
    if not rows:
        return False
    axes = figure.subplots()
    several = len({row.depth for row in rows}) > 1
    for colour, row in zip(_cycle(len(rows)), rows, strict=False):
        depth = f", depth {row.depth}" if several else ""
        axes.plot(
            [1000 * value for value in row.latency_percentiles],
            range(101),
            color=colour,
            label=label(row, rows) + depth,
        )
    axes.set(xlabel="ms per token", ylabel="% of tokens", ylim=(0, 101), xlim=(0, None))
    axes.legend(fontsize=8.5)
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
    axes.bar_label(bars, [f" {totals[name][1]:.0%}" for name in names], fontsize=9)
    axes.set(xlabel=f"ms ({row.test} at depth {row.depth}, {label(row, tuple(rows))})")
    axes.grid(False, axis="y")
    return True


def _by_label(rows: tuple[Row, ...]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[label(row, rows)].append(row)
    return found


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
