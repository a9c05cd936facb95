"""From a bundle to the reference network: dequantizes every tensor to float32."""

from __future__ import annotations

import torch

from edge.formats.model_files import ModelFiles
from edge.model.network.decoder import Decoder
from edge.quant.packing import dequantize


def reference_from_bundle(files: ModelFiles, context: int | None = None) -> Decoder:
    """The reference over exactly the weights that the native decoder uses; 4 bytes of RAM per parameter."""
    tensors = {}
    for name, tensor in files.tensors.items():
        weights = dequantize(files.data(name), tensor.scheme, tensor.rows, tensor.columns)
        tensors[name] = torch.from_numpy(weights).reshape(tensor.shape)
    return Decoder.from_tensors(files.config, tensors, context)
