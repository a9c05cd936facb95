"""The end of a run: the trained network as a folder in Hugging Face's format, which `edge export` takes.

A quantization-aware network is saved with its matrices rounded as the run rounded them, so that packing
loses nothing. The layer that predicts the token after next stands beside the model in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from edge.config import ModelConfig
from edge.config.draft_names import MULTI_TOKEN
from edge.errors import CheckpointError
from edge.formats.safetensors import SafetensorsFile, SafetensorsWriter
from edge.model.network.multi_token import MultiTokenPrediction
from edge.model.weights.checkpoint import save_huggingface
from edge.train.objective import Objective
from edge.train.quantized import rounded

_DECODER, _LAYER = "decoder.", "multi_token."


def save_network(
    objective: Objective, tokenizer_files: Mapping[str, bytes], folder: Path, state: Mapping[str, Tensor]
) -> None:
    """Write `folder`, which must not exist, and the multi-token layer into `MULTI_TOKEN` beside it.

    state: all parameters of the objective. Raises CheckpointError.
    """
    own = {name.removeprefix(_DECODER): each for name, each in state.items() if name.startswith(_DECODER)}
    tensors = rounded(objective.decoder, own)
    layer = {name.removeprefix(_LAYER): each for name, each in state.items() if name.startswith(_LAYER)}
    if layer:
        specs = [(name, "F32", tuple(each.shape)) for name, each in layer.items()]
        with SafetensorsWriter(folder.parent / MULTI_TOKEN, specs, {"format": "pt"}) as writer:
            for name, each in layer.items():
                writer.write(name, each.contiguous().view(torch.uint8).numpy())
    save_huggingface(folder, objective.decoder.config, tensors, tokenizer_files=tokenizer_files)


def load_multi_token(run: str | Path, config: ModelConfig) -> MultiTokenPrediction:
    """The layer that `save_network` left in a run's folder. Raises CheckpointError if none fits."""
    path = Path(run) / MULTI_TOKEN
    layer = MultiTokenPrediction(config)
    file = SafetensorsFile(path)
    wanted = layer.state_dict()
    if {name: entry.shape for name, entry in file.tensors.items()} != {
        name: tuple(tensor.shape) for name, tensor in wanted.items()
    }:
        raise CheckpointError(f"'{path}' does not fit the model beside it; train both in one run.")
    layer.load_state_dict({name: torch.from_numpy(file.read_float32(name)) for name in wanted})
    return layer.eval()
