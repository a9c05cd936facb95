"""Packed 4-bit checkpoints of families with biases, norms, fused tensors and partial rotary embedding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edge.model.weights.checkpoint import load_decoder
from tests.family_networks import CASES, EXACT, TOKENS, largest_error, theirs

from .test_int4_checkpoints import GPTQ, Truth, draw, pack_awq, pack_gptq, pack_marlin

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}


@pytest.mark.parametrize(
    ("entry", "pack", "symmetric"),
    [
        ({**GPTQ, "group_size": 64}, pack_gptq, False),
        (AWQ, pack_awq, False),
        ({**GPTQ, "quant_method": "marlin", "group_size": 64}, pack_marlin, True),
    ],
    ids=["gptq", "awq", "marlin"],
)
@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "smollm3", "phi3-long"])
def test_packed_weights_are_the_familys_own(
    tmp_path: Path,
    name: str,
    entry: dict[str, Any],
    pack: Callable[[Truth], dict[str, Any]],
    symmetric: bool,
) -> None:
    """Packed in the order of its own rows; read, they give the logits of its own class over 300 positions."""
    model = theirs(CASES[name]._replace(fields={**CASES[name].fields, "intermediate_size": 192}))
    tensors: dict[str, torch.Tensor] = {}
    for seed, (key, weight) in enumerate(model.state_dict().items()):
        if not key.endswith("_proj.weight"):
            tensors[key] = weight.clone()
            continue
        truth = draw(*weight.shape, group=64, symmetric=symmetric, seed=seed)
        weight.copy_(torch.from_numpy(truth.weights))
        stem = key.removesuffix("weight")
        tensors |= {stem + part: torch.from_numpy(array.copy()) for part, array in pack(truth).items()}
    data = {**model.config.to_dict(), "architectures": [type(model).__name__], "quantization_config": entry}
    (tmp_path / "config.json").write_text(json.dumps(data))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert largest_error(load_decoder(tmp_path)(TOKENS), model(TOKENS[None]).logits[0]) < EXACT
