"""How profiles, comparisons and plans look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.apps.cli.terminal import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edge.measure.profile.compare import Comparison, Ratio
    from edge.measure.profile.plan import Plan, PlannedDevice
    from edge.measure.profile.schema import Profile, Row


def print_profile(profile: Profile, console: Console) -> None:
    """The machine, a table of the tests, and a table of operators for each row that has them."""
    machine = profile.machine
    console.print(f"{machine.cpu}, {machine.cores} cores, {machine.system}", style="dim", soft_wrap=True)
    for limits in machine.limits:
        console.print(
            f"Limits, {_threads(limits.threads)}: read {limits.read_bandwidth_gb_s:.1f} GB/s, int8 "
            f"{limits.int8_tops:.2f} TOPS, float {limits.float_tflops:.2f} TFLOPS",
            style="dim",
        )
    table = _table(
        *("Test", "Weights", "KV", "Threads>", "Depth>", "Tokens/s>", "min - max>", "p99>", "First token>"),
        *("Bandwidth>", "Compute>", "Memory>"),
    )
    for row in profile.results:
        speed = row.tokens_per_second
        table.add_row(
            f"{_test_name(row)}{' sparse' if row.attention == 'sparse' else ''}",
            row.weights,
            row.kv_type,
            str(row.threads),
            f"{row.depth}{' synthetic' if row.fill == 'synthetic' and row.depth else ''}",
            f"{speed.median:.1f}",
            f"{speed.min:.1f} - {speed.max:.1f}",
            f"{speed.p99:.1f}",
            "" if row.ttft_seconds is None else f"{row.ttft_seconds:.3f} s",
            f"{row.bandwidth_share:.0%}",
            f"{row.compute_share:.0%}",
            format_bytes(row.peak_memory_bytes),
        )
    console.print(table)
    for row in profile.results:
        if row.operators:
            _print_operators(row, console)
    first = profile.results[0]
    console.print(
        f"Medians of {profile.repeat} repeats; loaded in {first.load_seconds:.2f} s; "
        f"{format_bytes(first.memory.weights)} of weights; shares are of the limits above.",
        style="dim",
        soft_wrap=True,
    )
    for remark in machine.remarks:
        console.print(remark, style="yellow", soft_wrap=True)


def _print_operators(row: Row, console: Console) -> None:
    from edge.measure.profile.operators import operator_totals

    console.print(f"\n{row.test} {row.tokens} at depth {row.depth}, {_threads(row.threads)}", style="bold")
    totals = operator_totals(row)
    whole = sum(seconds for seconds, _ in totals.values()) or 1.0
    table = _table("Operator", "Kernel", "ms>", "Of the time>", "Bytes>", "Multiply-adds>", "Of its limit>")
    for name, (seconds, share) in totals.items():
        entries = [entry for entry in row.operators if entry.operation == name]
        table.add_row(
            name,
            ", ".join(dict.fromkeys(entry.kernel for entry in entries if entry.kernel)),
            f"{1000 * seconds:.3f}",
            f"{seconds / whole:.1%}",
            format_bytes(sum(entry.bytes for entry in entries)),
            f"{sum(entry.operations for entry in entries):.3g}",
            f"{share:.0%}",
        )
    console.print(table)


def _test_name(row: Row) -> str:
    return f"{row.test} {row.tokens}{'' if row.executor == 'native' else f' {row.executor}'}"


def print_comparison(
    found: Comparison, slower: Sequence[Ratio], remarks: Sequence[str], console: Console
) -> None:
    """Ratios with their intervals, and which of them count as slower."""
    table = _table("Test", "Weights", "Threads>", "Depth>", "Before>", "After>", "Ratio>", "95 %>", "")
    for ratio in found.ratios:
        row = ratio.after
        table.add_row(
            _test_name(row),
            row.weights,
            str(row.threads),
            str(row.depth),
            f"{ratio.before.tokens_per_second.median:.1f}",
            f"{row.tokens_per_second.median:.1f}",
            f"{ratio.ratio:.3f}",
            f"{ratio.low:.3f} - {ratio.high:.3f}",
            "slower" if ratio in slower else "",
        )
    console.print(table)
    for name, rows in (("before", found.only_before), ("after", found.only_after)):
        if rows:
            console.print(f"{len(rows)} tests are in the profile {name} only.", style="dim")
    for remark in remarks:
        console.print(remark, style="yellow", soft_wrap=True)


def comparison_json(found: Comparison, slower: Sequence[Ratio]) -> dict[str, Any]:
    """A stable description in plain JSON values."""
    names = ("model", "executor", "quantize", "group", "threads", "attention", "kv_type", "fill")
    return {
        "schema": 1,
        "ratios": [
            {
                **{name: getattr(ratio.after, name) for name in (*names, "test", "tokens", "depth")},
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


def print_plans(
    model: str, plans: Sequence[Plan], memory: int | None, device: PlannedDevice | None, console: Console
) -> None:
    """Memory, and the predicted speed if there is a device."""
    for plan in plans:
        group = f" in groups of {plan.group}" if plan.group else ""
        console.print(f"{model}, {plan.quantize}{group}, context {plan.context}", style="bold")
        table = _table("", "Size>", "")
        table.add_row("weights", format_bytes(plan.weights_bytes), "")
        table.add_row("KV cache", format_bytes(plan.kv_cache_bytes), f"at {plan.context} tokens")
        table.add_row("workspace", format_bytes(plan.workspace_bytes), "estimate")
        table.add_row("total", format_bytes(plan.total_bytes), "", style="bold")
        console.print(table)
        if memory is not None:
            verdict = "fits" if plan.fits else "does not fit"
            console.print(
                f"It {verdict} into {format_bytes(memory)}; the longest context that does has "
                f"{plan.longest_context} tokens.",
                style="green" if plan.fits else "red",
                soft_wrap=True,
            )
        for depth, speed in (plan.decode_tokens_per_second or {}).items():
            console.print(f"decode at depth {depth}: about {speed:.4g} tokens/s")
        if plan.ttft_seconds is not None:
            console.print(
                f"prefill of {plan.context} tokens: about {plan.prefill_tokens_per_second:.4g} tokens/s, "
                f"{plan.ttft_seconds:.3g} s to the first token"
            )
        console.print()
    if device is not None:
        rate = f", {device.int8_tops:g} int8 TOPS" if device.int8_tops else "; its int8 rate is not known"
        console.print(
            f"Predicted for {device.title}: {device.bandwidth_gb_s:g} GB/s{rate} (source: {device.source}). "
            "Arithmetic only: nothing was run.",
            style="dim",
            soft_wrap=True,
        )


def _table(*headers: str) -> Table:
    """A borderless table; a header that ends in > is a right-aligned column."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", show_header=any(headers))
    for header in headers:
        table.add_column(
            header.rstrip(">"), justify="right" if header.endswith(">") else "left", no_wrap=True
        )
    return table


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"
