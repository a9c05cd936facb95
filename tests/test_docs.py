"""Figures that the pages state, read from the pages and held against the code that they are about."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from edge.config.network import RopeType, SparseConfig
from edge.config.presets import PRESETS, preset
from edge.engine.settings import LOCAL_CHAT, SamplingParams
from edge.executors.checks import MAX_TREE
from edge.executors.options import RunOptions
from edge.executors.registry import EXECUTORS
from edge.export.quantize.options import QuantizeOptions
from edge.hub.built_in import BUILT_IN
from edge.measure.profile import ProfileOptions, machine, report
from edge.measure.profile.compare import _INTERVAL, _RESAMPLES
from edge.measure.profile.cost import Efficiency
from edge.measure.profile.measure import _SEED_ROWS, SAMPLING
from edge.measure.profile.schema import SCHEMA, MachineFacts, Operator, Profile, Row
from edge.quant.kinds import KINDS
from scripts.figures import measuring, pages
from scripts.figures.benchmarks import BENCHMARKS
from scripts.figures.declaration import Benchmark

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def page(name: str) -> str:
    """A page with every run of blanks and line ends as one blank."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def stated(name: str, pattern: str) -> tuple[str, ...]:
    """The groups of a sentence that must stand on a page."""
    found = re.search(pattern, page(name))
    assert found, f"{name} does not say: {pattern}"
    return found.groups()


def tables(name: str, first: str) -> Iterator[list[list[str]]]:
    """The tables of a page whose first header is `first`: lists of cells, line by line."""
    lines: list[list[str]] = []
    for line in [*(ROOT / name).read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
        elif lines:
            if lines[0][0] == first:
                yield lines[2:]
            lines = []


def names_in(text: str) -> list[str]:
    return re.findall(r"`([\w.-]+)`", text)


def constant(path: str, name: str) -> Any:
    """The value of a constant of a file that is too heavy to import."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no {name}")


# ---- docs/profile.md


def test_the_shares_of_a_plan():
    pattern = (
        r"weights stream at (\d+) % of the read bandwidth, matrices of a prefill run at (\d+) % of the int8 "
        r"peak, attention at (\d+) % of its nearer limit"
    )
    used = Efficiency()
    assert stated("docs/profile.md", pattern) == tuple(
        f"{100 * share:.0f}" for share in (used.stream, used.compute, used.attention)
    )


def test_how_a_profile_measures():
    assert stated("docs/profile.md", r"tokens in pieces of at most (\d+)") == (str(RunOptions().max_batch),)
    sampling = stated("docs/profile.md", r"\(temperature ([\d.]+), top-p ([\d.]+)\)")
    assert tuple(map(float, sampling)) == (SAMPLING.temperature, SAMPLING.top_p)
    assert stated("docs/profile.md", r"of the first (\d+) tokens instead") == (str(_SEED_ROWS),)
    assert stated("docs/profile.md", r"a (\d+) % interval from (\d+) bootstrap resamples") == (
        f"{_INTERVAL[1] - _INTERVAL[0]:.0f}",
        str(_RESAMPLES),
    )
    options = ProfileOptions()
    assert stated("docs/profile.md", r"# prefill of (\d+) tokens, decode of (\d+)") == (
        str(options.prefill[0]),
        str(options.generate),
    )
    noise = stated("docs/profile.md", r"Above (\d+) %, or with more than (\w+) a process per core")
    assert noise == (f"{100 * machine._NOISY_SHARE:.0f}", "half") and machine._NOISY_LOAD == 0.5
    clock = stated("docs/profile.md", r"A clock that fell by more than (\d+) %")
    assert clock == (f"{100 * (1 - machine._THROTTLED_CLOCK):.0f}",)


def test_the_fields_of_a_profile():
    said = set(stated("docs/profile.md", r"Schema (\d+); reading it .* \| `schema` \| (\d+);"))
    assert said == {str(SCHEMA)}
    found = list(tables("docs/profile.md", "field"))
    names = [{name for cells in rows for name in names_in(cells[0])} for rows in found]
    assert names == [{field.name for field in fields(kind)} for kind in (Profile, MachineFacts, Row)]
    (operators,) = (cells[1] for rows in found for cells in rows if cells[0] == "`operators`")
    assert set(names_in(operators)) - {"--ops"} == {field.name for field in fields(Operator)}


def test_the_columns_of_a_profile():
    (rows,) = tables("docs/profile.md", "column")
    said = [name.strip() for cells in rows for name in cells[0].split(",")]
    assert said == [column.header for column in report._COLUMNS[1:] if not column.setting]


# ---- docs/operators.md


def test_the_tolerances_of_operators():
    used = constant("tests/model/test_layer_ops.py", "TOLERANCES")
    products = [used[f"products{kind}"] for kind in ("", ", int8 activations", ", int16 activations")]
    wanted = {
        "embedding": [],
        "rope_table": [used["rope_table, absolute"]],
        "rms_norm": [used["products"]],
        "rms_norm_linear": products,
        "rms_norm_swiglu": products,
        "linear": products,
        "kv_append": [used["queries"], *(used[f"rows{each}"] for each in ("", ", int8", ", int4"))],
        "paged_attention": [used["attention"], used["attention, integer KV"]],
        "kv_keep": [],
    }
    rows = next(tables("docs/operators.md", "operator"))
    said = {names_in(cells[0])[0]: cells[2] for cells in rows}
    assert {
        name: [float(number) for number in re.findall(r"\de-\d", text)] for name, text in said.items()
    } == wanted
    assert said["rope_table"].endswith("absolute")


# ---- docs/chat.md


def test_the_defaults_of_an_answer():
    pattern = r"none about sampling.*?\| temperature ([\d.]+), top-k (\d+), top-p ([\d.]+), min-p ([\d.]+),"
    names, said = ("temperature", "top_k", "top_p", "min_p"), stated("docs/chat.md", pattern)
    assert dict(zip(names, map(float, said), strict=True)) == LOCAL_CHAT
    (temperature,) = stated("docs/chat.md", r"temperature (\d+), and every filter off")
    assert float(temperature) == SamplingParams().temperature


def test_what_belongs_to_the_built_in_model():
    pattern = (
        r"recommend temperature ([\d.]+) and top-p ([\d.]+), so these belong to the name `([\w-]+)`, and so "
        r"do (\w+) activations and a limit of (\d+) tokens"
    )
    temperature, top_p, name, activations, limit = stated("docs/chat.md", pattern)
    sampling = {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p)}
    assert {**sampling, "max_new_tokens": int(limit)} == BUILT_IN.settings
    assert (name, activations) == (BUILT_IN.name, BUILT_IN.activations)
    (default,) = stated("docs/chat.md", r"The default is `(\w+)`: the arithmetic")
    assert default == RunOptions().activations


# ---- docs/architecture.md


def test_the_tiers():
    files = (ROOT / "kernels" / "src" / "tiers").glob("*.cpp")
    tiers = {name for file in files for name in re.findall(r'EDGE_TIER_NAME "([\w-]+)"', file.read_text())}
    (said,) = stated("docs/architecture.md", r"It is compiled once per (tier.*?64-bit ARM)\.")
    assert len(tiers) > 5 and set(names_in(said)) == tiers


def test_the_executors():
    (said,) = stated("docs/architecture.md", r"(`native` runs bundles.*? is the reference)\.")
    assert {name for name in names_in(said) if name in EXECUTORS} == set(EXECUTORS)
    rows = next(tables("docs/profile.md", "executor"))
    assert {name for cells in rows for name in names_in(cells[0])} == set(EXECUTORS)


def test_sizes_of_a_pass():
    assert stated("docs/architecture.md", r"a tree of up to (\d+) tokens described") == (str(MAX_TREE),)
    assert stated("docs/architecture.md", r"`max_batch` \((\d+)\) tokens") == (str(RunOptions().max_batch),)
    pool = (ROOT / "kernels" / "src" / "threads" / "pool.cpp").read_text()
    (spin,) = re.findall(r"spin_time = std::chrono::microseconds\((\d+)\)", pool)
    assert stated("docs/architecture.md", r"Threads spin for (\d+) µs") == (spin,)


def test_rope_types_and_presets():
    assert {cells[0] for cells in next(tables("docs/model.md", "`rope_type`"))} == {
        f"`{name}`" for name in get_args(RopeType)
    }
    (said,) = stated("docs/chat.md", r"\| (`random:minicpm4-0\.5b` \| .*?) \|")
    named = {name.removeprefix("random:") for name in re.findall(r"`([\w.:-]+)`", said)}
    assert named == {name for name in PRESETS if not preset(name).num_experts}  # what runs natively


# ---- quantizing and exporting


def test_quantization():
    names = [cells[0] for cells in next(tables("docs/quantization.md", "`quantize`"))]
    kinds = {name for cell in names for name in re.findall(r"`(\w+)", cell)} - {"source"}
    declared = (ROOT / "edge/quant/kinds.py").read_text(encoding="utf-8")
    own = set(re.findall(r'SchemeKind\(\s*"(\w+)"', declared))  # and not those that other tests register
    assert kinds == own - {"f32"} and own <= {kind.name for kind in KINDS.values()}
    used = QuantizeOptions("int4")
    (sequences, length) = stated(
        "docs/quantization.md", r"`sequences` \((\d+)\) pieces of `length` \((\d+)\)"
    )
    assert (int(sequences), int(length)) == (used.sequences, used.length)
    (damping,) = stated("docs/quantization.md", r"(\d+) % of the mean diagonal is added")
    assert int(damping) / 100 == used.damping
    groups = stated("docs/quantization.md", r"has its own group: (\d+) for int4 and int8, (\d+) for ternary")
    assert tuple(map(int, groups)) == (KINDS.get("int4").group, KINDS.get("ternary").group)
    assert KINDS.get("int8").group == KINDS.get("int4").group


def test_the_limits_of_the_check():
    executorch = constant("export/targets/executorch/target.py", "_LIMIT")
    onnx = constant("export/targets/onnx/target.py", "_LIMIT")
    limits = {
        "`bundle`": constant("export/targets/bundle.py", "_LIMIT"),
        "`coreml` in NumPy": constant("export/targets/coreml/target.py", "_LIMIT"),
        **{"`onnx`, portable": onnx, "`onnx`, full": onnx},
        **{f"`executorch`, {flavour}": limit for flavour, limit in executorch.items()},
        "`gguf` in llama.cpp": constant("export/targets/gguf/check.py", "_LIMIT"),
        "`gguf` read by edge": constant("export/targets/gguf/check.py", "_EXACT_LIMIT"),
    }
    (rows,) = (rows for rows in tables("docs/export.md", "target") if len(rows[0]) == 3)
    said = {cells[0]: float(cells[1].partition(":")[0]) for cells in rows}
    assert {name: said[name] for name in limits} == limits
    most = constant("export/check.py", "_MOST_WORK")
    assert float(stated("docs/export.md", r"\((4e\d+) weights x tokens\)")[0]) == most


def test_sparse_attention():
    used = SparseConfig()
    local, dynamic = used.window_size // used.block_size, used.topk - used.init_blocks
    assert stated("docs/sparse-attention.md", r"and the (\d+) local ones \(`window_size`") == (str(local),)
    assert stated("docs/sparse-attention.md", r"the best-scored (\d+) \(`topk - init_blocks`\)") == (
        str(dynamic),
    )
    assert stated("docs/sparse-attention.md", r"A block of (\d+) rows \(`block_size`\)") == (
        str(used.block_size),
    )
    limit = constant("model/attention/sparse.py", "EXPONENT_LIMIT")
    assert float(stated("docs/sparse-attention.md", r"It is clamped to (\d+)")[0]) == limit


def test_the_commands_of_a_chat():
    from edge.apps.chat.loop import _COMMANDS

    (said,) = stated(
        "docs/chat.md", r"`/help` lists the commands: (.*?) for models whose template knows them"
    )
    named = {word.partition(" ")[0] for word in re.findall(r"`(/[^`]+)`", said)}
    assert named == set(_COMMANDS) - {"/help", "/exit"}  # Ctrl-D leaves, says the sentence before


def test_bounds_of_the_targets():
    executorch = constant("export/targets/executorch/target.py", "MAX_TOKENS")
    assert stated("docs/export-executorch.md", r"n is 1 to (\d+) \(`verify` and `keep`: (\d+)\)") == (
        str(executorch),
        str(MAX_TREE),
    )
    most = constant("export/targets/coreml/program.py", "MAX_TOKENS")
    assert stated("docs/export-coreml.md", r"int32 \[1, n\], n from 1 to (\d+)") == (str(most),)
    versions = stated(
        "docs/export-onnx.md",
        r"\(([\d.]+) or newer; a portable export with a ternary embedding needs ([\d.]+)\)",
    )
    target = (ROOT / "export" / "targets" / "onnx" / "target.py").read_text(encoding="utf-8")
    assert "_OLDEST, _TWO_BIT_EMBEDDING = {!r}, {!r}".format(*versions).replace("'", '"') in target


# ---- versions


@pytest.mark.parametrize(
    ("name", "page_name", "pattern"),
    [
        ("executorch", "docs/operators.md", r"ExecuTorch (\d[\d.]+\d)"),
        ("executorch", "docs/export-executorch.md", r"run on ExecuTorch (\d[\d.]+\d)"),
        ("onnxruntime", "docs/export-onnx.md", r"both flavours \| ONNX Runtime (\d[\d.]+\d)"),
        ("torch", "docs/export-executorch.md", r"executorch [\d.]+, torch (\d[\d.]+\d)"),
    ],
)
def test_versions_are_those_of_the_lock_file(name, page_name, pattern):
    lock = dict(
        line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    )
    assert stated(page_name, pattern) == (lock[name],)


def test_extras_that_the_pages_name():
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    extras = re.findall(r"^(\w+) = \[", section.partition("\n[")[0], re.M)
    named = {
        extra
        for each in PAGES
        for extra in re.findall(r"(?:minicpm-edge|install \.)\[(\w+)\]", each.read_text())
    }
    assert named and named <= set(extras)


def test_sizes_are_in_powers_of_1000_or_say_so():
    """kB, MB and GB everywhere; what is a power of two says KiB, MiB, GiB."""
    found = [f"{each.name}: {word}" for each in PAGES for word in re.findall(r"\d ?KB\b", each.read_text())]
    assert not found, found


# ---- tables from documents

MEASURED = re.compile(
    r"\d ?(%|ms\b|µs\b|us\b|s\b|[kMG]i?B\b|GB/s|nats\b)|tokens/s|GB/s|\bKL\b|perplexity|\bseconds\b|µs per"
)
MARKED = re.compile(r"<!-- figures: ([\w.-]+) -->\n(.*?)<!-- end -->\n", re.S)


def unmarked_tables(text: str) -> Iterator[tuple[str, str]]:
    """Heading and text of each table that stands outside of marks for figures."""
    heading, lines = "", list[str]()
    for line in [*MARKED.sub("", text).splitlines(), ""]:
        if line.lstrip().startswith("|"):
            lines.append(line)
            continue
        if lines:
            yield heading, "\n".join(lines)
            lines = []
        if line.startswith("#"):
            heading = line.lstrip("#").strip()


def test_measured_units_are_seen():
    page_text = "# A\n\n| x | 3 ms |\n\n<!-- figures: b -->\n| 4 GB |\n<!-- end -->\n## C\n| d | 5 |\n"
    assert list(unmarked_tables(page_text)) == [("A", "| x | 3 ms |"), ("C", "| d | 5 |")]
    assert MEASURED.search("| 3 % |") and MEASURED.search("| perplexity |") and not MEASURED.search("| 5 |")


def test_measured_tables_are_generated():
    """Whoever adds a table with measured figures declares how it is made, in scripts/figures."""
    found = [
        (f"docs/{path.name}", heading)
        for path in PAGES
        if path.parent.name == "docs"
        for heading, table in unmarked_tables(path.read_text(encoding="utf-8"))
        if MEASURED.search(table)
    ]
    allowed = set(pages.NOT_MEASURED)
    assert {each if each in allowed else (each[0], "") for each in found} == allowed


def test_marks_are_those_of_the_declared_tables():
    marked = [
        (name, f"docs/{path.name}")
        for path in PAGES
        for name, _ in MARKED.findall(path.read_text(encoding="utf-8"))
    ]
    assert sorted(marked) == sorted((name, table.page) for name, table in pages.TABLES.items())
    used = {each for table in pages.TABLES.values() for each in table.benchmarks}
    assert used == set(BENCHMARKS)
    for path in (ROOT / "docs" / "figures").rglob("*.json"):
        assert path.stem in used
        assert (path.parent.name != "figures") == BENCHMARKS[path.stem].per_machine


@pytest.mark.parametrize("name", sorted(pages.TABLES))
def test_a_table_is_that_of_its_documents(name: str):
    """`make figures` would change nothing; and machine, command and date stand below each table."""
    text = (ROOT / pages.TABLES[name].page).read_text(encoding="utf-8")
    (stands,) = (body for other, body in MARKED.findall(text) if other == name)
    missing = pages.unmeasured(name)
    waits = bool(missing) and stands == pages.waiting(name)
    if not waits and (stands or not missing):
        assert re.search(r"\bcores\b.*`[^`]+`.*\b20\d\d-\d\d", stands, re.S)
    if missing:
        pytest.skip(f'not measured yet: `make figures MEASURE="{" ".join(missing)}"`')
    assert stands == pages.rendered(name), "run `make figures`"


def test_a_benchmark_on_a_busy_machine_is_refused_or_says_so(monkeypatch, tmp_path):
    ours = Benchmark('python -c \'print(1); print("{\\"a\\": 2}")\'', 0.1)
    monkeypatch.setitem(BENCHMARKS, "ours", ours)
    monkeypatch.setattr(measuring, "DOCUMENTS", tmp_path)
    monkeypatch.setattr(measuring, "_LOOK", 0.01)
    monkeypatch.setattr(machine, "_NOISY_SHARE", -1.0)  # every machine is busy
    assert "idle machine" in str(measuring.measure("ours")) and not list(tmp_path.iterdir())
    assert measuring.measure("ours", force=True) is None
    kept = json.loads((tmp_path / "ours.json").read_text(encoding="utf-8"))
    assert kept["document"] == {"a": 2} and "the machine was busy" in pages.origin([kept])
    assert not measuring.is_current("ours")
    monkeypatch.setattr(machine, "_NOISY_SHARE", 1e9)  # none is
    assert measuring.measure("ours") is None
    assert "busy" not in pages.origin([json.loads((tmp_path / "ours.json").read_text(encoding="utf-8"))])


def test_what_a_run_continues_from_goes_away_with_its_document(monkeypatch, tmp_path):
    """Else the next document would be made of rows of older code."""
    command = 'python -c \'import sys; open(sys.argv[1], "a").write("x"); print("{}")\' BUILD/rows'
    monkeypatch.setitem(BENCHMARKS, "ours", Benchmark(command, 0.1, timed=False, state="rows"))
    monkeypatch.setattr(measuring, "DOCUMENTS", tmp_path)
    monkeypatch.setattr(measuring, "BUILD", tmp_path / "build")
    assert measuring.measure("ours") is None
    assert (tmp_path / "ours.json").exists() and not list((tmp_path / "build").iterdir())


@pytest.mark.parametrize(("made_by", "kept"), [(None, ["new"]), ("other", ["new"]), ("this", ["old", "new"])])
def test_a_run_continues_only_from_rows_of_the_same_code(monkeypatch, tmp_path, made_by, kept):
    program = (
        "import json, sys; open(sys.argv[1], 'a').write('new\\n'); "
        "print(json.dumps({'rows': open(sys.argv[1]).read().split()}))"
    )
    benchmark = Benchmark(f"python -c {shlex.quote(program)} BUILD/rows", 0.1, timed=False, state="rows")
    monkeypatch.setitem(BENCHMARKS, "ours", benchmark)
    monkeypatch.setattr(measuring, "DOCUMENTS", tmp_path)
    monkeypatch.setattr(measuring, "BUILD", tmp_path)
    monkeypatch.setattr(measuring, "version", lambda: "this")
    (tmp_path / "rows").write_text("old\n")
    if made_by:
        (tmp_path / "rows.version").write_text(made_by)
    assert measuring.measure("ours") is None
    assert json.loads((tmp_path / "ours.json").read_text())["document"]["rows"] == kept


def test_a_last_line_that_is_no_document_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "ours", Benchmark("python -c 'print(7)'", 0.1, timed=False))
    monkeypatch.setattr(measuring, "DOCUMENTS", tmp_path)
    assert str(measuring.measure("ours")).endswith("ended with a line that is no document: 7")


def test_a_benchmark_that_fails_keeps_the_old_document(monkeypatch, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "ours", Benchmark("python -c 'raise SystemExit(3)'", 0.1, timed=False))
    monkeypatch.setattr(measuring, "DOCUMENTS", tmp_path)
    (tmp_path / "ours.json").write_text("old", encoding="utf-8")
    assert "exit code 3" in str(measuring.measure("ours"))
    assert (tmp_path / "ours.json").read_text(encoding="utf-8") == "old"
