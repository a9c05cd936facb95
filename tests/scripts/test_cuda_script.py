"""What scripts/test_cuda.py does without a GPU: a rehearsal, parts that end badly, no driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from edge.executors.cuda.cubins import FOLDER_VARIABLE, Cubins
from edge.executors.cuda.libcuda import LIBRARY_VARIABLE
from scripts.cuda.devices import only_ptx
from scripts.cuda.processes import run_process
from scripts.cuda.targets import TARGETS, judged
from scripts.test_cuda import NO_GPU, WAVES, document_of
from tests.edge.executors.cuda.conftest import stub_library, write_package

__all__ = ["stub_library"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command."""
    command = [sys.executable, "-m", "scripts.test_cuda", "--folder", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment}
    )


def test_a_rehearsal_goes_through_everything(tmp_path: Path):
    """Every kind of check is right in Triton's interpreter, and no figure is taken for a measurement."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed (pip install triton==3.9.0)")
    done = run(tmp_path, "--rehearse")
    document = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and document["good"], done.stderr
    assert document == json.loads((tmp_path / "document.json").read_text())
    assert document["measurement"] is False and document["targets"] == []
    names = [line["check"] for line in document["parts"]["rehearsal"]["results"] if "check" in line]
    for named in ("weights", "alone", "prefill", "tree of", "pieces", "a batch", "single launches", "memory"):
        assert any(named in name for name in names), named
    assert {"bandwidth", "launch", "product", "step", "sparse step", "piece", "prefill"} <= set(
        document["figures"]
    )
    (step,) = document["figures"]["step"]
    assert step["launches"] == sum(each["launches"] for each in document["figures"]["piece"])


def test_without_a_driver_it_says_so(tmp_path: Path):
    write_package(tmp_path / "cubins", variants={"sm_87": 12000, "compute_80": 12000})
    done = run(
        tmp_path, **{LIBRARY_VARIABLE: "/nowhere/libcuda.so.1", FOLDER_VARIABLE: str(tmp_path / "cubins")}
    )
    assert done.returncode == NO_GPU and done.stdout == ""
    assert done.stderr.startswith("Error: There is no NVIDIA driver here") and done.stderr.count("\n") == 1


def test_a_driver_is_asked_for_facts(tmp_path: Path, stub_library: Path):
    """With a stand-in, which computes nothing: so checks of values are wrong, and the document says which."""
    write_package(tmp_path / "cubins", variants={"sm_87": 12000, "compute_80": 12000})
    environment = {LIBRARY_VARIABLE: str(stub_library), FOLDER_VARIABLE: str(tmp_path / "cubins")}
    done = run(tmp_path, "--parts", "facts", **environment)
    document = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1 and not document["good"] and document["measurement"]
    (device,), (kernels,) = document["figures"]["device"], document["figures"]["kernels"]
    assert device["architecture"] == 87 and kernels["chosen"] == {"sm_87": 1}
    wrong = {line["check"]: line["wrong"] for line in document["wrong"]["facts"]}
    assert "is not among those" in wrong["self check embed"]
    assert all(row["found"] is None for row in document["targets"])


def test_ptx_alone_is_what_any_device_then_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built = write_package(tmp_path / "cubins", variants={"sm_87": 12000, "compute_80": 12000})
    monkeypatch.setenv(FOLDER_VARIABLE, str(built))
    found = Cubins.open(only_ptx(tmp_path / "ptx"))
    kernel = found.kernel("scale.f16")
    assert list(kernel.images) == ["compute_80"] == list(found.manifest.variants)
    assert found.image(kernel, found.manifest.variants["compute_80"]).startswith(b"PTX")


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ("", "done"),
        ("raise SystemExit('no luck')", "failed"),
        ("os.abort()", "ended by SIGABRT"),
        ("time.sleep(60)", "out of time"),
    ],
)
def test_what_a_part_found_outlives_it(tmp_path: Path, ending: str, state: str):
    lines = tmp_path / "part.jsonl"
    written = f'open({str(lines)!r}, "w").write(\'{{"check": "a", "good": true}}\\n{{"half\')'
    result = run_process(
        [sys.executable, "-c", f"import os, time; {written}.bit_length(); {ending}"], lines, 1
    )
    assert (result["state"], result["results"]) == (state, [{"check": "a", "good": True}])
    assert ("no luck" in result.get("said", "")) == (state == "failed")
    document = document_of({"part": result}, rehearsed=False)
    assert document["good"] == (state == "done") and document["checks"] == 1


def figures(speed: float) -> dict[str, list[dict[str, Any]]]:
    """Of a GPU that reads 1000 bytes a second, with kernels that reach so much of it."""
    steps = [{"shape": "8b", "rows": rows, "graph": 1 + rows / 100, "bytes": 500} for rows in (1, 8, 16)]
    return {
        "bandwidth": [{"read": 1000.0, "copy": 900.0}],
        "product": [
            {"shape": "8b", "matrix": name, "rows": 1, "speed": 1000 * speed} for name in ("gate_up", "head")
        ],
        "step": steps,
        "sparse step": [
            {"shape": "8b", "context": at, "graph": graph} for at, graph in ((4096, 1), (131072, 2))
        ],
        "prefill products": [{"shape": "8b", "seconds": 1.0, "torch": None}],
    }


def test_targets_are_hit_missed_or_not_measured():
    rows = {row["target"]: row["hit"] for row in judged(figures(0.8))}
    assert list(rows.values()) == [True, True, True, True, True, False, None]
    slow = [row["hit"] for row in judged(figures(0.7))]
    assert slow[:2] == [False, False] and len(slow) == len(TARGETS)
    assert [row["found"] for row in judged({})] == [None] * len(TARGETS)


def test_parts_have_names_of_their_own_and_nothing_is_timed_beside_another():
    names = [part.name for wave in WAVES for part in wave]
    assert len(set(names)) == len(names)
    assert all(len(wave) == 1 for wave in WAVES if any("speed" in part.works for part in wave))


def test_an_unknown_part_is_a_sentence(tmp_path: Path):
    done = run(tmp_path, "--rehearse", "--parts", "fly")
    assert done.returncode == 1 and "There is no part fly; choose of rehearsal." in done.stderr
