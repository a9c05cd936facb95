"""edge_bench, cross-compiled for 64-bit ARM and run in an emulator, beside the Python profiler on the same
bundle.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge.config.tensors import expected_tensors
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.writer import BundleWriter
from edge.measure.profile import ProfileOptions, profile
from edge.measure.profile.adb import bench_arguments, profile_on_android, read_document
from edge.measure.profile.schema import ProfileError
from edge.quant.packing import pack
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

# Few: the emulator takes seconds for the machine's limits.
OPTIONS = ProfileOptions(threads=(2,), prefill=(10,), generate=3, depth=(0, 20), repeat=1)
SCHEMES = [QuantScheme("int4", 32), QuantScheme("int4", 32, True), QuantScheme("ternary", 0)]


@pytest.fixture
def bundle(tiny_config, tmp_path) -> Callable[..., Path]:
    """`bundle(scheme)`: the folder of a tiny random network."""

    def make(scheme: QuantScheme) -> Path:
        config, rng = tiny_config(), np.random.default_rng(0)
        tensors = [
            BundleTensor(name, shape, QuantScheme("f32") if len(shape) == 1 else scheme, "random", True)
            for name, shape in expected_tensors(config).items()
        ]
        folder = tmp_path / f"bundle-{scheme}"
        with BundleWriter(folder, config, 'random "weights"', tensors) as writer:
            for tensor in tensors:
                values = rng.standard_normal(tensor.shape, dtype=np.float32)
                values = values.reshape(1, -1) if len(tensor.shape) == 1 else values
                stored = values if tensor.scheme.is_float else quantize(values, tensor.scheme)
                writer.write(tensor.name, pack(stored, tensor.scheme))
        return folder

    return make


@pytest.fixture
def run_bench(arm) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_bench(*arguments)`: the finished process, in the emulator."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*arm.emulator("max"), str(arm.build / "edge_bench"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return run


@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=str)
def test_same_document_as_python(run_bench, bundle, scheme):
    """Everything that is arithmetic agrees; times are the emulator's own."""
    folder = bundle(scheme)
    result = run_bench(*bench_arguments(str(folder), str(folder), OPTIONS))
    assert result.returncode == 0, result.stderr
    found, wanted = read_document(result.stdout), profile(folder, OPTIONS)
    assert found.program == "edge_bench" and found.repeat == 1
    assert [limits.threads for limits in found.machine.limits] == [2]
    assert found.machine.read_bandwidth_gb_s > 0 and found.machine.system.endswith("aarch64")
    assert {row.key for row in found.results} == {row.key for row in wanted.results}
    for row in found.results:
        python = next(other for other in wanted.results if other.key == row.key)
        for name in ("weight_bytes_per_token", "kv_bytes_per_token", "operations_per_token"):
            assert getattr(row, name) == pytest.approx(getattr(python, name), rel=1e-8), name
        assert (row.memory.weights, row.memory.kv_cache) == (python.memory.weights, python.memory.kv_cache)
        assert row.tier == "neon-i8mm" and len(row.samples) == 1
        assert len(row.latency_percentiles) == (101 if row.test == "decode" else 0)
        assert row.tokens_per_second.median == pytest.approx(np.median(row.samples))
        assert (row.ttft_seconds is None) == (row.test == "decode")
        assert row.peak_memory_bytes > row.memory.weights > 0


def test_a_synthetic_cache(run_bench, bundle):
    folder = str(bundle(SCHEMES[0]))
    arguments = ("--prefill", "0", "--generate", "2", "--depth", "60", "--fill", "synthetic", "--repeat", "1")
    (row,) = read_document(run_bench(folder, *arguments, "--kv", "float32").stdout).results
    assert (row.fill, row.depth, row.kv_type) == ("synthetic", 60, "float32")
    assert row.model == 'random "weights"'
    assert row.kv_bytes_per_token == 61.5 * 2 * 2 * 2 * 32 * 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Give the folder of a bundle"),
        (("/absent",), "Cannot read '/absent/manifest.json'"),
        (("BUNDLE", "--depth", "1,x"), "--depth '1,x' is not a list of whole numbers of 0 or more"),
        (("BUNDLE", "--threads", "0"), "--threads '0' is not a list of whole numbers of 1 or more"),
        (("BUNDLE", "--colour", "red"), "Unknown option --colour red"),
        (("BUNDLE", "--depth"), "--depth needs a value"),
        (("BUNDLE", "--depth", "1000"), "A context of 1512 tokens is beyond the 64"),
        (("BUNDLE", "--prefill", "0", "--generate", "0"), "There is nothing to measure"),
    ],
)
def test_bad_arguments(run_bench, bundle, arguments, sentence):
    folder = str(bundle(SCHEMES[0])) if "BUNDLE" in arguments else ""
    result = run_bench(*(folder if argument == "BUNDLE" else argument for argument in arguments))
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and sentence in result.stderr


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "is not valid JSON"),
        (lambda text: text + "x", "has something behind its end"),
        (lambda text: "[" * 1000, "is nested too deeply"),
        (replaced('"version": 1', '"version": 01'), "has a malformed number"),
        (replaced('"version": 1', '"version": 2'), "is not a manifest of version 1"),
        (replaced('"format"', '"version"'), "has a member twice"),
        (replaced('"format"', '"form\\u00zz"'), "has a malformed \\u escape"),
        (replaced('"hidden_size": 128', '"hidden_size": 128.5'), "should be whole"),
        (replaced('"hidden_size": 128', '"hidden_size": "128"'), "should be a number"),
        (replaced('"hidden_size": 128', '"hidden_size": 64'), "expected"),
        (replaced('"vocab_size"', '"vocabulary"'), "The field 'vocab_size' is missing"),
        (replaced("i4.n16k8.g32.v1", "i4.n16k8.g32.v2"), "has a layout that this program does not know"),
        (replaced("model.norm.weight", "model.norms.weight"), "'model.norms.weight' that is not known"),
    ],
)
def test_damaged_manifests(run_bench, bundle, change, sentence):
    folder = bundle(SCHEMES[0])
    manifest = folder / "manifest.json"
    text = json.dumps(json.loads(manifest.read_text()))
    manifest.write_text(change(text))
    result = run_bench(str(folder), "--prefill", "8", "--generate", "1")
    assert result.returncode == 1 and result.stderr.startswith("Error: ") and sentence in result.stderr


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_truncated_weights(run_bench, bundle, size):
    """Cut off, and with a manifest that agrees to it."""
    folder = bundle(SCHEMES[0])
    weights, manifest = folder / "weights.safetensors", folder / "manifest.json"
    data = weights.read_bytes()[:size]
    weights.write_bytes(data)
    assert "has another size than its manifest says" in run_bench(str(folder)).stderr
    body = json.loads(manifest.read_text())
    body["files"]["weights.safetensors"]["bytes"] = len(data)
    manifest.write_text(json.dumps(body))
    result = run_bench(str(folder))
    assert result.returncode == 1 and result.stderr.startswith("Error: ")


def test_android_needs_adb(bundle, tmp_path, monkeypatch):
    folder = str(bundle(SCHEMES[0]))
    if shutil.which("adb") is None:
        with pytest.raises(ProfileError, match=r"adb is not installed: install Android's platform tools"):
            profile_on_android(folder, OPTIONS, tmp_path / "edge_bench")
    else:
        with pytest.raises(ProfileError, match="There is no program"):
            profile_on_android(folder, OPTIONS, tmp_path / "edge_bench")
