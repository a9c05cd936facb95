"""Calibrated quantization of what other families add to a Llama."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edge.checkpoints.synthetic import RandomCheckpoint
from edge.checkpoints.weights import read_float32
from edge.config import ModelConfig
from edge.errors import ContextError
from edge.export.calibration import calibration
from edge.export.quantize import quantize_checkpoint
from edge.formats.bundle.reader import Bundle
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import reference_from_bundle
from edge.quant.scheme import QuantScheme


@torch.no_grad()
def test_every_part_of_a_network_is_quantized(oak_checkpoint, options, text: Path, tmp_path: Path):
    """What smoothing folds into biases is in the bundle, and norms of q and k are as they were."""
    checkpoint, config = oak_checkpoint, oak_checkpoint.config
    quantize_checkpoint(checkpoint, tmp_path / "out", options(quantize="int8", method="gptq", smooth=True))
    quantized = reference_from_bundle(Bundle.open(tmp_path / "out"), 64)
    names = [info.name for info in checkpoint.tensors]
    exact = Decoder.from_tensors(
        checkpoint.config, {name: torch.from_numpy(read_float32(checkpoint, name)) for name in names}, 64
    )
    moved = [f"model.layers.{layer}.self_attn.v_proj.bias" for layer in range(config.num_hidden_layers)]
    for name in (name for name in names if name.endswith((".bias", "_norm.weight"))):
        same = torch.equal(quantized.get_parameter(name), exact.get_parameter(name))
        assert same != (name in moved), name
    tokens = torch.from_numpy(calibration(checkpoint, text, 6, 64).tokens)
    wanted, found = exact.trunk(tokens).hidden, quantized.trunk(tokens).hidden
    assert (found - wanted).square().mean() < 1e-3 * wanted.square().mean()


def test_texts_longer_than_a_sliding_window_are_refused(config: ModelConfig, options, tmp_path: Path):
    windows = {"sliding_window": 63, "sliding_layers": (0, 1, 2)}
    checkpoint = RandomCheckpoint(replace(config, model_type="mistral", **windows), QuantScheme("f16"))
    with pytest.raises(ContextError, match="sliding_window of 63"):
        quantize_checkpoint(checkpoint, tmp_path / "out", options(method="gptq"))
