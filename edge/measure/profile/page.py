"""A profile as one HTML page that needs nothing else: styles and pictures are inside."""

from __future__ import annotations

import html
from string import Template

from edge.measure.profile.operators import operator_totals
from edge.measure.profile.plots import plots, threads
from edge.measure.profile.schema import Profile, Row

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>
body{font:15px/1.5 system-ui,sans-serif;color:#0f172a;background:#f8fafc;margin:0}
main{max-width:1240px;margin:0 auto;padding:2rem 1.25rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:0 0 .2rem}
p{margin:.2rem 0;color:#475569}
.card{background:#fff;border:1px solid #e2e8f0;border-radius:10px;padding:1rem
1.1rem;margin-top:1rem;overflow-x:auto}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:1rem} .plots
.card{margin-top:0}.plots{margin-top:1rem}svg{width:100%;height:auto}
.warn{background:#fffbeb;border-color:#fcd34d}.warn p{color:#92400e}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.86rem}
th{text-align:right;color:#64748b;font-weight:500;padding:.3rem .5rem;border-bottom:1px solid #e2e8f0}
td{text-align:right;padding:.3rem .5rem;border-bottom:1px solid #f1f5f9;white-space:nowrap}
th.l,td.l{text-align:left}summary{cursor:pointer;font-weight:600} </style></head><body><main>
<h1>$title</h1><p>$machine</p><p>$when</p> $warnings <section class="card"><h2>Results</h2>$table</section>
<section class="plots">$plots</section> $operators </main></body></html>
""")


def to_html(profile: Profile) -> str:
    """The page. ProfileError without matplotlib."""
    machine = profile.machine
    models = ", ".join(dict.fromkeys(row.model for row in profile.results))
    facts = [
        machine.cpu,
        f"{machine.cores} cores",
        machine.system,
        f"read bandwidth {machine.read_bandwidth_gb_s:.1f} GB/s",
        f"int8 {machine.int8_tops:.2f} TOPS",
        f"float {machine.float_tflops:.2f} TFLOPS",
    ]
    cards = [
        f'<figure class="card" style="margin:0"><h2>{_text(title)}</h2><p>{_text(text)}</p>{svg}</figure>'
        for title, text, svg in plots(profile)
    ]
    remarks = "".join(f"<p>{_text(remark)}</p>" for remark in machine.remarks)
    return _PAGE.substitute(
        title=_text(f"Profile of {models}"),
        machine=_text(" · ".join(facts)),
        when=_text(f"{profile.created}, {profile.program}, medians of {profile.repeat} repeats"),
        warnings=f'<section class="card warn">{remarks}</section>' if remarks else "",
        table=_results(profile),
        plots="".join(cards),
        operators=_operators(profile),
    )


def _results(profile: Profile) -> str:
    head = (
        *("quantize", "executor", "KV", "test"),
        *(
            "threads",
            "tokens",
            "depth",
            "tokens/s",
            "min - max",
            "p99",
            "TTFT",
            "bandwidth",
            "compute",
            "memory",
        ),
    )
    lines = [_line(head, "th")]
    for row in profile.results:
        speed = row.tokens_per_second
        cells = (
            row.weights,
            row.executor,
            row.kv_type,
            row.test + (" (synthetic)" if row.fill == "synthetic" and row.depth else ""),
            str(row.threads),
            str(row.tokens),
            str(row.depth),
            f"{speed.median:.1f}",
            f"{speed.min:.1f} - {speed.max:.1f}",
            f"{speed.p99:.1f}",
            "" if row.ttft_seconds is None else f"{row.ttft_seconds:.3f} s",
            f"{row.bandwidth_share:.0%}",
            f"{row.compute_share:.0%}",
            f"{row.peak_memory_bytes / 1e6:.0f} MB",
        )
        lines.append(_line(cells, "td"))
    return f"<table>{''.join(lines)}</table>"


def _operators(profile: Profile) -> str:
    sections = [
        f'<details class="card"><summary>Operators: {_text(_name(row))}</summary>'
        f"{_operator_table(row)}</details>"
        for row in profile.results
        if row.operators
    ]
    return "".join(sections)


def _operator_table(row: Row) -> str:
    totals = operator_totals(row)
    whole = sum(seconds for seconds, _ in totals.values()) or 1.0
    lines = [_line(("operator", "ms", "share of the time", "share of its limit"), "th", left=1)]
    lines += [
        _line((name, f"{1000 * seconds:.3f}", f"{seconds / whole:.1%}", f"{share:.0%}"), "td", left=1)
        for name, (seconds, share) in totals.items()
    ]
    return f"<table>{''.join(lines)}</table>"


def _name(row: Row) -> str:
    tokens = f"prefill of {row.tokens}" if row.test == "prefill" else "decode"
    return f"{tokens} at depth {row.depth}, {row.quantize}, {row.kv_type} KV, {threads(row.threads)}"


def _line(cells: tuple[str, ...], tag: str, left: int = 4) -> str:
    parts = [f"<{tag}{' class=l' if i < left else ''}>{_text(cell)}</{tag}>" for i, cell in enumerate(cells)]
    return f"<tr>{''.join(parts)}</tr>"


def _text(text: str) -> str:
    return html.escape(text)
