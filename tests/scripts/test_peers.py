"""What scripts/bench_peers.py does without any peer: its options, turns and rows, and what it leaves out."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.peers import comparison
from scripts.peers.llama_state import stretched
from scripts.peers.measuring import apart, in_turn, rows_of
from scripts.peers.models import INT4_32, INT4_128, Maker
from scripts.peers.options import options_of
from scripts.peers.parts import PARTS, Machine, Run, Trial
from scripts.peers.programs import EDGE, LLAMA, OPENVINO
from tests.tiny_checkpoint import write_checkpoint

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_peers.py"
MACHINE = Machine("float16", amx=False)
DECODE = (Trial("decode", 8, 512),)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--parts", "decode,fly"],
            "there is no part 'fly'; choose of decode, llama, prefill, ternary, depth, busy",
        ),
        (["--rounds", "0"], "'0' is no number of 1 or more"),
        (["--threads", "two"], "'two' is no number of 1 or more"),
        (["--busy", "0,-1"], "'0,-1' is no list of numbers of processes, such as 0,1,2"),
        (["--openvino", "/no/python"], "'/no/python' is no program"),
        (["--llama", "/tmp"], "'/tmp' is no program"),
    ],
)
def test_a_bad_option_is_a_sentence(capsys, arguments: list[str], sentence: str):
    with pytest.raises(SystemExit):
        options_of(arguments)
    assert sentence in capsys.readouterr().err


def test_options():
    assert options_of([]).parts == tuple(PARTS)
    given = options_of(["--parts", "busy,depth,busy", "--busy", "2,0", "--llama", sys.executable])
    assert given.parts == ("busy", "depth") and given.busy == (0, 2) and given.llama == sys.executable


def test_openvino_runs_without_amx_where_the_cpu_has_it_and_once_more_with_it():
    def openvino(machine: Machine) -> list[tuple[str, str, dict[str, str]]]:
        runs = [run for run in PARTS["prefill"](machine) if run.program is OPENVINO]
        return [(run.weights.label, run.setting, dict(run.environment)) for run in runs]

    masked = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    assert openvino(MACHINE) == [(weights.label, "", {}) for weights in (INT4_32, INT4_128)]
    assert openvino(replace(MACHINE, amx=True)) == [
        (weights.label, setting, environment)
        for weights in (INT4_32, INT4_128)
        for setting, environment in (("", masked), ("with AMX", {}))
    ]


@pytest.mark.parametrize(
    ("default", "kinds"), [("float16", ["float16", "int8"]), ("int16", ["int16", "float16", "int8"])]
)
def test_the_runtimes_own_kv_type_comes_first(default: str, kinds: list[str]):
    runs = [run for run in PARTS["depth"](replace(MACHINE, kv_type=default)) if run.program is EDGE]
    assert [run.arguments["kv"] for run in runs] == 2 * kinds
    assert [run.arguments["attention"] for run in runs] == [
        kind for kind in ("sparse", "dense") for _ in kinds
    ]


def test_rounds_go_to_and_fro_and_what_takes_long_has_fewer():
    runs = [
        Run(EDGE, INT4_32, DECODE, name, rounds=rounds) for name, rounds in (("a", 5), ("b", 2), ("c", 5))
    ]
    order: list[str] = []

    def measure(run: Run) -> dict[str, list[float]]:
        order.append(run.setting)
        return {"speeds": [float(len(order))]}

    found = in_turn(runs, 3, measure)
    assert "".join(order) == "abc" + "cba" + "ac"
    assert [each.samples(0) for each in found] == [[1.0, 6.0, 7.0], [2.0, 5.0], [3.0, 4.0, 8.0]]


def test_rows_hold_medians_ratios_in_turn_and_shares_of_the_rounds_bandwidth():
    outcomes = {
        ("edge", 0): [(100.0, 50.0), (80.0, 40.0), (90.0, 50.0)],
        ("llama.cpp", 0): [(50.0, None), (50.0, None), (30.0, None)],
        ("edge", 1): [(70.0, 50.0), (40.0, 50.0), (40.0, 50.0)],
    }
    runs = [
        Run(EDGE, INT4_32, DECODE),
        Run(LLAMA, INT4_32, DECODE, "flash attention"),
        Run(EDGE, INT4_32, DECODE, busy=1),
    ]

    def measure(run: Run) -> dict[str, object]:
        speed, bandwidth = outcomes[run.program.name, run.busy].pop(0)
        return {"speeds": [speed], "facts": {"read_bytes": 4e8}, "bandwidth": bandwidth}

    ours, peer, beside = rows_of("busy", in_turn(runs, 3, measure))
    assert ours["tokens_per_second"] == 90 and ours["samples"] == [100, 80, 90] and "ratio" not in ours
    assert peer["ratio"] == 2.0  # of 2, 1.6 and 3; the ratio of medians is 1.8
    assert ours["share"] == 0.72 and peer["share"] == 0.4
    assert beside["share_of_alone"] == pytest.approx(40 / 90, abs=1e-3) and "ratio" not in beside


def test_a_run_is_a_process_that_gets_its_job_and_its_environment(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys\n"
        "job = json.loads(sys.argv[1])\n"
        "print('a library talks')\n"
        "print(json.dumps({'speeds': [job['tests'], job['kv']], 'facts': {'isa': os.environ['ISA']}}))\n"
    )
    program = replace(LLAMA, worker=str(worker))
    run = Run(program, INT4_32, DECODE, arguments={"kv": "q8_0"}, environment={"ISA": "x"}, busy=1)
    outcome = apart(sys.executable, run, {"threads": 2})
    assert outcome == {"speeds": [[["decode", 8, 512, 1]], "q8_0"], "facts": {"isa": "x"}}
    worker.write_text("raise SystemExit('no such model')\n")
    with pytest.raises(SystemExit, match=r"no such model\n\nllama.cpp failed"):
        apart(sys.executable, run, {})


def test_a_model_is_made_once_and_half_of_one_never_has_its_name(tmp_path):
    made: list[Path] = []
    maker = Maker("random:a/b", tmp_path)

    def fails(folder: Path) -> None:
        folder.mkdir()
        raise SystemExit("no space")

    def make(folder: Path) -> None:
        folder.mkdir()
        made.append(folder)

    with pytest.raises(SystemExit, match="no space"):
        maker.kept("g32", fails)
    assert maker.kept("g32", make) == maker.kept("g32", make) == tmp_path / "random-a-b-g32"
    assert len(made) == 1 and [path.name for path in tmp_path.iterdir()] == ["random-a-b-g32"]


def state(cells: int, transposed: bool) -> tuple[bytes, list[np.ndarray]]:
    """A saved state of llama.cpp of two layers, and the rows of its keys and values."""
    parts = [struct.pack("<IiII", 7, -1, 1, cells)]
    parts += [struct.pack("<iIi", cell, 1, 0) for cell in range(cells)]
    parts.append(struct.pack("<II", transposed, 2))
    rows = [np.arange(cells * 6, dtype=np.uint8).reshape(cells, 6) + 50 * part for part in range(4)]
    for part, each in enumerate(rows):
        if transposed and part >= 2:  # elements of two bytes: a row for each of the three
            parts += [struct.pack("<iII", 1, 2, 3), each.reshape(cells, 3, 2).swapaxes(0, 1).tobytes()]
        else:
            parts += [struct.pack("<iQ", 1, 6), each.tobytes()]
    return b"".join(parts), rows


@pytest.mark.parametrize("transposed", [False, True])
def test_a_saved_state_of_llama_cpp_is_made_longer(transposed: bool):
    short, rows = state(3, transposed)
    long = stretched(short, 7).tobytes()
    wanted, _ = state(7, transposed)
    assert len(long) == len(wanted) and stretched(short, 3).tobytes()[16 + 36 :] == short[16 + 36 :]
    cells = np.frombuffer(long[16 : 16 + 7 * 12], "<i4").reshape(7, 3)
    assert cells[:, 0].tolist() == list(range(7)) and set(cells[:, 1]) == {1}
    last = np.frombuffer(long[-7 * 6 :], np.uint8)
    last = last.reshape(3, 7, 2).swapaxes(0, 1).reshape(7, 6) if transposed else last.reshape(7, 6)
    assert np.array_equal(last, rows[3][np.arange(7) % 3])
    with pytest.raises(ValueError, match="1 bytes are left over"):
        stretched(short + b"x", 7)


@pytest.fixture
def model(tmp_path) -> str:
    """A tiny checkpoint with room for the context of the comparison."""
    write_checkpoint(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return str(tmp_path / "model")


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    nothing = ("--llama", "/bin/true", "--openvino", "/bin/false", "--onnxruntime-genai", "/bin/false")
    command = [sys.executable, str(SCRIPT), *nothing, "--rounds", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_peer_that_is_not_installed_is_left_out_with_a_sentence(model: str):
    """The whole program, with a Python that has no OpenVINO and one that tells of no llama.cpp."""
    done = compare("--model", model, "--parts", "decode")
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {row["program"] for row in found["results"]} == {"edge"}
    assert [row["weights"] for row in found["results"]] == [INT4_32.label, INT4_128.label]
    assert all(row["share"] > 0 for row in found["results"])
    assert found["programs"]["edge"]["kv_type"] and found["parts"] == ["decode"]
    assert [sentence.partition(" is left out: ")[0] for sentence in found["left_out"]] == [
        "llama.cpp",
        "OpenVINO GenAI",
        "onnxruntime-genai",
    ]
    assert "/bin/false has no openvino-genai; name a Python that has it with --openvino" in done.stdout


def test_what_is_told_of_ours_are_its_defaults(monkeypatch, model: str, tmp_path):
    """Also after runs with other settings: the tables mark the default among the KV types by it."""

    def told(python: str, run: Run, job: dict[str, object]) -> dict[str, object]:
        kv_type = run.arguments.get("kv", "int16")
        return {"speeds": [1.0 for _ in run.tests], "facts": {"kv_type": kv_type, "read_bytes": 1}}

    monkeypatch.setattr(comparison, "apart", told)
    options = options_of(["--model", model, "--parts", "depth", "--llama", "/bin/true", "--rounds", "1"])
    document = comparison.compare(options, tmp_path)
    assert document["programs"]["edge"]["kv_type"] == "int16"
    assert {row["setting"] for row in document["results"]} == {
        f"{attention}, {kv} KV" for attention in ("sparse", "dense") for kv in ("int16", "float16", "int8")
    }


def test_with_need_all_a_missing_peer_ends_it(model: str):
    done = compare("--model", model, "--parts", "ternary", "--need-all")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("llama.cpp is left out: /bin/true has no llama-cpp-python")
