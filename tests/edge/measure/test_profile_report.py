"""What is read of a profile: latencies, shares above 100 %, Markdown, and the plots of many series."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from xml.etree import ElementTree

import pytest

from edge.measure.profile.compare import compare
from edge.measure.profile.plan import PlannedDevice, plan
from edge.measure.profile.report import (
    Table,
    Text,
    _speed,
    closing,
    comparison_report,
    plan_report,
    profile_report,
    results,
    to_markdown,
)
from edge.measure.profile.schema import (
    SCHEMA,
    Limits,
    LimitSamples,
    MachineFacts,
    Memory,
    Operator,
    Profile,
    Rate,
    Row,
)

# 1 to 101 ms: the p-th percentile of a token is 1 + p ms.
DECODE = Row(
    *("m", "native", "int4-g32", 2, "dense", "float16", "int8", "avx2", "prefill", "decode", 64, 0),
    *(1, None, None, None),
    *(
        Rate(20.0, 19.5, 20.25, 19.6, 11.0, 10.0),
        (20.0, 19.5, 20.25),
        tuple(0.001 * (1 + p) for p in range(101)),
    ),
    *(1e8, 1e4, 2e8, 0.5, 0.1, 0.5, 200_000_000, Memory(100_000_000, 1_000_000, 5_000_000), None, ()),
)
PREFILL = replace(
    DECODE,
    test="prefill",
    tokens=512,
    ttft_seconds=0.41234,
    latency_percentiles=(),
    tokens_per_second=replace(DECODE.tokens_per_second, median=1241.7, min=1000.4, max=1300.0),
    bandwidth_share=0.02,
    compute_share=1.04,
)
LIMITS = Limits(2, 20.0, 1.5, 0.4, LimitSamples((20.0, 19.0), (1.5, 1.5), (0.3, 0.4)))
MACHINE = MachineFacts(
    *("Linux", "a CPU", 2, 1 << 34, "madvise", 20.0, 1.5, 0.4, (LIMITS,)),
    *(0.1, 0.0, (), (), False, False, ("Noisy: a neighbour.",)),
)


def profile_of(*rows: Row) -> Profile:
    return Profile(SCHEMA, "minicpm-edge 0", "2026-01-01T00:00:00+00:00", 3, MACHINE, rows)


def test_the_table_has_latencies_in_milliseconds():
    same, table = results((PREFILL, DECODE))
    assert same == Text(
        "model m, executor native, weights int4-g32, KV float16, attention dense, threads 2, depth 0"
    )
    lines = [dict(zip(table.headers, cells, strict=True)) for cells in table.rows]
    assert [lines[1][name] for name in ("p50 ms", "p90 ms", "p99 ms", "TTFT ms")] == [
        "51.0",
        "91.0",
        "100",
        "",
    ]
    assert [lines[0][name] for name in ("p50 ms", "p90 ms", "p99 ms", "TTFT ms")] == ["", "", "", "412"]
    assert (
        lines[0]["Tokens/s"] == "1242"
        and lines[0]["min - max"] == "1000-1300"
        and lines[1]["Tokens/s"] == "20.0"
    )
    assert lines[0]["Memory"] == "200 MB"


def test_streams_and_verifications_have_rows_of_their_own():
    """Steps are held against the one row of the same configuration and depth; nothing without it."""
    verify = replace(DECODE, test="verify", latency_percentiles=())
    rows = [replace(DECODE, streams=8)]
    for tokens, depth, seconds in ((1, 0, 0.02), (4, 0, 0.025), (1, 512, 0.04), (4, 512, 0.06)):
        rows.append(replace(verify, tokens=tokens, rows=tokens, depth=depth, seconds=seconds))
    rows.append(replace(rows[-1], threads=1))
    _, table = results(rows)
    lines = [dict(zip(table.headers, cells, strict=True)) for cells in table.rows]
    assert [line["Test"] for line in lines[:3]] == ["decode 64 in 8 streams", "verify 1", "verify 4"]
    assert [line["Steps"] for line in lines] == ["", "1.00", "1.25", "1.00", "1.50", ""]
    assert "Steps" not in results((DECODE, PREFILL))[1].headers
    ends = {part.text for part in closing(profile_of(*rows))} - {
        part.text for part in closing(profile_of(DECODE))
    }
    assert {text.partition(" ")[0] for text in ends} == {"Tokens/s", "Steps:"}


def test_a_setting_that_differs_has_a_column():
    _, table = results((DECODE, replace(DECODE, depth=512, fill="synthetic", quantize="int8-g32")))
    assert table.headers[:3] == ("Test", "Weights", "Depth")
    assert [row[1:3] for row in table.rows] == [("int4-g32", "0"), ("int8-g32", "512 synthetic")]


def test_a_table_wider_than_the_terminal_is_continued_below():
    _, table = results((DECODE, replace(DECODE, depth=512)))
    first, second = table.parts(54)
    assert first.headers == ("Test", "Depth", "Tokens/s", "min - max", "p50 ms", "p90 ms")
    assert second.headers == ("Test", "Depth", "p99 ms", "Bandwidth", "Compute", "Memory")
    assert second.rows[1] == ("decode 64", "512", "100", "50%", "10%", "200 MB")
    for part in (first, second):
        assert sum(max(map(len, column)) for column in zip(part.headers, *part.rows, strict=True)) + 10 <= 54
    assert table.parts(200) == [table]
    whole = Table(("a", "kernel", "ms"), (("x", "y" * 20, "1"),), left=2, keys=1)
    assert [part.left for part in whole.parts(24)] == [2, 1]


def reasons(*rows: Row) -> list[str]:
    """What a report says about shares above 100 %, up to the colon."""
    texts = [part.text for part in profile_report(profile_of(*rows)) if isinstance(part, Text)]
    return [text.partition(":")[0] for text in texts if text.startswith("*")]


def test_shares_above_100_percent_are_explained():
    memory, arithmetic = "* More than the read bandwidth", "* More than the arithmetic peaks"
    (table,) = (part for part in profile_report(profile_of(PREFILL, DECODE)) if isinstance(part, Table))
    assert "104%*" in table.rows[0] and "50%" in table.rows[1]
    assert reasons(PREFILL, DECODE) == [arithmetic]
    assert reasons(DECODE, replace(PREFILL, bandwidth_share=1.01, compute_share=1.0)) == [memory]
    assert reasons(DECODE, replace(PREFILL, compute_share=1.004)) == []  # printed as 100%
    for limit, wanted in (("memory", [memory]), ("int8", [arithmetic]), ("", [memory, arithmetic])):
        operator = Operator("qkv", 0, "int4", 1e-4, 1000, 2000, limit, 1.2)
        assert reasons(replace(DECODE, operators=(operator,))) == wanted
        assert reasons(replace(DECODE, operators=(replace(operator, limit_share=1.0),))) == []


def test_the_operators_name_their_limits():
    operators = (
        Operator("qkv", 0, "int8 dots, int4 weights", 1e-4, 1000, 2000, "memory", 0.5),
        Operator("qkv", 1, "int8 dots, int4 weights", 3e-4, 1000, 2000, "int8", 0.9),
        Operator("attention", 0, "", 1e-4, 10, 2000, "int16", 0.7),
        Operator("o_input", 0, "", 1e-4, 0, 0, "", 0.0),
    )
    *_, table = (
        part
        for part in profile_report(profile_of(replace(DECODE, operators=operators)))
        if isinstance(part, Table)
    )
    assert table.headers[-2:] == ("Limit", "Of its limit")
    assert [row[-2:] for row in table.rows] == [("memory, int8", "80%"), ("int16", "70%"), ("", "0%")]


def test_markdown():
    text = to_markdown(profile_report(profile_of(PREFILL, replace(DECODE, depth=64, model="a|b"))))
    assert "Limits, 2 threads, best of 2: read 20.0 GB/s, int8 1.50 TOPS, float 0.40 TFLOPS" in text
    assert (
        "| Test | Model | Depth | Tokens/s | min - max | p50 ms | p90 ms | p99 ms | TTFT ms | Bandwidth "
        "| Compute | Memory |\n| --- | --- | ---: |"
    ) in text
    assert "| prefill 512 | m | 0 | 1242 | 1000-1300 |  |  |  | 412 | 2% | 104%\\* | 200 MB |" in text
    assert "| decode 64 | a\\|b | 64 | 20.0 |" in text
    assert "\n\n> Noisy: a neighbour.\n" in text


def test_comparisons_and_plans_are_markdown_too():
    before = profile_of(replace(DECODE, samples=(20.0, 20.0)))
    after = profile_of(replace(DECODE, samples=(10.0, 10.0)))
    found = compare(before, after)
    text = to_markdown(comparison_report(found, found.ratios, ("Noisy.",)))
    assert "| decode 64 | native | int4-g32 | 2 | 0 | 20.0 | 20.0 | 0.500 | 0.500 - 0.500 | slower |" in text
    device = PlannedDevice("a board", 50.0, 10.0, "given")
    plans = plan("random:minicpm4-0.5b", context=4096, memory=10**9, device=device)
    text = to_markdown(plan_report("m", plans, 10**9, device))
    assert "### m, int4-g32, context 4096" in text and "It fits into 1.00 GB" in text
    speed, milliseconds = re.search(r"decode at depth 0 \| ([\d.]+) \| ([\d.]+) \| memory \|", text).groups()
    assert float(speed) == pytest.approx(1000 / float(milliseconds), rel=1e-3)


def test_streams_have_lines_of_their_own_and_verifications_no_latency():
    pytest.importorskip("matplotlib", reason="plots need matplotlib (the extra `profile`)")
    from edge.measure.profile.plots import plots

    verify = replace(DECODE, test="verify", tokens=4, rows=4, seconds=0.03)
    rows = (DECODE, replace(DECODE, streams=8), replace(verify, quantize="int8-row"))
    found = {title: picture for title, _, picture in plots(profile_of(*rows))}
    assert "int8-row" in found["Roofline"] and "verify" in found["Roofline"]
    latency = found["Latency of single tokens"]
    assert "1 stream<" in latency and "8 streams<" in latency and "int8-row" not in latency


@pytest.mark.parametrize(("quantized", "depths"), [(1, 1), (2, 5), (4, 9)])
def test_a_legend_has_at_most_ten_entries(quantized, depths):
    """Two configurations at five depths are two colours and five strokes, not ten lines with a name each."""
    pytest.importorskip("matplotlib", reason="plots need matplotlib (the extra `profile`)")
    from edge.measure.profile.plots import plots

    rows = tuple(
        replace(DECODE, quantize=f"int4-g{32 << i}", depth=1024 * depth, threads=threads)
        for i, depth, threads in product(range(quantized), range(depths), (1, 2))
    )
    for title, _, picture in plots(profile_of(*rows)):
        (legend,) = (
            group
            for group in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}g")
            if group.get("id", "").startswith("legend")
        )
        names = [text.text for text in legend.iter("{http://www.w3.org/2000/svg}text")]
        assert 2 <= len(names) <= 10, title
        assert len(set(names)) == len(names)
        if (quantized, depths) == (
            4,
            9,
        ) and title == "Latency of single tokens":  # 8 configurations, 9 depths
            assert names[-1] == "and 8 more, see the table"


def test_speeds_have_a_digit_behind_the_point_below_a_thousand():
    shown = [_speed(value) for value in (9.96, 99.96, 999.4, 999.6, 12345.6)]
    assert shown == ["10.0", "100.0", "999.4", "1000", "12346"]
