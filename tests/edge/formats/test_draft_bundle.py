"""Draft bundles: what is written is read back, and every kind of damage is refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.checkpoints.synthetic_draft import RandomDraft, draft_shape
from edge.config.draft import draft_tensors
from edge.errors import BundleError, ConfigError
from edge.formats.bundle.manifest import WEIGHTS, BundleTensor
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles, DraftWriter, PlannedDraft, draft_folder, is_draft
from edge.formats.draft.manifest import TOKEN_IDS, TargetIdentity
from edge.formats.hashing import json_digest
from edge.quant.packing import pack
from edge.quant.scheme import PackedMatrix, QuantScheme
from tests.drafts import minicpm_target

TARGET = minicpm_target()
IDENTITY = TargetIdentity("somebody/model", "0" * 64, "1" * 64)
IDS = np.array([7, 3, 202, 2, 90], np.int32)
INT4 = QuantScheme("int4", 32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))


def write(folder: Path, rows: int | None = 5, ids: Any = IDS, identity: TargetIdentity = IDENTITY) -> Path:
    """A random draft in int4, with a head of zeros."""
    source = RandomDraft(draft_shape(TARGET), INT4)
    config = source.config.with_head(rows)
    infos = {info.name: info for info in source.tensors}
    tensors = [
        BundleTensor(
            name, tensor.shape, INT4 if len(tensor.shape) == 2 else QuantScheme("f32"), "random", True
        )
        for name, tensor in draft_tensors(config).items()
    ]
    with DraftWriter(folder, config, source.source, identity, tensors) as writer:
        for tensor in tensors:
            if tensor.name not in infos:
                writer.write(tensor.name, np.full(tensor.bytes, 0, np.uint8))
                continue
            values = source.read(tensor.name)
            data = values.data if isinstance(values, PackedMatrix) else pack(values, tensor.scheme)
            writer.write(tensor.name, data)
        if rows is not None:
            writer.write(TOKEN_IDS, np.asarray(ids, "<i4"))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest as a program that knows its checksum would."""
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    body = {name: value for name, value in data.items() if name != "sha256"}
    (folder / "manifest.json").write_text(json.dumps({**body, "sha256": json_digest(body)}))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "draft")
    draft = DraftFiles.open(folder, verify=True)
    source = RandomDraft(draft_shape(TARGET), INT4)
    assert draft.config == source.config.with_head(5) and draft.source == "random:eagle2"
    assert draft.manifest.target == IDENTITY
    assert {name: each.shape for name, each in draft.tensors.items()} == {
        name: each.shape for name, each in draft_tensors(draft.config).items()
    }
    assert draft.token_ids is not None and draft.token_ids.tolist() == IDS.tolist()
    assert draft.token_ids.dtype == np.int32
    whole = (folder / WEIGHTS).read_bytes()
    assert draft.weights_file == folder / WEIGHTS and draft.weights_bytes == len(whole)
    assert PlannedDraft(draft.config, draft.tensors).weights_bytes == len(whole)
    for name, tensor in draft.tensors.items():
        start = draft.offset(name)
        assert start % 64 == 0
        np.testing.assert_array_equal(draft.data(name), np.frombuffer(whole, np.uint8, tensor.bytes, start))
    name = "layers.0.mlp.up_proj.weight"
    stored = source.read(name)
    assert isinstance(stored, PackedMatrix)
    np.testing.assert_array_equal(draft.data(name), stored.data)
    assert is_draft(folder) and not is_draft(tmp_path)
    assert draft_folder(tmp_path) == folder and draft_folder(folder) is None


def test_with_the_targets_head(tmp_path: Path) -> None:
    draft = DraftFiles.open(write(tmp_path / "draft", rows=None))
    assert draft.token_ids is None and "lm_head.weight" not in draft.tensors
    with pytest.raises(BundleError, match=r"has no tensor 'lm_head\.weight'"):
        draft.data("lm_head.weight")
    other = DraftFiles.open(write(tmp_path / "other"))
    assert draft.content_hash != other.content_hash


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda data: data.update(format="minicpm-edge-bundle"),
            "not a manifest of the format 'minicpm-edge-d",
        ),
        (
            lambda data: data.update(version=2),
            "has format version 2, but this program reads versions up to 1",
        ),
        (lambda data: data.pop("target"), "lacks the field 'target'"),
        (lambda data: data.update(target=5), "has a field of the wrong type"),
        (lambda data: data["draft"].update(kind="eagle9"), "unusable config, .* Unknown kind of draft"),
        (lambda data: data["draft"].update(extra=1), r"Unknown field 'draft\.extra'"),
        (
            lambda data: data["draft"].update(head_rows=6),
            r"'lm_head.weight' .* shape \[5, 144\], but .* \[6, 144\]",
        ),
        (
            lambda data: data["draft"].update(head_rows=None),
            r"a tensor 'lm_head.weight' that its config does not",
        ),
        (lambda data: data["draft"].update(vocab_size=200), "are not 5 different tokens of its vocabulary"),
        (lambda data: data["tensors"].pop("fc.weight"), r"lacks the tensor 'fc\.weight'"),
        (lambda data: data["operators"].append("linear.int3"), "needs the operator 'linear.int3'"),
        (lambda data: data["files"].update({"../x": {"bytes": 1, "sha256": "0" * 64}}), "another folder"),
        (lambda data: data["files"].pop(WEIGHTS), "has no weights.safetensors in its manifest"),
        (lambda data: data["files"][WEIGHTS].update(bytes=5), "instead of 5: it is truncated"),
        (lambda data: data["files"][WEIGHTS].update(sha256="0" * 64), "altered or damaged"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, change: Callable[[Any], Any], says: str) -> None:
    folder = write(tmp_path / "draft")
    rewrite(folder, change)
    with pytest.raises(BundleError, match=says) as caught:
        DraftFiles.open(folder)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_damage(tmp_path: Path) -> None:
    folder = write(tmp_path / "draft")
    with pytest.raises(BundleError, match=r"is not a draft bundle: it has no manifest\.json"):
        DraftFiles.open(tmp_path)
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[:-1])
    with pytest.raises(BundleError, match="truncated"):
        DraftFiles.open(folder)
    (folder / WEIGHTS).write_bytes(weights[:-8] + bytes(8))
    with pytest.raises(BundleError, match="altered or damaged"):
        DraftFiles.open(folder, verify=True)
    (folder / WEIGHTS).unlink()
    with pytest.raises(BundleError, match="is missing"):
        DraftFiles.open(folder)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("random:eagle2", "random:eagle3"))
    with pytest.raises(BundleError, match="was altered after it was written"):
        DraftFiles.open(folder)


@pytest.mark.parametrize("ids", [[7, 3, 202, 2, 7], [7, 3, 203, 2, 90], [7, 3, -1, 2, 90]])
def test_token_ids_that_are_refused(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(BundleError, match="are not 5 different tokens of its vocabulary"):
        write(tmp_path / "draft", ids=ids)
    assert not (tmp_path / "draft").exists()  # what is not sound does not appear


def test_a_draft_belongs_to_its_target(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> None:
    target = make_bundle(TARGET, INT4, tokenizer=True)
    identity = TargetIdentity.of(target)
    assert identity.weights == target.manifest.files[WEIGHTS].sha256 and identity.tokenizer is not None
    draft = DraftFiles.open(write(tmp_path / "draft", identity=identity))
    draft.check_target(target)
    draft.check_target(target.with_config(replace(TARGET, max_position_embeddings=4096)))  # the same weights
    with pytest.raises(BundleError, match="is a draft for 'random weights' with other weights than"):
        draft.check_target(make_bundle(TARGET, INT4, seed=1, tokenizer=True))
    stranger = replace(identity, tokenizer="2" * 64)
    with pytest.raises(BundleError, match="with other tokenizer than"):
        DraftFiles.open(write(tmp_path / "stranger", identity=stranger)).check_target(target)
    with pytest.raises(ConfigError, match="whose hidden_size is 144, not 160 as here"):
        draft.check_target(make_bundle(minicpm_target(hidden_size=160), INT4))
