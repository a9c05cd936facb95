"""What a profile, a comparison or a plan says, in paragraphs and tables: for terminal, Markdown and page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge.measure.profile.compare import Comparison, Ratio
from edge.measure.profile.operators import operator_totals
from edge.measure.profile.plan import Plan, PlannedDevice, PlannedSpeed
from edge.measure.profile.schema import MachineFacts, Profile, Row
from edge.system.units import format_bytes

OVER = "*"
"""Stands behind a share above 100 %; below the table it is explained."""
_FASTER = "the machine was faster during the test than at any moment when its limits were measured."
_ABOVE_MEMORY = (
    f"{OVER} More than the read bandwidth: a part of the bytes came from the processor's caches, which are "
    f"faster than memory, or {_FASTER}"
)
_ABOVE_ARITHMETIC = f"{OVER} More than the arithmetic peaks: {_FASTER}"


@dataclass(frozen=True)
class Text:
    """A paragraph, and what it is."""

    text: str
    kind: Literal["title", "note", "good", "warning"] = "note"


@dataclass(frozen=True)
class Table:
    """Headers and rows of texts. Of the columns, from the first: left are aligned left, keys name the row."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    keys: int = 1

    def parts(self, width: int) -> list[Table]:
        """Tables below each other that fit into so many letters, each with the columns that name the row."""
        columns = list(zip(self.headers, *self.rows, strict=True))
        sizes = [max(map(len, column)) + 2 for column in columns]
        room = width + 2 - sum(sizes[: self.keys])
        groups: list[list[int]] = [[]]
        for i in range(self.keys, len(columns)):
            if groups[-1] and sum(sizes[j] for j in groups[-1]) + sizes[i] > room:
                groups.append([])
            groups[-1].append(i)
        found = []
        for group in groups:
            chosen = (*range(self.keys), *group)
            headers, *rows = zip(*(columns[i] for i in chosen), strict=True)
            found.append(Table(headers, tuple(rows), sum(i < self.left for i in chosen), self.keys))
        return found


Report = tuple[Text | Table, ...]


@dataclass(frozen=True)
class _Column:
    """cell: of a row, beside all rows of the table. setting: what the run was asked for; it is said once,
    above the table, if all rows have the same.
    """

    header: str
    cell: Callable[[Row, Sequence[Row]], str]
    setting: bool = False


_COLUMNS = (
    _Column("Test", lambda row, _: str(row.case)),
    _Column("Model", lambda row, _: row.model, True),
    _Column("Executor", lambda row, _: row.executor, True),
    _Column("Weights", lambda row, _: row.quantize, True),
    _Column("KV", lambda row, _: row.kv_type, True),
    _Column("Attention", lambda row, _: row.attention, True),
    _Column("Threads", lambda row, _: str(row.threads), True),
    _Column("Depth", lambda row, _: f"{row.depth}{' synthetic' if is_synthetic(row) else ''}", True),
    _Column("Tokens/s", lambda row, _: _speed(row.tokens_per_second.median)),
    _Column(
        "min - max", lambda row, _: f"{_speed(row.tokens_per_second.min)}-{_speed(row.tokens_per_second.max)}"
    ),
    _Column("p50 ms", lambda row, _: _milliseconds(row.latency_ms(50))),
    _Column("p90 ms", lambda row, _: _milliseconds(row.latency_ms(90))),
    _Column("p99 ms", lambda row, _: _milliseconds(row.latency_ms(99))),
    _Column(
        "TTFT ms", lambda row, _: _milliseconds(None if row.ttft_seconds is None else 1000 * row.ttft_seconds)
    ),
    _Column("Steps", lambda row, rows: _steps(row, rows)),
    _Column("Bandwidth", lambda row, _: share(row.bandwidth_share)),
    _Column("Compute", lambda row, _: share(row.compute_share)),
    _Column("Memory", lambda row, _: format_bytes(row.peak_memory_bytes)),
)
_LEFT = ("Test", "Model", "Executor", "Weights", "KV", "Attention")


def profile_report(profile: Profile) -> Report:
    """The machine, a table of the tests, a table of operators for each row that has them, and remarks."""
    return (
        *(Text(line) for line in machine_lines(profile.machine)),
        *results(profile.results),
        *(part for row in profile.results if row.operators for part in operators(row)),
        *closing(profile),
        *(Text(remark, "warning") for remark in profile.machine.remarks),
    )


def machine_lines(machine: MachineFacts) -> list[str]:
    """The machine, and its limits for every number of threads."""
    lines = [f"{machine.cpu}, {machine.cores} cores, {machine.system}"]
    for limits in machine.limits:
        count = len(limits.samples.read_bandwidth_gb_s)
        lines.append(
            f"Limits, {threads(limits.threads)}{f', best of {count}' if count else ''}: "
            f"read {limits.read_bandwidth_gb_s:.1f} GB/s, int8 {limits.int8_tops:.2f} TOPS, "
            f"float {limits.float_tflops:.2f} TFLOPS"
        )
    return lines


def results(rows: Sequence[Row]) -> Report:
    """What was the same in all tests, and the table of the rest."""
    same, shown = [], []
    for column in _COLUMNS:
        cells = {column.cell(row, rows) for row in rows}
        if column.setting and len(cells) == 1:
            same.append(f"{column.header.lower() if column.header != 'KV' else 'KV'} {cells.pop()}")
        elif any(cells):
            shown.append(column)
    table = Table(
        tuple(column.header for column in shown),
        tuple(tuple(column.cell(row, rows) for column in shown) for row in rows),
        sum(column.header in _LEFT for column in shown),
        sum(column.setting for column in shown) + 1,
    )
    return (Text(", ".join(same)), table) if same else (table,)


def operators(row: Row) -> Report:
    """The operators of a test, all layers of each together."""
    totals = operator_totals(row)
    whole = sum(seconds for seconds, _ in totals.values()) or 1.0
    lines = []
    for name, (seconds, of_limit) in totals.items():
        entries = [entry for entry in row.operators if entry.operation == name]
        kernels = ", ".join(dict.fromkeys(entry.kernel for entry in entries if entry.kernel))
        lines.append(
            (
                *(name, kernels, f"{1000 * seconds:.3f}", f"{seconds / whole:.1%}"),
                format_bytes(sum(entry.bytes for entry in entries)),
                f"{sum(entry.operations for entry in entries):.3g}",
                ", ".join(dict.fromkeys(entry.limit for entry in entries if entry.limit)),
                share(of_limit),
            )
        )
    headers = ("Operator", "Kernel", "ms", "Of the time", "Bytes", "Multiply-adds", "Limit", "Of its limit")
    return Text(title_of(row), "title"), Table(headers, tuple(lines), 2, 1)


def closing(profile: Profile) -> Report:
    """What the figures are; and why some share is above 100 %, if one is."""
    first = profile.results[0]
    sentence = (
        f"Medians of {profile.repeat} repeats; p50, p90, p99: what that share of the single tokens takes at "
        f"most; loaded in {first.load_seconds:.2f} s; {format_bytes(first.memory.weights)} of weights; "
        "Bandwidth, Compute: shares of the limits above."
    )
    more = []
    if any(row.streams > 1 for row in profile.results):
        more.append("Tokens/s are those of all streams together; each gets a token in every pass.")
    if any(row.rows is not None for row in profile.results):
        more.append(
            "Steps: what a verification takes, in passes of one row; its p50, p90, p99 are of whole passes."
        )
    return tuple(Text(each) for each in (*_reasons(profile.results), sentence, *more))


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Why shares are above 100 %, for each limit that one is above."""
    above = {"memory"} if any(is_over(row.bandwidth_share) for row in rows) else set()
    above |= {"arithmetic"} if any(is_over(row.compute_share) for row in rows) else set()
    for row in rows:
        totals = operator_totals(row)
        above |= {entry.limit for entry in row.operators if is_over(totals[entry.operation][1])}
    # An operator of an old document does not say which limit is its nearer one.
    found = [_ABOVE_MEMORY] if above & {"memory", ""} else []
    return found + ([_ABOVE_ARITHMETIC] if above - {"memory"} else [])


def comparison_report(found: Comparison, slower: Sequence[Ratio], remarks: Sequence[str]) -> Report:
    """Ratios with their intervals, and which of them count as slower."""
    lines = []
    for ratio in found.ratios:
        row = ratio.after
        lines.append(
            (
                *(str(row.case), row.executor, row.quantize, str(row.threads), str(row.depth)),
                *(_speed(each.tokens_per_second.median) for each in (ratio.before, row)),
                *(f"{ratio.ratio:.3f}", f"{ratio.low:.3f} - {ratio.high:.3f}"),
                "slower" if ratio in slower else "",
            )
        )
    headers = ("Test", "Executor", "Weights", "Threads", "Depth", "Before", "After", "Ratio", "95 %", "")
    return (
        Table(headers, tuple(lines), 3, 5),
        *(
            Text(f"{len(rows)} tests are in the profile {name} only.")
            for name, rows in (("before", found.only_before), ("after", found.only_after))
            if rows
        ),
        *(Text(remark, "warning") for remark in remarks),
    )


def plan_report(
    model: str, plans: Sequence[Plan], memory: int | None, device: PlannedDevice | None
) -> Report:
    """Memory, and the predicted speed if there is a device."""
    parts: list[Text | Table] = []
    for plan in plans:
        sizes = (
            ("weights", format_bytes(plan.weights_bytes)),
            ("KV cache", format_bytes(plan.kv_cache_bytes)),
            ("workspace (estimate)", format_bytes(plan.workspace_bytes)),
            ("total", format_bytes(plan.total_bytes)),
        )
        parts += [
            Text(f"{model}, {plan.quantize}, context {plan.context}", "title"),
            Table(("Memory", "Size"), sizes),
        ]
        if memory is not None:
            verdict = "fits" if plan.fits else "does not fit"
            sentence = (
                f"It {verdict} into {format_bytes(memory)}; the longest context that does has "
                f"{plan.longest_context} tokens."
            )
            parts.append(Text(sentence, "good" if plan.fits else "warning"))
        if plan.predicted:
            rows = tuple(_predicted_row(each) for each in plan.predicted)
            parts.append(Table(("Predicted", "Tokens/s", "ms", "Limit"), rows))
    if device is not None:
        parts.append(Text(_basis(device)))
    return tuple(parts)


def _predicted_row(speed: PlannedSpeed) -> tuple[str, ...]:
    several = f" in {speed.streams} streams" if speed.streams > 1 else ""
    what, milliseconds = f"decode{several} at depth {speed.depth}", _milliseconds(1000 * speed.seconds)
    if speed.test == "verify":
        what = f"verify {speed.tokens} at depth {speed.depth}"
    if speed.test == "prefill":
        what = f"prefill of {speed.tokens}{f' at depth {speed.depth}' if speed.depth else ''}"
        milliseconds = f"TTFT {milliseconds}"
    return what, _speed(speed.tokens_per_second), milliseconds, speed.limit


def _basis(device: PlannedDevice) -> str:
    """What the predictions stand on."""
    if device.cpu is not None:
        used = ", ".join(
            f"{each.count} x {each.clock_ghz:g} GHz ({each.core.tier})" for each in device.cpu.clusters
        )
        rate = (
            f", of which the cores read {device.cpu.read_share:.0%} ({device.cpu.assumption}); {used}; "
            "cycles by llvm-mca"
        )
    elif device.int8_tops:
        rate = f", {device.int8_tops:g} int8 TOPS"
    else:
        rate = "; its int8 rate is not known"
    return (
        f"Predicted for {device.title}: {device.bandwidth_gb_s:g} GB/s{rate} (source: {device.source}). "
        "Arithmetic only: nothing was run."
    )


def to_markdown(report: Report) -> str:
    """GitHub's Markdown."""
    return "\n\n".join(_markdown(part) for part in report) + "\n"


def _markdown(part: Text | Table) -> str:
    if isinstance(part, Text):
        text = part.text.replace(OVER, f"\\{OVER}")
        return {"title": f"### {text}", "warning": f"> {text}"}.get(part.kind, text)
    rules = ["---" if i < part.left else "---:" for i in range(len(part.headers))]
    lines = (part.headers, rules, *part.rows)
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace(OVER, f"\\{OVER}")


def share(value: float) -> str:
    """`87%`; above 100 % with a mark that is explained."""
    return f"{value:.0%}{OVER if is_over(value) else ''}"


def is_over(value: float) -> bool:
    """Whether a share is above 100 % as it is printed."""
    return round(100 * value) > 100


def is_synthetic(row: Row) -> bool:
    """Whether its cache was filled with repeated rows."""
    return row.fill == "synthetic" and row.depth > 0


def title_of(row: Row) -> str:
    """A test in words: `decode 64 at depth 0, int4-g32, float16 KV, 2 threads`."""
    settings = f"{row.quantize}, {row.kv_type} KV, {threads(row.threads)}"
    return f"{row.case} at depth {row.depth}, {settings}"


def threads(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} thread{'' if count == 1 else 's'}"


def _steps(row: Row, rows: Sequence[Row]) -> str:
    """Seconds of a verification over those of one row in the same configuration; empty for other tests."""
    if row.seconds is None:
        return ""
    one = [each.seconds for each in rows if each.key == replace(row, tokens=1).key]
    return "".join(f"{row.seconds / seconds:.2f}" for seconds in one if seconds)


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 999.5 else f"{value:.1f}"


def _milliseconds(value: float | None) -> str:
    """Three significant digits, and never fewer than stand before the point."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
