"""A profile as one HTML page that needs nothing else: styles and pictures are inside."""

from __future__ import annotations

import html
from string import Template

from edge.measure.profile.plots import plots
from edge.measure.profile.report import (
    OVER,
    Report,
    Table,
    closing,
    machine_lines,
    operators,
    results,
    title_of,
)
from edge.measure.profile.schema import Profile

# The pictures take their colours from the same variables, so they follow the dark mode too.
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark"><title>$title</title><style>
:root{--page:#f8fafc;--card:#fff;--edge:#e2e8f0;--strong:#0f172a;--ink:#334155;--soft:#475569;--axis:#94a3b8;
--grid:#e2e8f0;--faint:#64748b;--warn:#92400e;--warn-card:#fffbeb;--warn-edge:#fcd34d;
--s0:#2563eb;--s1:#d97706;--s2:#059669;--s3:#dc2626;--s4:#7c3aed;--s5:#0891b2;--s6:#be185d;--s7:#4d7c0f}
@media (prefers-color-scheme:dark){:root{--page:#0b1220;--card:#131c2e;--edge:#26334a;--strong:#f1f5f9;
--ink:#cbd5e1;--soft:#a8b5c7;--axis:#64748b;--grid:#26334a;--faint:#94a3b8;
--warn:#fcd34d;--warn-card:#2a2213;--warn-edge:#854d0e;
--s0:#60a5fa;--s1:#fbbf24;--s2:#34d399;--s3:#f87171;--s4:#a78bfa;--s5:#22d3ee;--s6:#f472b6;--s7:#a3e635}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--strong);background:var(--page);margin:0}
main{max-width:1240px;margin:0 auto;padding:1.5rem max(.75rem,min(2vw,1.25rem))}
h1{font-size:1.4rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.05rem;margin:0 0 .2rem}
p{margin:.2rem 0;color:var(--soft)}
.card{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:.9rem;margin:1rem 0 0}
.wide{overflow-x:auto}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:1rem;
margin-top:1rem}.plots .card{margin:0}svg{display:block;width:100%;max-width:560px;height:auto;margin:0 auto}
.warn{background:var(--warn-card);border-color:var(--warn-edge)}.warn p{color:var(--warn)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.86rem}
th,td{text-align:right;padding:.3rem .5rem;border-bottom:1px solid var(--edge);white-space:nowrap}
th{color:var(--faint);font-weight:500}
th.l,td.l{text-align:left}th:first-child,td:first-child{position:sticky;left:0;background:var(--card);padding-left:0}
td.over{color:var(--faint);font-style:italic}summary{cursor:pointer;font-weight:600}
</style></head><body><main>
<h1>$title</h1>$machine<p>$when</p>$warnings<section class="card"><h2>Results</h2>$results</section>
<section class="plots">$plots</section>$operators$notes</main></body></html>
""")


def to_html(profile: Profile) -> str:
    """The page. ProfileError without matplotlib."""
    machine = profile.machine
    models = ", ".join(dict.fromkeys(row.model for row in profile.results))
    cards = [
        f'<figure class="card"><h2>{_text(title)}</h2><p>{_text(text)}</p>{svg}</figure>'
        for title, text, svg in plots(profile)
    ]
    remarks = "".join(f"<p>{_text(remark)}</p>" for remark in machine.remarks)
    return _PAGE.substitute(
        title=_text(f"Profile of {models}"),
        machine="".join(f"<p>{_text(line)}</p>" for line in machine_lines(machine)),
        when=_text(f"{profile.created}, {profile.program}"),
        warnings=f'<section class="card warn">{remarks}</section>' if remarks else "",
        results=_html(results(profile.results)),
        plots="".join(cards),
        operators=_operators(profile),
        notes=_html(closing(profile)),
    )


def _operators(profile: Profile) -> str:
    sections = [
        f'<details class="card"><summary>Operators: {_text(title_of(row))}</summary>'
        f"{_html(operators(row)[1:])}</details>"
        for row in profile.results
        if row.operators
    ]
    return "".join(sections)


def _html(report: Report) -> str:
    return "".join(
        _table(part) if isinstance(part, Table) else f"<p>{_text(part.text)}</p>" for part in report
    )


def _table(table: Table) -> str:
    lines = [_line(table.headers, "th", table.left), *(_line(row, "td", table.left) for row in table.rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _line(cells: tuple[str, ...], tag: str, left: int) -> str:
    parts = [f"<{tag}{_class(i < left, cell)}>{_text(cell)}</{tag}>" for i, cell in enumerate(cells)]
    return f"<tr>{''.join(parts)}</tr>"


def _class(left: bool, cell: str) -> str:
    return " class=l" if left else " class=over" if cell.endswith(OVER) else ""


def _text(text: str) -> str:
    return html.escape(text)
