"""The folder that an export makes: complete and checked or not there, and refused when it is damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.errors import ArtifactError, ConfigError, ContextError, ExportError
from edge.export.artifact import check_artifact, export_model, plan_export, small_files_bytes
from edge.export.check import (
    POSITIONS,
    Reference,
    compare_logits,
    exact_executor,
    make_reference,
    read_reference,
    run_executor,
    with_reach,
)
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.export.targets import get_target, need
from edge.export.targets.bundle import _decoder
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import ARTIFACT, REFERENCE, ArtifactManifest, RuntimeRange, version_key
from edge.formats.atomic import Partial
from edge.formats.bundle.reader import Bundle
from edge.formats.hashing import json_digest
from edge.hub.convert import convert
from edge.measure.inspection import inspect_model
from edge.quant.scheme import QuantScheme
from edge.runtime import load
from tests.durability import LINUX, Recorder

from .tiny import byte_tokenizer_files, llama_config, make_checkpoint, make_source, minicpm_config

BUNDLE = ExportOptions("bundle")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A bundle artifact of a tiny network."""
    return export_model(make_source(tmp_path, llama_config(num_hidden_layers=1)), BUNDLE, tmp_path / "out")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], digest: bool = True) -> None:
    """Change `artifact.json`, with a right checksum unless digest is false."""

    data = json.loads((folder / ARTIFACT).read_text())
    change(data)
    if digest:
        data["sha256"] = json_digest({name: value for name, value in data.items() if name != "sha256"})
    (folder / ARTIFACT).write_text(json.dumps(data))


def test_a_folder_has_everything(artifact: Artifact, tmp_path: Path):
    manifest = artifact.manifest
    names = {path.name for path in artifact.path.iterdir()}
    assert names == {ARTIFACT, *manifest.files}
    assert {"weights.safetensors", "manifest.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"chat_template.jinja", "generation_config.json", REFERENCE} <= names
    assert manifest.target == "bundle" and manifest.context == 256 and manifest.attention == "dense"
    assert manifest.source == "tiny"
    assert manifest.quantization.name == manifest.quantization.method == "source"
    assert manifest.operators == {"attention.dense": 1, "linear.int4": 1}
    assert manifest.total_bytes == sum((artifact.path / name).stat().st_size for name in manifest.files)
    assert ArtifactManifest.parse((artifact.path / ARTIFACT).read_bytes(), "here") == manifest
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_floats_that_were_rounded_without_a_name(tmp_path: Path):
    """A folder of floats becomes int4 by default; what is recorded is what it became."""
    convert(
        make_checkpoint(llama_config(num_hidden_layers=1), QuantScheme("f16")), tmp_path / "b", floats="auto"
    )
    manifest = export_model(Source(Bundle.open(tmp_path / "b")), BUNDLE, tmp_path / "out").manifest
    assert (manifest.quantization.name, manifest.quantization.method) == ("int4-g32", "rtn")


def test_somebody_else_s_choice_of_blocks(tmp_path: Path):
    """The constants stand in every manifest, and what runs the folder reads them there."""
    config = llama_config(num_hidden_layers=1, sparse=SparseConfig(dense_len=64, window_size=64, topk=2))
    source = make_source(tmp_path, config)
    wanted = SparseConfig(dense_len=64, window_size=128, topk=1, exact_lse=True)
    artifact = export_model(source, ExportOptions("bundle", selection="minicpm4"), tmp_path / "out")
    assert artifact.config.sparse == Bundle.open(artifact.path).config.sparse == wanted
    decoder = json.loads((artifact.path / "decoder.json").read_text())
    assert decoder["sparse"] == asdict(wanted) and artifact.manifest.attention == "sparse"
    assert artifact.manifest.source_sha256 != source.sha256 and check_artifact(artifact.path).passed
    with load(artifact.path) as model:
        assert model.executor.info.sparse == wanted
    with pytest.raises(ConfigError, match=r"llama\.cpp has no block-sparse attention"):
        export_model(source, ExportOptions("gguf", selection="paper"), tmp_path / "gguf")


def test_a_program_without_python_attends_as_the_folder_was_exported(tmp_path: Path):
    """Whatever the model's own constants are: dense where that was asked for, and where it is too short."""
    own = SparseConfig(dense_len=64, window_size=64, topk=2)
    source = make_source(tmp_path, llama_config(num_hidden_layers=1, sparse=own))
    for options, sparse in (({}, own), ({"attention": "dense"}, None), ({"context": 64}, None)):
        found = json.loads(_decoder(source, ExportOptions("bundle", **options)))
        assert found["sparse"] == (None if sparse is None else asdict(sparse))


def test_the_bundle_runs_and_passes_its_check(artifact: Artifact):
    result = check_artifact(artifact.path)
    assert result.passed and result.divergence < 1e-9 and result.agreement == 1
    reference = read_reference(artifact)
    with load(artifact.path, activations="float32", kv_type="float32") as model:
        found = model.complete(reference.prompt, max_new_tokens=len(reference.answer), temperature=0)
    assert list(found.tokens) == reference.answer


def test_memory_is_planned_for_what_is_asked_else_for_the_exported_context(artifact: Artifact):
    """Whose network may be made for more."""
    shorter = Artifact(artifact.path, replace(artifact.manifest, context=100))
    assert artifact.config.max_position_embeddings > 100
    assert [inspect_model(shorter, context=asked).memory.context for asked in (None, 40)] == [100, 40]


def test_the_report_of_a_quantizer_comes_along(tmp_path: Path):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    source.report = b'{"layers": []}'
    artifact = export_model(source, BUNDLE, tmp_path / "out")
    assert "quantization.json" in artifact.manifest.files
    assert (artifact.path / "quantization.json").read_bytes() == source.report


def test_the_same_source_gives_the_same_bytes(tmp_path: Path):
    source = make_source(tmp_path, minicpm_config(num_hidden_layers=1))
    texts = [
        (export_model(source, BUNDLE, tmp_path / name).path / ARTIFACT).read_bytes() for name in ("a", "b")
    ]
    assert texts[0] == texts[1]


def test_the_reference_is_what_the_network_computes(tmp_path: Path):
    import torch

    from edge.model.weights.checkpoint import reference_from_bundle

    source = make_source(tmp_path, minicpm_config())
    reference = make_reference(source, 256)
    assert reference.logits.shape == (POSITIONS, 300) and len(reference.answer) == POSITIONS - 1
    decoder = reference_from_bundle(source.bundle, 256)
    with torch.no_grad():
        truth = decoder(torch.from_numpy(reference.tokens[None].astype(np.int64)))[0, -POSITIONS:].numpy()
    np.testing.assert_allclose(reference.logits, truth, rtol=0, atol=1e-4)
    assert reference.answer == [int(row.argmax()) for row in truth[:-1]]


@pytest.mark.parametrize(
    "name", [field.name for field in fields(ArtifactManifest) if field.name not in ("files", "config")]
)
def test_no_metadata_may_be_missing(artifact: Artifact, name: str):
    """A missing field is refused on the way in; an empty one can't even be made, so it is never written."""
    if name not in ("chat_template", "generation_config"):  # null says that the model has none
        empty: Any = {"operators": {}, "context": 0}.get(name, "")
        if name not in ("runtime", "quantization"):
            with pytest.raises(ArtifactError, match=name):
                replace(artifact.manifest, **{name: empty})
    rewrite(artifact.path, lambda data: data.pop(name))
    with pytest.raises(ArtifactError, match=f"'{name}'"):
        Artifact.open(artifact.path)


def test_parts_of_the_metadata_may_not_be_missing(artifact: Artifact):
    manifest = artifact.manifest
    tensors = dict(manifest.quantization.tensors)
    tensors.pop("model.norm.weight")
    without = {name: entry for name, entry in manifest.files.items() if name != REFERENCE}
    for changes, field in (
        ({"quantization": replace(manifest.quantization, tensors=tensors)}, r"tensors\.model\.norm\.weight"),
        ({"quantization": replace(manifest.quantization, method="")}, r"quantization\.method"),
        ({"operators": {"attention.dense": 0}}, r"operators\.attention\.dense"),
        ({"config": replace(manifest.config, eos_token_ids=())}, "eos_token_ids"),
        ({"files": without}, f"files.{REFERENCE}"),
        ({"model": "other.bin"}, r"files\.other\.bin"),
        ({"files": {**manifest.files, "../x": manifest.files[REFERENCE]}}, "cannot belong"),
    ):
        with pytest.raises(ArtifactError, match=field):
            replace(manifest, **changes)
    with pytest.raises(ArtifactError, match=r"runtime\.minimum"):
        RuntimeRange("onnxruntime", "")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "chat_template.jinja", REFERENCE])
def test_a_damaged_file_is_found(artifact: Artifact, name: str):
    path = artifact.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name}' was altered or damaged"):
        check_artifact(artifact.path)
    path.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=f"{len(data) - 1} bytes instead of {len(data)}"):
        check_artifact(artifact.path)
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        check_artifact(artifact.path)


@pytest.mark.parametrize("change", [1, -1])
def test_a_file_of_another_size_is_found_without_its_checksum(artifact: Artifact, change: int):
    file = artifact.path / "weights.safetensors"
    os.truncate(file, file.stat().st_size + change)
    with pytest.raises(ArtifactError, match=r"has \d+ bytes instead of \d+"):
        Artifact.open(artifact.path, verify=False)


def test_a_manifest_of_version_1_had_float16_caches(artifact: Artifact):
    def older(data):
        data.update(version=1, flavour="full")
        del data["kv_type"]

    rewrite(artifact.path, older)
    assert Artifact.open(artifact.path).kv_type == "float16"
    rewrite(artifact.path, lambda data: data.update(version=2))
    with pytest.raises(ArtifactError, match="lacks the field 'kv_type'"):
        Artifact.open(artifact.path)


def test_a_changed_manifest_is_found(artifact: Artifact):
    rewrite(artifact.path, lambda data: data.update(context=512), digest=False)
    with pytest.raises(ArtifactError, match="altered after it was written"):
        Artifact.open(artifact.path)
    rewrite(artifact.path, lambda data: data.update(version=3))
    with pytest.raises(ArtifactError, match="version 3"):
        Artifact.open(artifact.path)
    (artifact.path / ARTIFACT).write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        Artifact.open(artifact.path)
    (artifact.path / ARTIFACT).unlink()
    with pytest.raises(ArtifactError, match=f"has no {ARTIFACT}"):
        Artifact.open(artifact.path)


def test_wrong_types_in_a_manifest_are_one_sentence(artifact: Artifact):
    whole = (artifact.path / ARTIFACT).read_text()
    for name in json.loads(whole):
        for value in (None, 3, -1, "", "x", [], {}, [1], {"x": 1}, True, 1e300):
            if name in ("sha256", "format", "version") or (value is None and name in ("chat_template",)):
                continue
            (artifact.path / ARTIFACT).write_text(whole)
            rewrite(artifact.path, lambda data, n=name, v=value: data.update({n: v}))
            try:
                Artifact.open(artifact.path)
            except ArtifactError as error:
                assert "\n" not in str(error)


def test_a_runtime_outside_the_range_is_refused(artifact: Artifact):
    known = RuntimeRange("onnxruntime", "1.20", "2")
    for good in ("1.20", "1.20.1", "1.32.0rc1", "1.100"):
        known.check(good)
    for bad in ("1.19.9", "1.3", "2", "2.0.1"):
        with pytest.raises(ArtifactError, match=rf"needs onnxruntime >= 1.20, < 2, but version {bad} is"):
            known.check(bad)
    assert version_key("0.3.36+cpu") == (0, 3, 36) and version_key("1.20.1rc2") == (1, 20, 1)
    assert version_key("1.\u00b2") == version_key(f"1.{'9' * 5000}") == (1,), "digits that int does not take"
    rewrite(artifact.path, lambda data: data["runtime"].update(minimum="99.0"))
    with pytest.raises(ArtifactError, match=r"needs minicpm-edge >= 99\.0"):
        check_artifact(artifact.path)


def test_an_artifact_for_another_target_is_refused(artifact: Artifact):
    with pytest.raises(ArtifactError, match="exported to bundle, but onnx is needed"):
        Artifact.open(artifact.path, target="onnx")


def test_wrong_weights_fail_the_check(artifact: Artifact):
    reference = read_reference(artifact)
    logits = reference.logits[:, ::-1].copy()
    result = compare_logits(reference, logits, runtime="x", version="1", limit=0.1)
    assert not result.passed and result.divergence > 0.1
    logits[0, 0] = np.nan
    with pytest.raises(ArtifactError, match="not finite"):
        compare_logits(reference, logits, runtime="x", version="1", limit=0.1)
    with pytest.raises(ArtifactError, match="shape"):
        compare_logits(reference, logits[:2], runtime="x", version="1", limit=0.1)


@pytest.mark.parametrize("wrong", range(POSITIONS))
def test_one_wrong_position_fails_the_check(wrong: int):
    """1/2 and 1/2 against 3/4 and 1/4 are ln(4/3) / 2 nats apart, too far; a mean over four would pass."""
    reference = Reference(np.arange(9, dtype=np.int32), np.tile(np.float32([5, 5, -90]), (POSITIONS, 1)))
    logits = reference.logits.copy()
    logits[wrong, 0] += np.log(np.float32(3))
    result = compare_logits(reference, logits, runtime="x", version="1", limit=0.1)
    assert result.divergence == pytest.approx(np.log(4 / 3) / 2, rel=1e-5) and not result.passed
    assert result.largest_error == pytest.approx(np.log(3), rel=1e-5)
    logits[wrong] = [4, 6, -90]
    result = compare_logits(reference, logits, runtime="x", version="1", limit=1)
    assert result.agreement == 1 - 1 / POSITIONS and result.passed
    for shift in (7, -7):
        same = compare_logits(reference, reference.logits + shift, runtime="x", version="1", limit=1e-9)
        assert same.passed and same.divergence == pytest.approx(0, abs=1e-12) and same.agreement == 1
        assert same.largest_error == 7


SHORT = SparseConfig(dense_len=64, window_size=64, topk=2)  # 3 blocks of 64 are read
LONG_DENSE = SparseConfig(dense_len=320, window_size=64, topk=2)


@pytest.mark.parametrize(("sparse", "first_choice"), [(SHORT, 192), (LONG_DENSE, 320)])
def test_the_reference_of_sparse_attention_chooses(tmp_path: Path, sparse: SparseConfig, first_choice: int):
    """Queries see more blocks than they read, so that what they leave out tells in the logits."""
    config = llama_config(num_hidden_layers=1, sparse=sparse, max_position_embeddings=1024)
    source = make_source(tmp_path, config)
    found, dense = make_reference(source, 1024, "sparse"), make_reference(source, 1024)
    assert len(found.tokens) - POSITIONS >= first_choice + 64
    assert len(dense.tokens) < 64
    unread = run_executor(exact_executor(source.bundle, 1024, "dense"), found)
    assert np.abs(unread - found.logits).max(axis=1).min() > 1e-3
    short = make_reference(source, first_choice - 8, "sparse")
    result = compare_logits(short, short.logits, runtime="x", version="1", limit=1)
    (remark,) = with_reach(result, short, config).remarks
    assert f"chooses blocks only beyond {first_choice}" in remark
    result = compare_logits(found, found.logits, runtime="x", version="1", limit=1)
    assert with_reach(result, found, config).remarks == ()
    for length, remarks in (
        (first_choice, 1),
        (first_choice + 1, 0),
    ):  # the next query is the first to choose
        cut = Reference(found.tokens[:length], found.logits)
        assert len(with_reach(result, cut, config).remarks) == remarks


@pytest.mark.parametrize("target", ["bundle", "gguf"])
def test_sizes_are_as_planned(tmp_path: Path, target: Any):
    source, options = make_source(tmp_path, minicpm_config()), ExportOptions(target)
    plan = plan_export(source, options)
    found = export_model(source, options, tmp_path / "out").manifest.files
    for name, size in plan.files.items():
        assert found[name].bytes == pytest.approx(size, rel=0.02), name
    written = plan.bytes + small_files_bytes(source)
    assert sum(entry.bytes for entry in found.values()) == pytest.approx(written, rel=0.02)


def test_nothing_is_overwritten(artifact: Artifact, tmp_path: Path):
    with pytest.raises(ExportError, match="exists already"):
        export_model(make_source(tmp_path, llama_config(num_hidden_layers=1)), BUNDLE, artifact.path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from edge.formats.bundle.reader import Bundle
from edge.errors import ExportError
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.export.source import Source
source = Source(Bundle.open(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export_model(source, ExportOptions(sys.argv[3]), sys.argv[2])
except ExportError as error:
    print(error)
"""


@pytest.mark.parametrize("target", ["bundle", "gguf"])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, target: str):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-c", FULL_DISK, str(source.bundle.path), str(place / "out"), target]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sentence = {"bundle": f"Cannot write '{place / 'out'}': {os.strerror(errno.EFBIG)}."}
    assert sentence.get(target, f"The disk is full while writing '{place / 'out'}'") in done.stdout
    assert list(place.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two ways to find out: too little room before the start, and ENOSPC of a write."""
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage(1000))
    with pytest.raises(ExportError, match=r"needs \d+ kB, but only 1.00 kB are free"):
        export_model(source, BUNDLE, tmp_path / "out")
    monkeypatch.undo()

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(ExportError, match="The disk is full while writing"):
        export_model(source, BUNDLE, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-0"]


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_killed_export_is_cleaned_up_by_the_next(tmp_path: Path):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".out.{dead.pid}-abcd.partial"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    with Partial(tmp_path / "out", folder=True) as running:
        export_model(source, BUNDLE, tmp_path / "out")
        assert running.path.exists()  # another export that is still at work keeps its folder
    assert not left.exists()


def test_an_interrupted_export_leaves_nothing(tmp_path: Path):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))

    def interrupt(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    for target in ("bundle", "gguf"):
        with pytest.raises(KeyboardInterrupt):
            export_model(source, ExportOptions(target), tmp_path / "out", interrupt)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-0"]


def test_a_tokenizer_that_contradicts_the_vocabulary_is_refused(tmp_path: Path):
    small = make_source(tmp_path, llama_config(num_hidden_layers=1, vocab_size=260, eos_token_ids=(2,)))
    with pytest.raises(ExportError, match=r"can't be exported with this tokenizer.*260"):
        export_model(small, BUNDLE, tmp_path / "out")
    none = make_source(tmp_path, llama_config(num_hidden_layers=1), tokenizer_files={"x.json": b"{}"})
    with pytest.raises(ExportError, match="has no tokenizer"):
        plan_export(none, BUNDLE)
    broken = {**byte_tokenizer_files(), "tokenizer.json": b"{"}
    with pytest.raises(ExportError, match=r"tokenizer\.json"):
        plan_export(make_source(tmp_path, llama_config(num_hidden_layers=1), tokenizer_files=broken), BUNDLE)


def test_a_context_out_of_range_is_refused(tmp_path: Path):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    with pytest.raises(ContextError, match="257 tokens is beyond the 256"):
        plan_export(source, ExportOptions("bundle", context=257))
    with pytest.raises(ExportError, match="too short for the check"):
        export_model(source, ExportOptions("bundle", context=3), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": "tflite"}, "Unknown target 'tflite'; choose one of bundle"),
        ({"quantize": "int2"}, "Unknown quantization 'int2'"),
        ({"method": "awq"}, "Unknown method"),
        ({"attention": "linear"}, "Unknown attention"),
        ({"method": "gptq"}, "choose how to round; give `--quantize int4`"),
        ({"smooth": True, "quantize": "ternary"}, "choose how to round"),
        ({"calibration": Path("x"), "quantize": "int4"}, "needs no calibration text"),
        ({"head": "int8"}, "`--head` belongs to `--quantize`"),
        ({"context": 0}, "whole number of 1 or more"),
        ({"gguf_type": "q4_0"}, "belongs to `--to gguf`, not to bundle"),
        ({"portable": True}, "bundle has only one"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], sentence: str):
    with pytest.raises(ExportError, match=sentence.replace("`", ".")):
        ExportOptions(**{"target": "bundle", **options})


def test_unknown_targets_and_missing_libraries_are_named():
    with pytest.raises(ExportError, match="Unknown target 'x'; choose one of"):
        get_target("x")
    with pytest.raises(
        ExportError, match=r"A thing needs the package no_such_library.*minicpm-edge\[export\]"
    ):
        need("no_such_library.part", "A thing")


@LINUX
def test_an_artifact_is_synced_read_back_renamed_and_its_folder_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = make_source(tmp_path, llama_config(num_hidden_layers=1))
    recorder = Recorder(monkeypatch)
    recorder.record(Artifact, "open", "read back")
    export_model(source, BUNDLE, tmp_path / "out")
    recorder.assert_durable(tmp_path / "out", "read back")


@pytest.mark.parametrize(
    "name", ["../secret", "sub\\inner", "{absolute}", "sub/../../secret", "sub//inner", ".."]
)
def test_a_signed_manifest_cannot_name_files_elsewhere(artifact: Artifact, name: str):
    """Everything else about these files is right; one in a folder of the artifact is taken."""
    folder = artifact.path
    name = name.format(absolute=folder.parent / "secret")
    (folder / "sub").mkdir()
    for path in (folder.parent / "secret", folder / "sub" / "inner", folder / "sub\\inner"):
        path.write_bytes(b"x")
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    rewrite(folder, lambda data: data["files"].update({"sub/inner": entry}))
    Artifact.open(folder)
    rewrite(folder, lambda data: data["files"].update({name: entry}))
    with pytest.raises(ArtifactError, match="cannot belong to it"):
        Artifact.open(folder)


def test_links_out_of_an_artifact_are_not_followed(artifact: Artifact):
    path = artifact.path / "tokenizer.json"
    path.rename(artifact.path.parent / "elsewhere")
    path.symlink_to(artifact.path.parent / "elsewhere")
    with pytest.raises(ArtifactError, match="outside the model's folder"):
        Artifact.open(artifact.path)
