"""What `edge export` prints: units, sums, and the verdict of a check."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from edge.apps.export import _print_artifact, _print_plan
from edge.export.check import CheckResult

PLAN = {
    **{"source": "tiny", "target": "onnx", "flavour": "full", "context": 64, "formula": "a sum"},
    **{
        "files": {"model.onnx": 1_500_000},
        "small_files": 2_000,
        "run_memory": {"weights": 10**6, "KV": 5 * 10**5},
    },
    **{"export_memory": 3 * 10**6, "operators": {"A": 1, "B": 2}, "notes": ["be careful"]},
}


def test_a_plan(capsys):
    _print_plan(PLAN, False)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "tiny to onnx (full)",
        "1.50 MB  model.onnx",
        "2.00 kB  tokenizer, template, reference",
        "Size of the model's files: a sum.",
        "Memory to run at 64 tokens: 1.50 MB = weights 1.00 MB + KV 500 kB",
        "Memory to export: up to 3.00 MB beside mapped files",
        "Operators: A v1, B v2",
        "be careful",
    ]
    _print_plan(PLAN, True)
    assert json.loads(capsys.readouterr().out) == PLAN


def test_an_artifact(capsys):
    files = {"a": SimpleNamespace(bytes=1_500_000), "b": SimpleNamespace(bytes=500)}
    facts = {"target": "onnx", "flavour": "full", "total_bytes": 1_500_500, "runtime": "onnx 1.2 or later"}
    artifact = SimpleNamespace(path="some folder", manifest=SimpleNamespace(**facts, files=files))
    _print_artifact(artifact, False)
    assert capsys.readouterr().out.splitlines() == [
        "Wrote some folder (1.50 MB) for onnx 1.2 or later.",
        "Check it with: edge export --check 'some folder'",
    ]
    _print_artifact(artifact, True)
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == {"a": 1_500_000, "b": 500}
    assert (found["artifact"], found["bytes"], found["flavour"]) == ("some folder", 1_500_500, "full")


@pytest.mark.parametrize(("divergence", "verdict", "code"), [(0.01, "passed", 0), (0.011, "FAILED", 1)])
def test_a_check(monkeypatch, run_inside, tmp_path, divergence, verdict, code):
    result = CheckResult("a runtime", "1.2", divergence, 0.75, 0.12345, 0.01, ("one remark",))
    monkeypatch.setattr("edge.export.artifact.check_artifact", lambda folder: result)
    run = run_inside("export", "--check", str(tmp_path))
    assert run.returncode == code
    lines = run.stdout.splitlines()
    assert lines[0] == f"{tmp_path}: {verdict} in a runtime 1.2"
    assert lines[1].endswith("(limit 1e-02), top-1 agreement 75%, largest error of a logit 0.123")
    assert lines[1].startswith(f"KL divergence {divergence:.2e}") and "one remark" in lines[2]
    document = run_inside("export", "--check", str(tmp_path), "--json")
    assert document.returncode == code and json.loads(document.stdout)["passed"] is (code == 0)
