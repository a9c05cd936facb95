"""Bundles: what is written is read back, and every kind of damage is refused with a sentence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config.presets import preset
from edge.config.tensors import expected_tensors
from edge.errors import BundleError
from edge.formats.bundle import reader
from edge.formats.bundle.manifest import BundleTensor, Manifest, required_operators
from edge.formats.bundle.reader import Bundle
from edge.formats.bundle.writer import BundleWriter
from edge.hub.convert import convert
from edge.quant.packing import dequantize
from edge.quant.scheme import QuantScheme

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, so that every test sees first loads."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGE_CACHE", str(folder))
    return folder


@pytest.fixture
def bundle(tmp_path: Path, cache: Path, tiny_config: Any, array_checkpoint: Callable[..., Any]) -> Path:
    """A small int4 bundle that was never loaded."""
    path = tmp_path / "bundle"
    convert(array_checkpoint(tiny_config), path, quantize="int4", head="int8")
    return path


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as a program that knows its checksum would."""
    file = path / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    body = {name: value for name, value in data.items() if name != "sha256"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    data["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(data))


def refuse(path: Path, *says: str, verify: bool = False) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path, verify)
    message = str(caught.value)
    for text in says:
        assert text in message
    assert message.endswith(".") and "\n" not in message
    assert "again" in message or "update" in message  # how to mend it


def test_what_is_written_is_read(
    bundle: Path, tiny_config: Any, array_checkpoint: Callable[..., Any]
) -> None:
    opened = Bundle.open(bundle)
    assert opened.config == tiny_config and opened.path == bundle
    assert {name: tensor.shape for name, tensor in opened.tensors.items()} == expected_tensors(tiny_config)
    weights = array_checkpoint(tiny_config).weights
    for name, tensor in opened.tensors.items():
        data = opened.data(name)
        assert data.dtype == np.uint8 and data.shape == (tensor.bytes,) and not data.flags.writeable
        assert data.ctypes.data % 64 == 0
        values = dequantize(data, tensor.scheme, tensor.rows, tensor.columns)
        if len(tensor.shape) == 1:
            assert tensor.scheme == QuantScheme("f32") and tensor.exact
            np.testing.assert_array_equal(values[0], weights[name])
        else:
            assert tensor.scheme == (
                QuantScheme("int8", 32)
                if name in ("lm_head.weight", "model.embed_tokens.weight")
                else QuantScheme("int4", 32)
            )
            assert not tensor.exact and tensor.source_type == "F32"
            assert np.abs(values - weights[name]).max() < 0.6
    assert opened.tokenizer_files == {"tokenizer.json": b"{}"}
    assert opened.chat_template == "{{ messages[0].content }}"
    assert opened.generation_config == {"temperature": 0.8}
    assert opened.manifest.operators == ("attention.dense", "linear.int4", "linear.int8")
    assert opened.manifest.source == "arrays"
    assert opened.file("tokenizer.json") == bundle / "tokenizer.json"
    with pytest.raises(BundleError, match=r"nothing\.json"):
        opened.file_bytes("nothing.json")
    with pytest.raises(BundleError, match="'nothing'"):
        opened.data("nothing")


def test_other_programs_can_read_the_weights(bundle: Path) -> None:
    from safetensors.numpy import load_file

    opened = Bundle.open(bundle)
    loaded = load_file(bundle / "weights.safetensors")
    assert loaded.keys() == opened.tensors.keys()
    for name, data in loaded.items():
        np.testing.assert_array_equal(data, opened.data(name))


def test_optional_files_may_be_absent(
    tmp_path: Path, cache: Path, tiny_config: Any, array_checkpoint: Callable[..., Any]
) -> None:
    checkpoint = array_checkpoint(tiny_config)
    checkpoint.tokenizer_files, checkpoint.chat_template, checkpoint.generation_config = {}, None, {}
    convert(checkpoint, tmp_path / "b")
    opened = Bundle.open(tmp_path / "b")
    assert (opened.tokenizer_files, opened.chat_template, opened.generation_config) == ({}, None, {})
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "manifest.json",
        "weights.safetensors",
    ]


def record_hashing(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose checksums are computed from now on."""
    hashed: list[Path] = []
    compute = reader.file_sha256
    monkeypatch.setattr(reader, "file_sha256", lambda path: hashed.append(path) or compute(path))
    return hashed


def test_not_a_bundle(tmp_path: Path, cache: Path, bundle: Path) -> None:
    refuse(tmp_path / "absent", "not a bundle", "manifest.json")
    (bundle / "manifest.json").unlink()
    refuse(bundle, "not a bundle")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_truncated(bundle: Path, name: str) -> None:
    Bundle.open(bundle)
    os.truncate(bundle / name, (bundle / name).stat().st_size - 1)
    refuse(bundle, name, "truncated")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
def test_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refuse(bundle, name, "missing")


@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "generation_config.json"])
def test_altered(bundle: Path, cache: Path, name: str, stamped: bool) -> None:
    if stamped:
        time.sleep(0.02)  # the modification time must move
    else:
        shutil.rmtree(cache / "stamps")
    data = bytearray((bundle / name).read_bytes())
    data[-1] ^= 1
    (bundle / name).write_bytes(data)
    refuse(bundle, name, "checksum")


def test_verify_finds_what_the_stamp_hides(bundle: Path) -> None:
    Bundle.open(bundle)
    file = bundle / "weights.safetensors"
    status = file.stat()
    with file.open("r+b") as weights:
        weights.seek(-100, os.SEEK_END)
        weights.write(b"\xff")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Bundle.open(bundle).path == bundle
    refuse(bundle, "weights.safetensors", "checksum", verify=True)


def test_checksums_are_computed_once(bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = record_hashing(monkeypatch)
    Bundle.open(bundle)
    assert hashed == [], "the writer knew the checksums"
    elsewhere = bundle.with_name("copy")
    shutil.copytree(bundle, elsewhere)
    manifest = Bundle.open(elsewhere).manifest
    assert hashed == [elsewhere / name for name in manifest.files]
    assert len(list((cache / "stamps").iterdir())) == 2
    Bundle.open(elsewhere)
    assert len(hashed) == len(manifest.files)
    Bundle.open(elsewhere, verify=True)
    assert len(hashed) == 2 * len(manifest.files)


def test_an_unwritable_cache_only_costs_time(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    wanted = Bundle.open(bundle).manifest
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "file" / "cache"))
    hashed = record_hashing(monkeypatch)
    for _ in range(2):  # nothing is remembered, so every load computes the checksums
        assert Bundle.open(bundle).manifest == wanted
        assert len(hashed) == len(wanted.files)
        hashed.clear()


def test_damaged_stamps_are_ignored(bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Bundle.open(bundle).manifest
    (stamp,) = (cache / "stamps").iterdir()
    good = stamp.read_bytes()
    hashed = record_hashing(monkeypatch)
    for content in (b"{", b"[1]", b'{"weights.safetensors": 3}'):
        stamp.write_bytes(content)
        assert Bundle.open(bundle).manifest == wanted
        assert {path.name for path in hashed} == set(
            wanted.files
        )  # all anew, and then the stamp is good again
        assert json.loads(stamp.read_bytes()) == json.loads(good)
        hashed.clear()


def test_altered_manifest(bundle: Path) -> None:
    file = bundle / "manifest.json"
    text = file.read_text()
    file.write_text(text.replace('"scale_emb": 12.0', '"scale_emb": 13.0'))
    refuse(bundle, "altered", "checksum")
    file.write_text(text[:-30])
    refuse(bundle, "JSON")
    file.write_text("[]")
    refuse(bundle, "JSON object")
    file.write_text("{}")
    refuse(bundle, "minicpm-edge-bundle")


@pytest.mark.parametrize(
    "name", ["../secret", "sub/inner", "sub\\inner", "{absolute}", "sub/../../secret", "./inner"]
)
def test_a_signed_manifest_cannot_name_files_elsewhere(bundle: Path, name: str) -> None:
    """Everything else about these files is right: they exist, with this size and checksum."""
    name = name.format(absolute=bundle.parent / "secret")
    (bundle / "sub").mkdir()
    for path in (bundle.parent / "secret", bundle / "inner", bundle / "sub" / "inner", bundle / "sub\\inner"):
        path.write_bytes(b"x")
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    rewrite_manifest(bundle, lambda data: data["files"].update({"inner": entry}))
    Bundle.open(bundle)
    rewrite_manifest(bundle, lambda data: data["files"].update({name: entry}))
    refuse(bundle, "cannot belong to it")


def test_links_out_of_a_bundle_are_not_followed(bundle: Path) -> None:
    (bundle / "tokenizer.json").rename(bundle.parent / "elsewhere")
    (bundle / "tokenizer.json").symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(BundleError, match=r"tokenizer\.json' is a link to a file outside the model's folder"):
        Bundle.open(bundle)
    (bundle / "manifest.json").rename(bundle.parent / "manifest")
    (bundle / "manifest.json").symlink_to("../manifest")
    with pytest.raises(BundleError, match=r"manifest\.json' is a link to a file outside the model's folder"):
        Bundle.open(bundle)


def test_newer_version(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda data: data.update(version=2, config={"future": True}))
    refuse(bundle, "version 2", "update minicpm-edge")


def test_unknown_family(bundle: Path) -> None:
    """As of a plugin that was uninstalled; who lists or diagnoses the store goes on."""
    rewrite_manifest(bundle, lambda data: data["config"].update(model_type="sapling"))
    refuse(bundle, "family 'sapling' is unknown here", "install the package that brings it")
    rewrite_manifest(bundle, lambda data: data["config"].update(model_type=["llama"]))
    refuse(bundle, "model_type must be a text")


def test_unknown_operator_and_layout(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda data: data["operators"].append("attention.sparse"))
    refuse(bundle, "attention.sparse", "update minicpm-edge")
    rewrite_manifest(bundle, lambda data: data["operators"].remove("attention.sparse"))
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite_manifest(bundle, lambda data: data["tensors"][name]["scheme"].update(layout="i4.n16k8.g32.v2"))
    refuse(bundle, "i4.n16k8.g32.v2", "update minicpm-edge")


@pytest.mark.parametrize("field", ["config", "source", "tensors", "files", "operators", "created_by"])
def test_missing_manifest_field(bundle: Path, field: str) -> None:
    rewrite_manifest(bundle, lambda data: data.pop(field))
    refuse(bundle, f"'{field}'")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data["config"].pop("rms_norm_eps"), "config.rms_norm_eps"),
        (lambda data: data["config"].update(hidden_size=-1), "hidden_size"),
        (lambda data: data["config"].update(vocab_size=78), "embed_tokens"),
        (lambda data: data["config"].update(num_hidden_layers=3), "model.layers.2"),
        (lambda data: data["config"].update(num_hidden_layers=1), "model.layers.1"),
        (lambda data: data["config"].update(num_experts=2, num_experts_per_tok=1), "num_experts"),
        (lambda data: data["tensors"].pop("model.norm.weight"), "model.norm.weight"),
        (lambda data: data["tensors"]["model.norm.weight"].update(shape=[41]), "model.norm.weight"),
        (lambda data: data["tensors"]["model.norm.weight"].update(shape=[1, 2, 3]), "wrong type"),
        (
            lambda data: data["tensors"]["lm_head.weight"].update(scheme=QuantScheme("int8", 64).to_json()),
            "lm_head.weight",
        ),
        (lambda data: data["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "../x"),
        (lambda data: data["files"].pop("weights.safetensors"), "weights.safetensors"),
        (lambda data: data.update(files=[1]), "wrong type"),
        (lambda data: data.update(version="1"), "version 1"),
    ],
)
def test_contradictions(bundle: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    rewrite_manifest(bundle, change)
    refuse(bundle, says)


def test_content_hash(
    bundle: Path, tmp_path: Path, tiny_config: Any, array_checkpoint: Callable[..., Any]
) -> None:
    first = Bundle.open(bundle)
    convert(array_checkpoint(tiny_config), tmp_path / "again", quantize="int4", head="int8")
    assert Bundle.open(tmp_path / "again").content_hash == first.content_hash
    rewrite_manifest(tmp_path / "again", lambda data: data.update(created_by="somebody"))
    assert Bundle.open(tmp_path / "again").content_hash == first.content_hash
    convert(array_checkpoint(tiny_config, seed=1), tmp_path / "other", quantize="int4", head="int8")
    assert Bundle.open(tmp_path / "other").content_hash != first.content_hash
    changed = replace(first.manifest, config=replace(tiny_config, rms_norm_eps=1e-6))
    assert changed.content_hash != first.content_hash


def test_required_operators() -> None:
    schemes = [QuantScheme("f16"), QuantScheme("int4", 32, True), QuantScheme("ternary"), QuantScheme("f32")]
    tensors = {
        str(scheme): BundleTensor("x", (4,) if scheme.kind == "f32" else (4, 4), scheme, "", True)
        for scheme in schemes
    }
    assert required_operators(tensors) == (
        "attention.dense",
        "linear.f16",
        "linear.int4.minimum",
        "linear.ternary",
    )


def test_an_existing_folder_is_not_overwritten(
    bundle: Path, tiny_config: Any, array_checkpoint: Callable[..., Any]
) -> None:
    with pytest.raises(BundleError, match="exists already"):
        convert(array_checkpoint(tiny_config), bundle)
    Bundle.open(bundle)


def test_an_error_while_writing_leaves_nothing(tmp_path: Path, tiny_config: Any) -> None:
    tensors = [
        BundleTensor(name, shape, QuantScheme("f16" if len(shape) == 2 else "f32"), "F32", True)
        for name, shape in expected_tensors(tiny_config).items()
    ]
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        BundleWriter(tmp_path / "b", tiny_config, "test", tensors) as writer,
    ):
        writer.write(tensors[0].name, np.zeros(tensors[0].bytes, np.uint8))
        raise RuntimeError("on purpose")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path: Path, tiny_config: Any, array_checkpoint: Callable[..., Any]) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BundleError, match="may write to"):
            convert(array_checkpoint(tiny_config), tmp_path / "b")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_the_way(tmp_path: Path, tiny_config: Any, array_checkpoint: Callable[..., Any]) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match=r"Cannot write|cannot be written"):
        convert(array_checkpoint(tiny_config), tmp_path / "file" / "b")


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs a file size limit that gives an error"
)
def test_full_disk(tmp_path: Path, bundle: Path) -> None:
    """A real write that fails half-way: the process may not write files of more than 4 kB."""
    code = """
        import resource, signal, sys
        from edge.formats.bundle.reader import Bundle
        from edge.formats.bundle.writer import BundleWriter
        from edge.errors import BundleError
        source = Bundle.open(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            with BundleWriter(sys.argv[2], source.config, "x", list(source.tensors.values())) as writer:
                for name in source.tensors:
                    writer.write(name, source.data(name))
        except BundleError as error:
            print("refused:", error)
    """
    result = run_python(code, str(bundle), str(tmp_path / "out"))
    assert result.stdout.startswith("refused: Cannot write"), result
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_conversion_leaves_no_bundle(tmp_path: Path, bundle: Path) -> None:
    code = """
        import sys, time
        from edge.formats.bundle.reader import Bundle
        from edge.formats.bundle.writer import BundleWriter
        source = Bundle.open(sys.argv[1])
        with BundleWriter(sys.argv[2], source.config, "x", list(source.tensors.values())) as writer:
            for name in source.tensors:
                writer.write(name, source.data(name))
                if "layers.1" in name:
                    print("half-way", flush=True)
                    time.sleep(60)
    """
    target = tmp_path / "out" / "bundle"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(bundle), str(target)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "half-way\n"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not target.exists()
    (leftover,) = target.parent.iterdir()
    assert leftover.name.startswith(".") and leftover.name.endswith(".partial")
    refuse(leftover, "not a bundle")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_opening_is_fast(tmp_path: Path, cache: Path) -> None:
    """As many tensors as the 8B has, without its bytes: what a start costs besides mapping."""
    config = replace(preset("minicpm4-8b"), hidden_size=64, intermediate_size=64, vocab_size=73441)
    config = replace(config, num_attention_heads=4, head_dim=128)
    tensors = [
        BundleTensor(
            name, shape, QuantScheme("int4", 32) if len(shape) == 2 else QuantScheme("f32"), "F32", True
        )
        for name, shape in expected_tensors(config).items()
    ]
    with BundleWriter(tmp_path / "b", config, "zeros", tensors) as writer:
        for tensor in tensors:
            writer.write(tensor.name, np.zeros(tensor.bytes, np.uint8))
    Bundle.open(tmp_path / "b")
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        Bundle.open(tmp_path / "b")
        best = min(best, time.perf_counter() - start)
    assert best < 0.05


def test_manifest_survives_its_json(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert Manifest.parse(json.dumps(manifest.to_json()).encode(), "x") == manifest
