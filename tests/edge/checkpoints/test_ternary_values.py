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
from edge.checkpoints.ternary_values import ternary_scheme
from edge.config.huggingface import config_from_hf
from edge.config.tensors import expected_tensors
from edge.formats.bundle.reader import Bundle
from edge.hub.resolve import open_model
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


def detect(matrix: torch.Tensor) -> QuantScheme | None:
    values = matrix.float().numpy()
    return ternary_scheme(len(values), lambda rows: values[rows])


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
    assert detect(ternary.float() * 1.0001) is None  # scales that float16 rounds
    quarter = ternary.float() * 2.0**-20
    assert detect(quarter) is None  # scales below float16's normal numbers


def test_a_folder_keeps_its_ternary_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the folder is called: matrices become ternary in their own groups, bit for bit."""
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "plain-name"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    generator = torch.Generator().manual_seed(5)
    shapes = expected_tensors(config_from_hf(CONFIG))
    weights = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    groups = {"q_proj": 32, "up_proj": 0, "down_proj": 64}
    for name, weight in weights.items():
        for part, group in groups.items():
            if part in name:
                weights[name] = fake_quantized(*weight.shape, group)
    save_file(weights, folder / "model.safetensors")
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
            found = dequantize(bundle.data(name), tensor.scheme, tensor.rows, tensor.columns)
            np.testing.assert_array_equal(found, weights[name].float().numpy())
            assert tensor.exact
    assert str(bundle.tensors["lm_head.weight"].scheme) == "int8-g32"
    assert bundle.tensors["model.layers.0.mlp.down_proj.weight"].scheme == QuantScheme("ternary", 64)
