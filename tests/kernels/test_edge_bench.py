"""edge_bench beside the Python profiler on the same bundle, here and on 64-bit ARM in an emulator."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config.tensors import expected_tensors
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.writer import BundleWriter
from edge.measure.profile import ProfileOptions, profile
from edge.measure.profile.adb import bench_arguments, profile_on_android, read_document
from edge.measure.profile.limits import variation_remarks
from edge.measure.profile.schema import ProfileError
from edge.quant.packing import pack
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

# Few: the emulator takes seconds for the machine's limits.
OPTIONS = ProfileOptions(
    threads=(2,), prefill=(10,), generate=3, depth=(0, 20), kv_type=("float16",), repeat=1
)
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


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


@pytest.fixture
def run_bench(tool) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_bench(*arguments)`: the finished process."""
    return lambda *arguments: run(tool("edge_bench"), *arguments)


@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=str)
def test_same_document_as_python(arm, bundle, scheme):
    """Everything that is arithmetic agrees; times are the emulator's own."""
    folder = bundle(scheme)
    program = [*arm.emulator("max"), arm.make("edge_bench")]
    result = run(*program, *bench_arguments(str(folder), str(folder), OPTIONS))
    assert result.returncode == 0, result.stderr
    found, wanted = read_document(result.stdout), profile(folder, OPTIONS)
    assert found.program == "edge_bench" and found.repeat == 1
    assert [limits.threads for limits in found.machine.limits] == [2]
    (limits,) = found.machine.limits  # measured before the tests and after them
    assert len(limits.samples.int8_tops) == 2 and limits.int8_tops == max(limits.samples.int8_tops)
    assert found.machine.read_bandwidth_gb_s == max(limits.samples.read_bandwidth_gb_s) > 0
    assert set(variation_remarks([limits])) == {
        remark for remark in found.machine.remarks if "between the tests" in remark
    }
    assert found.machine.system.endswith("aarch64")
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


def with_field(name: str, value: Any) -> Callable[[str], str]:
    return replaced('"num_experts": 0', f'"num_experts": 0, "{name}": {json.dumps(value)}')


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
        (
            replaced('"hidden_size": 128', '"hidden_size": 128.5'),
            "'hidden_size' should be a whole number from 1 to",
        ),
        (
            replaced('"hidden_size": 128', '"hidden_size": "128"'),
            "'hidden_size' should be a whole number from 1 to",
        ),
        (replaced('"hidden_size": 128', '"hidden_size": 64'), "expected"),
        (replaced('"vocab_size"', '"vocabulary"'), "The field 'vocab_size' is missing"),
        (replaced("i4.n16k8.g32.v1", "i4.n16k8.g32.v2"), "has a layout that this program does not know"),
        (replaced("model.norm.weight", "model.norms.weight"), "'model.norms.weight': it is not known"),
        (replaced("layers.0.mlp.up", "layers.2.mlp.up"), "it is of no layer; the model has 2"),
        (replaced("layers.0.mlp.up", "layers.4294967296.mlp.up"), "it is of no layer"),
        (replaced("layers.0.mlp.up", "layers.0x.mlp.up"), "it is of no layer"),
        # As numbers of 32 bits each of these would be one that is accepted.
        (
            replaced('"vocab_size": 96', f'"vocab_size": {2**32 + 96}'),
            "'vocab_size' should be a whole number",
        ),
        (
            replaced('"num_hidden_layers": 2', f'"num_hidden_layers": {2**32 + 2}'),
            "'num_hidden_layers' should be",
        ),
        (replaced('"version": 1', f'"version": {2**32 + 1}'), "not a manifest of version 1"),
        (replaced('"num_experts": 0', f'"num_experts": {2**32}'), "mixtures of experts"),
        (
            with_field("layers_without_rope", [1, 2]),
            "'layers_without_rope' should be a whole number from 0 to 1",
        ),
        (with_field("layers_without_rope", 1), "'layers_without_rope' should be"),
        (with_field("sliding_window", 0), "'sliding_window' should be a whole number from 1"),
        (replaced('"group": 32', f'"group": {2**32 + 32}'), "'group' should be a whole number"),
        (
            replaced('"vocab_size": 96', '"vocab_size": 18446744073709551712'),
            "'vocab_size' should be",
        ),  # 2^64 + 96
        (
            replaced('"head_dim": 32', f'"head_dim": {2**30}'),
            "'head_dim' should be a whole number from 1 to 1024",
        ),
        (replaced('"head_dim": 32', '"head_dim": -32'), "'head_dim' should be a whole number from 1 to 1024"),
        (replaced('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e400'), "'rms_norm_eps' is too large"),
        (replaced('"theta": 10000.0', '"theta": 0'), "'theta' should be above 0"),
        (replaced('"shape": [96, 128]', '"shape": [96, 1073741824]'), "smaller than its shape needs"),
        (replaced('"shape": [96, 128]', '"shape": []'), "it has no usable shape"),
        (replaced('"source": "random', '"source": "\\ud800'), "half of a surrogate pair"),
        (lambda text: "[" + "1," * (9 << 20) + "1]", "is too large"),
    ],
)
def test_damaged_manifests(run_bench, bundle, change, sentence):
    folder = bundle(SCHEMES[0])
    manifest = folder / "manifest.json"
    text = json.dumps(json.loads(manifest.read_text()))
    manifest.write_text(change(text))
    result = run_bench(str(folder), "--prefill", "8", "--generate", "1")
    assert result.returncode == 1 and result.stderr.startswith("Error: ") and sentence in result.stderr


def test_names_of_the_files_cannot_speak_to_the_terminal(run_bench, bundle):
    folder = bundle(SCHEMES[0])
    text = (folder / "manifest.json").read_text()
    name = "\\u001b[2J\\u009b0m" + "x" * 5000
    (folder / "manifest.json").write_text(text.replace("model.norm.weight", name))
    error = run_bench(str(folder)).stderr
    assert error.startswith("Error: Tensor '?[2J?0mxxx") and len(error) < 700 and error.count("\n") == 1


def with_header(folder: Path, change: Callable[[dict], None]) -> None:
    """Another header of the weights, and a manifest that agrees to its size."""
    weights, manifest = folder / "weights.safetensors", folder / "manifest.json"
    data = weights.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    text = text.ljust(len(text) + -(8 + len(text)) % 64)  # tensors stand at multiples of 64
    weights.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    body = json.loads(manifest.read_text())
    body["files"]["weights.safetensors"]["bytes"] = weights.stat().st_size
    manifest.write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("offsets", "sentence"),
    [
        ([], "it has no beginning and end in the file"),
        ([0], "it has no beginning and end in the file"),
        ([0, 2**33], "'data_offsets' should be a whole number from 0 to"),
        ([-64, 64], "'data_offsets' should be a whole number from 0 to"),
        ([2**63 - 64, 2**63], "'data_offsets' should be a whole number from 0 to"),
        ([128, 64], "'data_offsets' should be a whole number from 0 to 64"),
        ([1, 64], "it is not aligned"),
        ([0, 64], "it is smaller than its shape needs"),
    ],
    ids=str,
)
def test_damaged_places(run_bench, bundle, offsets, sentence):
    folder, name = bundle(SCHEMES[0]), "model.embed_tokens.weight"
    with_header(folder, lambda header: header[name].update(data_offsets=offsets))
    result = run_bench(str(folder))
    assert result.returncode == 1 and f"Tensor '{name}': " in result.stderr and sentence in result.stderr


@pytest.mark.parametrize("what", ["members", "numbers"])
def test_a_large_manifest_is_read_at_once(run_bench, bundle, what):
    """150,000 members: seconds even for a slow machine where each is compared with all the others."""
    folder = bundle(SCHEMES[0])
    document = json.loads((folder / "manifest.json").read_text())
    document["more"] = {f"{i}": i for i in range(150_000)} if what == "members" else list(range(150_000))
    (folder / "manifest.json").write_text(json.dumps(document))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert "is beyond the 64" in run_bench(str(folder), "--depth", "1000").stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors"])
def test_only_files_are_read(run_bench, bundle, name):
    """A pipe would be waited for without end."""
    folder = bundle(SCHEMES[0])
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name}' is not a file" in run_bench(str(folder)).stderr


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


@pytest.mark.parametrize("beyond", [1, 8, 9, 2**63])
def test_a_header_beyond_the_end_of_the_file(run_bench, bundle, beyond):
    folder = bundle(SCHEMES[0])
    weights = folder / "weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes((len(data) - 8 + beyond).to_bytes(8, "little") + data[8:])
    assert "weights.safetensors is damaged" in run_bench(str(folder)).stderr


def test_android_needs_adb(bundle, tmp_path, monkeypatch):
    folder = str(bundle(SCHEMES[0]))
    if shutil.which("adb") is None:
        with pytest.raises(ProfileError, match=r"adb is not installed: install Android's platform tools"):
            profile_on_android(folder, OPTIONS, tmp_path / "edge_bench")
    else:
        with pytest.raises(ProfileError, match="There is no program"):
            profile_on_android(folder, OPTIONS, tmp_path / "edge_bench")
