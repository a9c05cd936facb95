"""What an export passes on, and the borders of its checks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.errors import ArtifactError, ExportError
from edge.executors.options import RunOptions
from edge.export import artifact as module
from edge.export.check import POSITIONS, CheckResult, Reference, exact_executor, read_reference
from edge.export.options import ExportOptions
from edge.export.source import _quantize_options


def test_options_of_the_quantizer():
    asked = {"method": "p-gptq", "smooth": True, "calibration": Path("text"), "head": "f16"}
    found = _quantize_options(ExportOptions("bundle", quantize="int8", **asked))
    assert found.quantize == "int8"
    assert {name: getattr(found, name) for name in asked} == asked
    plain = _quantize_options(ExportOptions("bundle", quantize="int4"))
    assert (plain.method, plain.smooth, plain.calibration, plain.head) == ("rtn", False, None, "int8")


def test_a_disk_with_just_enough_room(monkeypatch, tmp_path):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    module._check_room(tmp_path / "out", 1000)
    with pytest.raises(ExportError, match=r"needs 1\.00 kB, but only 1000 B are free|only 1\.00 kB are free"):
        module._check_room(tmp_path / "out", 1001)


@pytest.mark.parametrize(
    ("attention", "remarks"),
    [("sparse", 1), ("dense", 0)],
)
def test_only_sparse_attention_has_a_reach(monkeypatch, tiny_config, attention, remarks):
    reference = Reference(np.arange(9, dtype=np.int32), np.zeros((POSITIONS, 96), np.float32))
    result = CheckResult("x", "1", 0.1, 1.0, 0.0, 0.1)
    opened = SimpleNamespace(config=tiny_config(), manifest=SimpleNamespace(target="t", attention=attention))
    monkeypatch.setattr(module.Artifact, "open", lambda path: opened)
    monkeypatch.setattr(module, "read_reference", lambda artifact: reference)
    monkeypatch.setattr(module, "get_target", lambda name: SimpleNamespace(check=lambda *given: result))
    found = module.check_artifact("folder")
    assert len(found.remarks) == remarks and found.passed


def test_a_check_passes_at_its_limit():
    at, beyond = (CheckResult("x", "1", value, 1.0, 0.0, 0.1) for value in (0.1, 0.1000001))
    assert at.passed and not beyond.passed
    assert at.to_json()["passed"] is True and at.to_json()["remarks"] == []


def test_prompt_and_answer():
    found = Reference(np.arange(10, 17, dtype=np.int32), np.zeros((POSITIONS, 3), np.float32))
    assert (found.prompt, found.answer) == ([10, 11, 12, 13], [14, 15, 16])


@pytest.mark.parametrize(
    ("tokens", "logits", "fits"),
    [
        ((POSITIONS,), (POSITIONS, 96), True),
        ((POSITIONS - 1,), (POSITIONS, 96), False),
        ((POSITIONS, 1), (POSITIONS, 96), False),
        ((9,), (POSITIONS - 1, 96), False),
        ((9,), (POSITIONS, 95), False),
    ],
)
def test_references_of_the_right_shape(tiny_config, tokens, logits, fits):
    arrays = np.zeros(tokens, np.int32), np.zeros(logits, np.float32)
    artifact = SimpleNamespace(reference=arrays, path="folder", config=tiny_config())
    if fits:
        assert read_reference(artifact).tokens is arrays[0]
        return
    with pytest.raises(ArtifactError, match="has the wrong shape"):
        read_reference(artifact)


def test_the_plan_takes_the_larger_memory(monkeypatch, tiny_config):
    """Of writing and of quantizing before it, which is never at the same time."""
    source = SimpleNamespace(name="n", context=lambda options: 64, as_asked=lambda options: source)
    monkeypatch.setattr(module, "small_files_bytes", lambda source: 5)
    monkeypatch.setattr(module, "plan_source", lambda *given, **hub: source)
    for writing, quantizing in ((10, 20), (20, 10)):
        sizes, runtime = {"a": 1, "b": 2}, SimpleNamespace()
        plan = module.Plan(sizes, "f", writing, {}, {}, runtime, "full", "dense", notes=("n",))
        monkeypatch.setattr(module, "plan_export", lambda source, options, plan=plan: plan)
        monkeypatch.setattr(module, "quantizing_memory", lambda source, options, most=quantizing: most)
        monkeypatch.setattr(module.Plan, "to_json", lambda plan: {"memory": plan.export_memory})
        found = module.dry_run("m", ExportOptions("bundle"))
        assert (found["memory"], found["context"], found["small_files"]) == (20, 64, 5)


@pytest.mark.parametrize(
    ("attention", "own", "mode"),
    [("dense", True, "dense"), ("sparse", True, "auto"), ("sparse", False, "sparse")],
)
def test_the_exact_executor(monkeypatch, tiny_config, attention, own, mode):
    """float32 in all its parts, over the mapped file."""
    opened = []
    monkeypatch.setattr("edge.export.check.open_executor", lambda *given: opened.append(given))
    bundle = SimpleNamespace(config=tiny_config(sparse=SparseConfig() if own else None))
    exact_executor(bundle, 48, attention)
    ((files, options),) = opened
    wanted = {
        "executor": "native",
        "context": 48,
        "activations": "float32",
        "kv_type": "float32",
        "mmap": True,
    }
    assert files is bundle and options == RunOptions(**wanted, attention=mode)


def test_rows_on_which_exponents_are_compared():
    """Evenly spread; all of them up to twice as many as are wanted."""
    smooth = pytest.importorskip("edge.export.quantize.smooth")
    for rows, wanted in ((3, 3), (1023, 1023), (1024, 512), (1536, 512)):
        found = smooth._sample(smooth.torch.arange(rows * 2).view(rows, 2))
        assert found.shape == (wanted, 2) and found[1].tolist() == [
            2 * (rows // wanted),
            2 * (rows // wanted) + 1,
        ]
