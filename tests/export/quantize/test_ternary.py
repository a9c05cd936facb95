"""Fake-quantized ternary checkpoints: packed so that unpacking is bit-equal, all others refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.checkpoints.synthetic import RandomCheckpoint
from edge.checkpoints.trained import kind_distance
from edge.config import ModelConfig
from edge.errors import CheckpointError
from edge.export.quantize import QuantizeOptions, quantize_checkpoint
from edge.formats.bundle.reader import Bundle
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import save_huggingface
from edge.quant.packing import dequantize
from edge.quant.scheme import QuantScheme


def fake_quantized(weights: torch.Tensor, group: int) -> torch.Tensor:
    """What BitCPM's training saves: clip(round(w / s), -1, 1) * s with s = mean |w| of a group, bfloat16."""
    parts = []
    for part in weights.split(group or weights.shape[1], dim=1):
        scale = part.abs().mean(dim=1, keepdim=True).clamp(min=1e-5).bfloat16().float()
        parts.append((part / scale).round().clamp(-1, 1) * scale)
    return torch.cat(parts, dim=1).bfloat16()


def save(folder: Path, config: ModelConfig, group: int, spoilt: str | None = None) -> HuggingFaceCheckpoint:
    torch.manual_seed(3)
    tensors = {}
    for name, tensor in Decoder(config).state_dict().items():
        if "_proj" in name and name != spoilt:
            tensors[name] = fake_quantized(tensor, group)
        else:
            tensors[name] = tensor.bfloat16()
    files = RandomCheckpoint(config, QuantScheme("f16")).tokenizer_files
    save_huggingface(folder, config, tensors, tokenizer_files=files)
    return HuggingFaceCheckpoint(folder)


@pytest.mark.parametrize("group", [32, 64, 0])
def test_unpacking_is_bit_equal(tmp_path: Path, config: ModelConfig, group: int):
    checkpoint = save(tmp_path / "model", config, group)
    report = quantize_checkpoint(checkpoint, tmp_path / "out", QuantizeOptions("ternary"))
    bundle = Bundle.open(tmp_path / "out")
    matrices = [name for name in bundle.tensors if "_proj" in name]
    assert len(matrices) == 21
    for name in matrices:
        tensor = bundle.tensors[name]
        assert tensor.scheme.kind == "ternary" and tensor.exact
        found = dequantize(bundle.data(name), tensor.scheme, *tensor.shape)
        np.testing.assert_array_equal(found, checkpoint.read_float32(name))
    assert {bundle.tensors[name].scheme.group for name in matrices} == {group}
    assert bundle.tensors["lm_head.weight"].scheme == QuantScheme("int8", 32)
    assert all(matrix["weight_error"] == 0 for layer in report["layers"] for matrix in layer["matrices"])


def test_one_matrix_that_is_not_ternary(tmp_path: Path, config: ModelConfig):
    checkpoint = save(tmp_path / "model", config, 32, spoilt="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(
        CheckpointError, match=r"1 of its 21 linear layers .*layers\.1\.mlp\.up_proj.* by \d\d\.\d"
    ):
        quantize_checkpoint(checkpoint, tmp_path / "out", QuantizeOptions("ternary"))
    assert not (tmp_path / "out").exists()


def test_the_distance():
    """0 for a ternary matrix; for nearly ternary ones what was added; for normal weights half of the norm."""
    ternary = fake_quantized(torch.randn(24, 192, generator=torch.Generator().manual_seed(0)), 64).float()
    kind = QuantScheme("ternary").declared
    assert kind_distance(ternary.numpy(), kind) < 1e-6
    noise = torch.randn(24, 192, generator=torch.Generator().manual_seed(1)) * ternary.std() * 0.01
    assert kind_distance((ternary + noise).numpy(), kind) == pytest.approx(0.01, rel=0.3)
    normal = np.random.default_rng(0).standard_normal((24, 192), dtype=np.float32)
    assert 0.4 < kind_distance(normal, kind) < 0.6
