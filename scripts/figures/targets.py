"""The first table of docs/performance.md: what is aimed at, and what each machine reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .declaration import Document, Lines, Table, attention_of, percent, rate, ratio, row_of
from .peers import LLAMA, OPENVINO, OURS, PAGE, best, rows_of

_DEEP, _DEEPEST = 32768, 130000
Reached = tuple[str, bool]
"""What was reached, and whether that meets the target."""


@dataclass(frozen=True)
class Target:
    """A line of the table. reached: from the documents of `benchmarks`."""

    what: str
    goal: str
    benchmarks: tuple[str, ...]
    reached: Callable[..., Reached]


def _times(value: float) -> str:
    return f"{value:.2f} x"


def _int4_decode(kernels: Document) -> Reached:
    share = kernels["decoder"]["decode share of read bandwidth"]
    return percent(share), share >= 0.88


def _llama(peers: Document) -> Reached:
    found = rows_of(peers, busy_processes=0)
    ours, peer = (best(row for row in found if (row["program"] == OURS) is own) for own in (True, False))
    assert ours is not None and peer is not None
    times = ratio(ours["samples"], peer["samples"])
    return _times(times), times >= 1.3


def _ternary_decode(ternary: Document, kernels: Document) -> Reached:
    three, four = ternary["decoder"], kernels["decoder"]
    share = three["decode share of read bandwidth"]
    times = three["decode tokens/s"] / four["decode tokens/s"]
    return f"{percent(share)}, {_times(times)}", share >= 0.7 and times >= 1.5


def _tq2_0(ternary: Document) -> Reached:
    peer = best(rows_of(ternary, program=LLAMA))
    assert peer is not None
    return _times(peer["ratio"]), peer["ratio"] >= 2


def _prefill_limits(threads: Document) -> Reached:
    shares = [row_of(threads, test="prefill", tokens=n, threads=2)["compute_share"] for n in (512, 4096)]
    return " and ".join(map(percent, shares)), min(shares) >= 0.6


def _openvino(tokens: int, goals: dict[int, float]) -> Callable[[Document], Reached]:
    """Our prefill beside OpenVINO's without AMX; goals: by group."""

    def reached(prefill: Document) -> Reached:
        words, met = [], True
        for group, goal in goals.items():
            weights, wanted = f"int4, group {group}", {"program": OPENVINO, "tokens": tokens}
            rows = rows_of(prefill, weights=weights, **wanted)
            times = {row["setting"]: row["ratio"] for row in rows}
            words.append(
                _times(times[""]) + (f" ({_times(times['with AMX'])})" if "with AMX" in times else "")
            )
            met = met and times[""] >= goal
        return " / ".join(words), met

    return reached


def _verification(goals: dict[int, float]) -> Callable[[Document], Reached]:
    """Several tokens at once in decode steps; goals: by their count."""

    def reached(kernels: Document) -> Reached:
        steps = {n: round(kernels["decoder"][f"verify {n} / decode"], 2) for n in goals}
        met = all(steps[n] <= most for n, most in goals.items())
        return " / ".join(f"{step:.2f}" for step in steps.values()), met

    return reached


def _deep_attention(long: Document) -> Reached:
    share = attention_of(row_of(long, test="decode", kv_type="float16"))[2]
    return percent(share), share >= 0.65


def _int8_kv(long: Document) -> Reached:
    float16, int8 = (
        attention_of(row_of(long, test="decode", kv_type=kv_type))[0] for kv_type in ("float16", "int8")
    )
    return _times(float16 / int8), round(float16 / int8, 2) >= 1.6


def _deep_prefill(long: Document) -> Reached:
    row = row_of(long, test="prefill", kv_type="float16")
    share = attention_of(row)[2]
    return f"{percent(share)}; {rate(row):.0f} tokens/s", share >= 0.6


def _sparse(document: Document, kv_type: str) -> dict[int, Document]:
    rows = rows_of(document, program=OURS, setting=f"sparse, {kv_type} KV")
    return {row["depth"]: row for row in rows}


def _sparse_beside_llama(document: Document) -> Reached:
    ours, times = _sparse(document, document["programs"][OURS]["kv_type"]), []
    for depth in (_DEEP, _DEEPEST):
        rows = rows_of(document, program=LLAMA, depth=depth)
        peer = best(row for row in rows if row["setting"].startswith("float16"))
        assert peer is not None
        times.append(ratio(ours[depth]["samples"], peer["samples"]))
    return " / ".join(f"{each:.1f} x" for each in times), times[0] >= 10 and times[1] >= 30


def _sparse_of_short(document: Document) -> Reached:
    found = _sparse(document, "int8")
    short = found.pop(min(found))["samples"]
    shares = [ratio(found[depth]["samples"], short) for depth in (_DEEP, _DEEPEST)]
    return " / ".join(map(percent, shares)), shares[0] >= 0.75 and shares[1] >= 0.62


def _fork_join(kernels: Document) -> Reached:
    region = kernels["limits"]["parallel region us"]
    return f"{region:.1f} µs", region <= 2


def _scaling(threads: Document) -> Reached:
    times = {}
    for n in (512, 4096):
        two, one = (row_of(threads, test="prefill", tokens=n, threads=t)["samples"] for t in (2, 1))
        times[n] = ratio(two, one)
    words = (f"{_times(each)} (prefill of {n})" for n, each in times.items())
    return ", ".join(words), min(times.values()) >= 1.8


def _beside_busy(peers: Document) -> Reached:
    one, two = (rows_of(peers, program=OURS, busy_processes=n)[0]["share_of_alone"] for n in (1, 2))
    return f"{percent(one)} / {percent(two)}", one >= 0.6 and two >= 0.35


def _first_word(start: Document) -> Reached:
    seconds = start["seconds"]["to the first word"]
    return f"{seconds:.2f} s from the start of the process", seconds <= 3


def _resident(start: Document) -> Reached:
    more = start["resident / plan"] - 1
    return f"{percent(abs(more), 1)} {'less' if more < 0 else 'more'}", abs(more) <= 0.05


def _sampling(sampler: Document) -> Reached:
    most = max(share for name, share in sampler["percent_of_token"].items() if "baseline" not in name)
    return f"{most:.1f} % at most", most < 2


def _streams(document: Document) -> Reached:
    times = [document["streams"][count]["of one"] for count in ("4", "8")]
    return " / ".join(map(_times, times)), times[0] >= 2.7 and times[1] >= 3.7


def _streams_beside_llama(document: Document) -> Reached:
    times = []
    for count in (4, 8):
        rows = rows_of(document, streams=count)
        ours = best(row for row in rows if row["program"] == OURS)
        peer = best(row for row in rows if row["program"] == LLAMA)
        assert ours is not None and peer is not None
        times.append(ratio(ours["samples"], peer["samples"]))
    return " / ".join(f"{each:.2f} x" for each in times), times[0] >= 2.2 and times[1] >= 2.5


def _pass_overhead(document: Document) -> Reached:
    most = max(found["beside the pass ms"] for found in document["streams"].values())
    return f"{most:.2f} ms at most", most <= 0.3


def _beside_prompt(document: Document) -> Reached:
    p99 = document["prompt"]["p99 ms"]
    return f"{p99:.0f} ms", p99 <= 60


def _prompt_beside(document: Document) -> Reached:
    share = document["prompt"]["of alone less the streams' share"]
    return percent(share), share >= 0.7


TARGETS = (
    Target("int4 decode, context 512", "88 % of read bandwidth", ("kernels",), _int4_decode),
    Target("the same, in turn with llama.cpp Q4_0", "1.3 x", ("peers",), _llama),
    Target(
        "ternary decode",
        "70 % of read bandwidth, 1.5 x int4",
        ("kernels-ternary", "kernels"),
        _ternary_decode,
    ),
    Target("the same, in turn with llama.cpp TQ2_0", "2.0 x", ("peers-ternary",), _tq2_0),
    Target("prefill of 512 and 4096 tokens", "60 % of the sum of limits", ("threads",), _prefill_limits),
    Target(
        "prefill of 512 in turn with OpenVINO, group 32 / 128 (its AMX)",
        "1.25 / 1.35 x",
        ("peers-prefill",),
        _openvino(512, {32: 1.25, 128: 1.35}),
    ),
    Target(
        "prefill of 4096 in turn with OpenVINO, group 32 / 128 (its AMX)",
        "1.15 x",
        ("peers-prefill",),
        _openvino(4096, {32: 1.15, 128: 1.15}),
    ),
    Target(
        "verification of 4 / 8 / 16 tokens, int4",
        "1.3 / 1.65 / 3 steps",
        ("kernels",),
        _verification({4: 1.3, 8: 1.65, 16: 3.0}),
    ),
    Target(
        "verification of 4 / 8 tokens, ternary",
        "1.45 / 2.3 steps",
        ("kernels-ternary",),
        _verification({4: 1.45, 8: 2.3}),
    ),
    Target("4 / 8 sequences at once, context 512", "2.7 / 3.7 x one", ("streams",), _streams),
    Target("the same, in turn with llama.cpp", "2.2 / 2.5 x", ("peers-streams",), _streams_beside_llama),
    Target("scheduler and Python, per pass of 1 to 8", "0.3 ms", ("streams",), _pass_overhead),
    Target("a token of 2 sequences beside a prompt of 4096, p99", "60 ms", ("streams",), _beside_prompt),
    Target("that prompt, of its speed alone less the sequences' share", "70 %", ("streams",), _prompt_beside),
    Target(
        f"dense attention, one token at {_DEEP}, float16 KV",
        "65 % of the nearer limit",
        ("long-context",),
        _deep_attention,
    ),
    Target("int8 KV cache", f"1.6 x faster attention at {_DEEP}", ("long-context",), _int8_kv),
    Target(
        f"prefill of 512 tokens at {_DEEP}, dense",
        "60 % of the FMA limit",
        ("long-context",),
        _deep_prefill,
    ),
    Target(
        f"sparse decode at {_DEEP} / {_DEEPEST}, in turn with llama.cpp",
        "10 / 30 x",
        ("peers-depth",),
        _sparse_beside_llama,
    ),
    Target(
        f"sparse decode at {_DEEP} / {_DEEPEST}, int8 KV",
        "75 % / 62 % of the speed at 512",
        ("peers-depth",),
        _sparse_of_short,
    ),
    Target("fork-join of one region, 2 threads", "2 µs", ("kernels",), _fork_join),
    Target("1 to 2 threads where memory does not bind", "1.8 x", ("threads",), _scaling),
    Target("beside one / two busy processes", "60 % / 35 % of the speed alone", ("peers",), _beside_busy),
    Target("8B bundle to first token, warm page cache", "3 s", ("start",), _first_word),
    Target("resident memory of 8B", "within 5 % of weights + KV + workspace", ("start",), _resident),
    Target("sampling", "under 2 % of step time", ("sampler",), _sampling),
)
_BENCHMARKS = tuple(dict.fromkeys(name for target in TARGETS for name in target.benchmarks))


def targets(*documents: Document | None) -> Lines:
    """Every target; a document that a machine lacks leaves its targets unmeasured."""
    found = dict(zip(_BENCHMARKS, documents, strict=True))
    lines: Lines = [["what", "target", "reached"]]
    for target in TARGETS:
        given = [found[name] for name in target.benchmarks]
        if None in given:
            lines.append([target.what, target.goal, "not measured"])
            continue
        words, met = target.reached(*given)
        lines.append([target.what, target.goal, words if met else f"{words}: missed"])
    return lines


TABLES = {"targets": Table(PAGE, _BENCHMARKS, targets, keys=2, partial=True)}
