"""Documents of several machines, side by side in one table, and the targets that are computed from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.figures import __main__ as program
from scripts.figures import measuring, pages, peers, server, targets
from scripts.figures.benchmarks import BENCHMARKS
from scripts.figures.declaration import Benchmark, Document, Lines, Table

AMD: dict[str, Any] = {
    "cpu": "AMD EPYC",
    "kind": "family 25, model 17",
    "tier": "avx512vnni",
    "cores": 2,
    "memory_bytes": None,
    "system": "Linux 6.18",
}
INTEL = {**AMD, "cpu": "Intel(R) Xeon(R) Processor", "kind": "family 6, model 207"}


@pytest.fixture
def measure_on(monkeypatch, tmp_path):
    """`measure_on(machine, name, document)`: run a benchmark that prints the document, on that machine."""
    monkeypatch.setattr(measuring, "DOCUMENTS", tmp_path)
    for each in ("speed", "size"):
        monkeypatch.setitem(BENCHMARKS, each, Benchmark("python -c 1", 0.1, per_machine=True))

    def measure(machine: dict[str, Any], name: str, document: Document) -> None:
        code = f"print({json.dumps(json.dumps(document))})"
        benchmark = Benchmark(f"python -c '{code}'", 0.1, timed=False, per_machine=True)
        monkeypatch.setitem(BENCHMARKS, name, benchmark)
        monkeypatch.setattr(measuring, "machine_facts", lambda: machine)
        assert measuring.measure(name) is None

    return measure


def speeds(document: Document, size: Document) -> Lines:
    return [["what", "tokens/s"], ["decode", str(document["speed"])], ["size", str(size["bytes"])]]


def test_measuring_on_another_machine_keeps_what_was_measured(monkeypatch, tmp_path, measure_on):
    monkeypatch.setitem(pages.TABLES, "ours", Table("docs/ours.md", ("speed", "size"), speeds))
    for machine, speed in ((AMD, 3), (INTEL, 4), (INTEL, 5)):
        measure_on(machine, "speed", {"speed": speed})
        measure_on(machine, "size", {"bytes": 7})
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json"))
    kinds = ("amd-avx512vnni", "intel-avx512vnni")
    assert kept == [f"{kind}/{name}.json" for kind in kinds for name in ("size", "speed")]
    text = pages.rendered("ours")
    assert "| what | AMD avx512vnni: tokens/s | Intel avx512vnni: tokens/s |\n" in text
    assert "| decode | 3 | 5 |\n" in text and "| size | 7 | 7 |\n" in text
    assert "AMD EPYC (family 25, model 17; avx512vnni)" in text and "family 6, model 207" in text
    assert measuring.is_current("speed") == (not measuring.version().endswith("dirty"))
    monkeypatch.setattr(measuring, "machine_facts", lambda: {**AMD, "tier": "avx2"})
    assert not measuring.is_current("speed")
    monkeypatch.setattr(program, "TABLES", pages.TABLES)
    assert "not measured here, but on amd-avx512vnni, intel-avx512vnni" in program.listed("speed")


def test_a_machine_without_all_documents_has_no_column_unless_the_table_is_partial(monkeypatch, measure_on):
    def partly(document: Document | None, size: Document | None) -> Lines:
        return [["what", "tokens/s"], ["decode", "not measured" if document is None else "measured"]]

    names = ("speed", "size")
    monkeypatch.setitem(pages.TABLES, "whole", Table("docs/ours.md", names, speeds))
    monkeypatch.setitem(pages.TABLES, "part", Table("docs/ours.md", names, partly, partial=True))
    measure_on(AMD, "speed", {"speed": 3})
    assert pages.unmeasured("whole") == ["size"] and pages.lacking("whole") == {"amd-avx512vnni": ["size"]}
    assert "| decode | measured |" in pages.rendered("part")
    measure_on(INTEL, "size", {"bytes": 7})
    assert pages.unmeasured("whole") == ["speed"] and not pages.unmeasured("part")
    assert "| decode | measured | not measured |" in pages.rendered("part")
    measure_on(INTEL, "speed", {"speed": 5})
    assert pages.unmeasured("whole") == [] and list(pages.lacking("whole")) == ["amd-avx512vnni"]
    assert "| decode | 5 |" in pages.rendered("whole") and "Intel avx512vnni:" not in pages.rendered("whole")
    assert pages.lacking("part") == {}


def test_rows_that_one_machine_lacks_stand_where_the_other_has_them():
    lines = {
        "A": [["what", "with", "x", "y"], ["decode", "us", "1", "2"], ["decode", "them", "3", "4"]],
        "B": [["what", "with", "x"], ["decode", "us", "5"], ["decode", "AMX", "6"], ["prefill", "us", "7"]],
    }
    assert pages.side_by_side(lines, keys=2) == [
        ["what", "with", "A: x", "A: y", "B: x"],
        ["decode", "us", "1", "2", "5"],
        ["decode", "AMX", "", "", "6"],
        ["prefill", "us", "", "", "7"],
        ["decode", "them", "3", "4", ""],
    ]
    assert pages.side_by_side({"A": lines["A"]}, keys=2) == lines["A"]


def test_documents_of_one_table_are_all_of_a_machine_or_none_is():
    for name, table in pages.TABLES.items():
        assert len({BENCHMARKS[each].per_machine for each in table.benchmarks}) == 1, name
    parts = [name for name in BENCHMARKS if "bench_peers.py" in BENCHMARKS[name].command]
    assert len(parts) == 8 and all("--need-all" in BENCHMARKS[name].command for name in parts)


# ---- the targets


def row(program: str, speed: float, **rest: Any) -> dict[str, Any]:
    """A row of a comparison, as scripts/bench_peers.py prints it."""
    found = {"program": program, "weights": "int4, group 32", "setting": "", "test": "decode", "tokens": 64}
    found |= {"depth": 512, "busy_processes": 0, "tokens_per_second": speed, "samples": [speed, speed]}
    return {**found, **rest}


def document(*rows: dict[str, Any]) -> Document:
    return {"results": list(rows), "programs": {"edge": {"kv_type": "int8"}}}


def reached(name: str, what: str, found: Document) -> str:
    """The last cell of a target, where one benchmark was measured only."""
    given = {target: found if target == name else None for target in targets._BENCHMARKS}
    ((_, _, cell),) = (line for line in targets.targets(*given.values()) if line[0].startswith(what))
    return cell


def test_targets_are_reached_or_missed_by_their_documents():
    def prefill(ratio: float) -> Document:
        peers_rows = [
            row("OpenVINO GenAI", 400, tokens=n, weights=f"int4, group {g}", setting=setting, ratio=r)
            for n in (512, 4096)
            for g, r in ((32, ratio), (128, 1.4))
            for setting, r in (("", r), ("with AMX", 0.5))
        ]
        return document(*peers_rows)

    what = "prefill of 512 in turn"
    assert reached("peers-prefill", what, prefill(1.25)) == "1.25 x (0.50 x) / 1.40 x (0.50 x)"
    assert reached("peers-prefill", what, prefill(1.24)).endswith(": missed")
    ternary = document(row("edge", 200), row("llama.cpp", 90, ratio=2.2), row("llama.cpp", 101, ratio=1.98))
    assert reached("peers-ternary", "the same, in turn with llama.cpp TQ2_0", ternary) == "1.98 x: missed"
    kernels = {"verify 4 / decode": 1.3, "verify 8 / decode": 1.6, "verify 16 / decode": 3.0}
    verified = {"decoder": {**kernels, "decode share of read bandwidth": 0.9}, "limits": {}}
    verified["limits"]["parallel region us"] = 1.0
    given = {name: verified if name == "kernels" else None for name in targets._BENCHMARKS}
    cells = {what: cell for what, _, cell in targets.targets(*given.values())}
    assert cells["int4 decode, context 512"] == "90 %"
    assert cells["verification of 4 / 8 / 16 tokens, int4"] == "1.30 / 1.60 / 3.00"
    assert cells["sampling"] == "not measured"


def several(of_eight: float = 3.7, overhead: float = 0.3, p99: float = 60.0, share: float = 0.7) -> Document:
    """What scripts/bench_streams.py prints."""
    counts = {
        count: {"tokens/s": 100 * of_one, "of one": of_one, "pass ms": 9.0, "beside the pass ms": overhead}
        for count, of_one in (("1", 1.0), ("4", 2.7), ("8", of_eight))
    }
    prompt = {"tokens": 4096, "streams": 2, "tokens/s alone": 400.0, "tokens/s beside": 250.0}
    prompt |= {"of alone less the streams' share": share, "p50 ms": 45.0, "p99 ms": p99}
    return {"streams": counts, "prompt": prompt}


def test_the_targets_of_several_sequences():
    for what, cell, missed in (
        ("4 / 8 sequences", "2.70 x / 3.70 x", several(of_eight=3.69)),
        ("scheduler and Python", "0.30 ms at most", several(overhead=0.31)),
        ("a token of 2 sequences", "60 ms", several(p99=61.0)),
        ("that prompt", "70 %", several(share=0.69)),
    ):
        assert reached("streams", what, several()) == cell
        assert reached("streams", what, missed).endswith(": missed")
    headers, *_, last = pages.TABLES["streams"].rows(several())
    assert dict(zip(headers, last, strict=True)) == {
        "sequences": "8",
        "tokens/s in total": "370",
        "of one": "3.70 x",
        "a pass alone": "9.00 ms",
        "scheduler and Python, per pass": "0.30 ms",
    }
    assert ["the same, of its speed alone less their share", "70 %"] in pages.TABLES["streams-prompt"].rows(
        several()
    )


def deep(speed_at_130000: float) -> Document:
    def at(program: str, setting: str, *found: float) -> list[dict[str, Any]]:
        depths = (512, 32768, 130000)[3 - len(found) :]
        return [row(program, v, setting=setting, depth=d) for d, v in zip(depths, found, strict=True)]

    return document(
        *at("edge", "sparse, int8 KV", 100, 80, speed_at_130000),
        *at("edge", "dense, int8 KV", 100, 40, 15),
        *at("llama.cpp", "float16 KV", 5, 1),
        *at("llama.cpp", "float16 KV, flash attention", 8, 2),
        *at("llama.cpp", "q8_0 KV, flash attention", 9, 3),
    )


def test_sparse_decode_is_beside_the_better_llama_cpp():
    what = "sparse decode at 32768 / 130000, "
    assert reached("peers-depth", what + "in turn", deep(62)) == "10.0 x / 31.0 x"
    assert reached("peers-depth", what + "int8 KV", deep(62)) == "80 % / 62 %"
    assert reached("peers-depth", what + "int8 KV", deep(59)) == "80 % / 59 %: missed"
    assert reached("peers-depth", what + "in turn", deep(59)).endswith(": missed")
    headers, first, *others = peers.depth(deep(62))
    assert headers == ["decode, tokens/s", "at 512", "at 32768", "at 130000"]
    assert first == [
        "this decoder, sparse, int8 KV (the default)", "100", "80 (80 %, 10.0 x)", "62 (62 %, 31.0 x)"
    ]  # fmt: skip
    assert others[-1] == ["llama.cpp, q8_0 KV, flash attention", "", "9", "3"]


def test_the_better_setting_of_llama_cpp_counts_and_amx_has_a_row_of_its_own():
    found = document(
        row("edge", 100, share=0.9),
        row("OpenVINO GenAI", 80, ratio=1.25),
        row("OpenVINO GenAI", 90, ratio=1.11, setting="with AMX"),
        row("llama.cpp", 70, ratio=1.43, share=0.6),
        row("llama.cpp", 60, ratio=1.67, share=0.5, setting="flash attention"),
    )
    _, *lines = peers.decode(found, document(row("edge", 200, weights="ternary")))
    ours = "100 (100 to 100; 90 % of the bandwidth)"
    assert lines == [
        ["decode, int4, group 32", "OpenVINO GenAI", ours, "80 (80 to 80)", "1.25 x"],
        ["decode, int4, group 32", "OpenVINO GenAI, with AMX", ours, "90 (90 to 90)", "1.11 x"],
        ["decode, int4, group 32", "llama.cpp", ours, "70 (70 to 70; 60 % of the bandwidth)", "1.43 x"],
    ]


def test_every_folder_of_documents_names_the_machine_of_its_documents():
    for path in Path(measuring.DOCUMENTS).glob("*/*.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))["machine"]
        assert path.parent.name == measuring.machine_kind(facts)


# ---- the server and its forms


def served(first: float = 0.15, added: float = 225.0, back: float = 0.99, cached: int = 32640) -> Document:
    """What scripts/bench_server.py prints of a model."""
    added_by = {"server beyond pass": [added, added, 300.0], "server beyond stream": [90.0, 100.0, 110.0]}
    found = {
        "memory": {"idle_private_bytes": 130_000_000},
        "one": {"added_microseconds": added_by, "milliseconds": {"pass": [8.0, 8.125, 9.0]}},
        "streams": {
            "ratio": [2.4, 2.5, 2.6],
            "one_tokens_per_second": [99, 100, 101],
            "four_tokens_per_second": [249, 250, 251],
        },
        "first": {"p50_seconds": 0.1, "p95_seconds": first},
        "restart": {
            **{"tokens": 32640, "cached_tokens": cached, "computed_tokens": 32640, "computed_seconds": 300.4},
            **{"back_seconds": [0.4, 0.5, 0.6], "most_back_seconds": back},
        },
    }
    return {"models": {"ours": found}}


def cell_of(lines: Lines, what: str) -> str:
    ((*_, cell),) = (line for line in lines if line[0].startswith(what))
    return cell


def test_the_targets_of_the_server():
    rates = {"edge": [300, 330, 340], "llama.cpp": [100, 150, 151], "llama.cpp -fa": [100, 140, 190]}
    peer = {"models": {"ours": {"peer": {"ratio": [2.1, 2.2, 2.3], "tokens_per_second": rates}}}}
    lines = server.server(served(), peer)
    assert lines[0] == ["what", "target", "`ours`"] and not any("missed" in line[2] for line in lines)
    assert cell_of(lines, "HTTP, JSON and scheduling") == "225 µs (225 to 300)"
    assert cell_of(lines, "first token of a long") == "0.50 s, 0.99 s at most; 32,640 tokens"
    assert cell_of(lines, "ours / llama.cpp's") == "330 / 150 tokens/s"
    for what, missed in (
        ("first token of 32", served(first=0.151)),
        ("HTTP, JSON", served(added=226)),
        ("first token of a long", served(back=1.0)),
        ("first token of a long", served(cached=32000)),
    ):
        assert cell_of(server.server(missed, None), what).endswith(": missed")
    assert cell_of(server.server(served(), None), "four streams in turn") == "not measured"
    assert cell_of(server.server(None, peer), "four streams, of one") == "not measured"


def test_the_targets_of_forms():
    def forms(share: float, valid: int) -> Document:
        found: Document = {"mask_share_of_a_token": share, "mask_seconds": {"median": 4e-5, "p99": 9e-5}}
        found |= {"valid_with_form": valid, "whole_with_form": 7, "valid_without_form": 1, "answers": 8}
        found |= {"compile_seconds": {"open": 0.02, "rigid": 0.01}, "vocabulary_seconds": 0.5}
        return {"models": {"ours": {**found, "forced_speedup": 1.5}}}

    met, missed = (server.constraints(each) for each in (forms(0.05, 7), forms(0.051, 6)))
    assert cell_of(met, "masks, of a token's") == "5.0 %"
    assert cell_of(missed, "masks, of a token's") == "5.1 %: missed"
    assert cell_of(met, "whole answers with the form") == "7 of 7"
    assert cell_of(missed, "whole answers with the form") == "6 of 7: missed"
