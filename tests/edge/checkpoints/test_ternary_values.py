"""Fake-quantized ternary weights in float files: found by their values, packed without loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.checkpoints.ternary_values import TernaryValues, find_ternary
from edge.config.huggingface import config_from_hf
from edge.config.tensors import expected_tensors
from edge.errors import CheckpointError
from edge.formats.bundle.reader import Bundle
from edge.hub.resolve import open_model, plan_model
from edge.quant.packing import dequantize
from edge.quant.scheme import QuantScheme
from tests.configs import TOKENIZER

ROWS = 21
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def fake_quantized(rows: int, columns: int, group: int, seed: int = 0) -> torch.Tensor:
    """bfloat16 as BitCPM's training leaves it: clip(round(w / s), -1, 1) * s with s = mean |w| of a group."""
    weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    parts = []
    for part in weights.split(group or columns, dim=1):
        scale = part.abs().mean(dim=1, keepdim=True).clamp(min=1e-5).bfloat16().float()
        parts.append((part / scale).round().clamp(-1, 1) * scale)
    return torch.cat(parts, dim=1).bfloat16()


def found(matrix: torch.Tensor) -> TernaryValues | None:
    values = matrix.float().numpy()
    return find_ternary(len(values), lambda rows: values[rows])


def detect(matrix: torch.Tensor) -> QuantScheme | None:
    """The scheme of what is held exactly."""
    ternary = found(matrix)
    assert ternary is None or ternary.exact
    return None if ternary is None else ternary.scheme


@pytest.mark.parametrize("columns", [256, 288, 1000])
@pytest.mark.parametrize("group", [32, 64, 96, 128, 0])
def test_the_group_is_found(group: int, columns: int) -> None:
    assert detect(fake_quantized(ROWS, columns, group)) == QuantScheme("ternary", group)


def test_one_scale_for_a_whole_matrix() -> None:
    assert detect(torch.sign(torch.randn(ROWS, 128)) * 0.03125) == QuantScheme("ternary", 0)


@pytest.mark.parametrize("sizes", [(1.0, 0.5), (0.5, 1.0)])
def test_one_change_of_size_is_enough(sizes: tuple[float, float]) -> None:
    """A single row, whose second half is larger or smaller."""
    matrix = torch.cat([torch.full((1, 128), size) for size in sizes], dim=1)
    assert detect(matrix) == QuantScheme("ternary", 128)


def test_what_is_not_ternary() -> None:
    ternary = fake_quantized(ROWS, 256, 64)
    assert detect(torch.randn(ROWS, 256).bfloat16()) is None
    assert detect(torch.zeros(ROWS, 256)) is None
    assert detect(fake_quantized(ROWS, 256, 16)) is None  # smaller than any group that we can store
    last = ternary.clone()
    last[-1, 70] = 0.5  # one weight, in a row that the sample leaves out
    assert detect(last) is None
    assert detect(ternary.float() * 2.0**-20) is None  # scales below float16's normal numbers
    assert detect(ternary.float() * 2.0**24) is None  # and beyond its largest
    wide = ternary.float()
    assert detect(torch.where(wide > 0, 0.75 * wide, wide)) is None  # each sign has a size of its own


def trained_in_float32(rows: int, columns: int, group: int) -> torch.Tensor:
    """The same training with scales that are no float16 numbers."""
    weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(4)) * 0.02
    parts = weights.split(group or columns, dim=1)
    return torch.cat([part.sign() * (part.abs() > 0.01) * part.abs().mean(1, True) for part in parts], dim=1)


@pytest.mark.parametrize("group", [32, 128, 0])
def test_scales_of_float32_are_rounded_and_said_to_be(group: int) -> None:
    matrix = trained_in_float32(ROWS, 256, group)
    assert found(matrix) == TernaryValues(QuantScheme("ternary", group), exact=False)
    assert found(matrix.half()) == TernaryValues(QuantScheme("ternary", group), exact=True)


def test_one_rounded_scale_among_exact_ones() -> None:
    """In a row that the sample leaves out."""
    matrix = fake_quantized(ROWS, 256, 32).float()
    matrix[-1, -32:] *= 1.0001
    assert found(matrix) == TernaryValues(QuantScheme("ternary", 32), exact=False)


def test_every_block_of_rows_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix is looked at in pieces: the first rows have smaller groups, and scales that are rounded."""
    monkeypatch.setattr("edge.checkpoints.ternary_values._BLOCK_WEIGHTS", 4 * 256)
    rows, whole = fake_quantized(24, 256, 32).float(), fake_quantized(24, 256, 0, seed=1).float()
    assert (
        detect(torch.cat([rows[:4], whole]))
        == detect(torch.cat([whole, rows[:4]]))
        == QuantScheme("ternary", 32)
    )
    rounded = trained_in_float32(4, 256, 0)
    for matrix in (torch.cat([rounded, whole]), torch.cat([whole, rounded])):
        assert found(matrix) == TernaryValues(QuantScheme("ternary"), exact=False)


@pytest.mark.parametrize("weights", [0, 1, 7, 11])
def test_rows_of_zeros_are_ternary_beside_others(weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four rows, in one of which one row is not zero; zeros alone are no training's result."""
    monkeypatch.setattr("edge.checkpoints.ternary_values._BLOCK_WEIGHTS", 4 * 256)
    matrix = torch.zeros(12, 256)
    matrix[weights, ::3] = 0.5
    assert found(matrix) == TernaryValues(QuantScheme("ternary"), exact=True)
    assert found(torch.zeros(12, 256)) is None


LAYERS = {"_proj": 32}


def save_folder(folder: Path, groups: dict[str, int], spoilt: str | None = None) -> dict[str, torch.Tensor]:
    """A bfloat16 folder in which matrices of these parts of names are ternary, all but the spoilt one."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    generator = torch.Generator().manual_seed(5)
    shapes = expected_tensors(config_from_hf(CONFIG))
    weights = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    for name, weight in weights.items():
        for part, group in groups.items():
            if part in name and name != spoilt:
                weights[name] = fake_quantized(*weight.shape, group)
    save_file(weights, folder / "model.safetensors")
    return weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))


def stored(bundle: Bundle, name: str) -> np.ndarray:
    tensor = bundle.tensors[name]
    return dequantize(bundle.data(name), tensor.scheme, tensor.rows, tensor.columns)


def test_a_folder_keeps_its_ternary_weights(tmp_path: Path) -> None:
    """Whatever the folder is called: matrices become ternary in their own groups, bit for bit."""
    folder, groups = tmp_path / "plain-name", {"q_proj": 32, "up_proj": 0, "down_proj": 64}
    weights = save_folder(folder, groups)
    checkpoint = HuggingFaceCheckpoint(folder)
    for info in checkpoint.tensors:
        group = next((group for part, group in groups.items() if part in info.name), None)
        ternary = group is not None
        assert (info.scheme.kind == "ternary") == ternary and info.exact
        if ternary:
            assert (info.scheme.group, info.source_type) == (group, "BF16 ternary")
    bundle = open_model(folder)
    assert isinstance(bundle, Bundle)
    for name, tensor in bundle.tensors.items():
        if tensor.scheme.kind == "ternary":
            np.testing.assert_array_equal(stored(bundle, name), weights[name].float().numpy())
            assert tensor.exact
    assert str(bundle.tensors["lm_head.weight"].scheme) == "int8-g32"
    assert bundle.tensors["model.layers.0.mlp.down_proj.weight"].scheme == QuantScheme("ternary", 64)


def test_a_float32_folder_is_ternary_too(tmp_path: Path) -> None:
    """Scales are rounded, which is told; int4 made one sign an eighth smaller than the other."""
    folder = tmp_path / "model"
    weights = {
        name: trained_in_float32(*weight.shape, 32) if "_proj" in name else weight.float()
        for name, weight in save_folder(folder, {}).items()
    }
    save_file(weights, folder / "model.safetensors")
    bundle = open_model(folder)
    assert isinstance(bundle, Bundle)
    for name, tensor in bundle.tensors.items():
        if "_proj" in name:
            assert (str(tensor.scheme), tensor.source_type, tensor.exact) == (
                "ternary-g32",
                "F32 ternary",
                False,
            )
            np.testing.assert_allclose(stored(bundle, name), weights[name].numpy(), rtol=2**-11)


def test_asked_for_by_name(tmp_path: Path) -> None:
    """Layers keep their own groups; embedding and head, which nobody trained so, are not made ternary."""
    weights = save_folder(tmp_path / "model", LAYERS)
    bundle = open_model(tmp_path / "model", quantize="ternary")
    assert isinstance(bundle, Bundle)
    for name, tensor in bundle.tensors.items():
        if "_proj" in name:
            assert str(tensor.scheme) == "ternary-g32" and tensor.exact
            np.testing.assert_array_equal(stored(bundle, name), weights[name].float().numpy())
        elif len(tensor.shape) == 2:
            assert str(tensor.scheme) == "int8-g32"
    assert (
        str(open_model(tmp_path / "model", quantize="ternary", head="f16").tensors["lm_head.weight"].scheme)
        == "f16"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"quantize": "ternary"},
            r"1 of its 14 linear layers are not, .*layers\.1\.mlp\.up_proj.* by [3-6]\d\.\d\d%",
        ),
        ({"quantize": "ternary", "head": "int4"}, "not ternary"),
        ({"quantize": "ternary-g64"}, "not ternary"),
        ({"quantize": "int4", "head": "ternary"}, r"2 of its 2 embeddings and heads are not, .*embed_tokens"),
        ({"head": "ternary"}, "not ternary"),
    ],
)
def test_what_was_not_trained_so_is_refused(tmp_path: Path, options: dict[str, str], says: str) -> None:
    """For a chat as for an export: rounding to three values leaves noise."""
    save_folder(tmp_path / "model", LAYERS, spoilt="model.layers.1.mlp.up_proj.weight")
    for opened in (open_model, plan_model):
        with pytest.raises(CheckpointError, match=says):
            opened(tmp_path / "model", **options)


def test_other_groups_than_those_of_the_training_are_refused(tmp_path: Path) -> None:
    save_folder(tmp_path / "model", LAYERS)
    with pytest.raises(CheckpointError, match="is ternary-g32, not ternary-g64, and keeps the groups"):
        open_model(tmp_path / "model", quantize="ternary-g64")
    assert open_model(tmp_path / "model", quantize="ternary-g32").source
