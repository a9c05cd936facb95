"""GPTQ, P-GPTQ and smoothing, layer by layer: one decoder layer is in memory at a time.

Every layer sees the calibration text as the quantized layers before it leave it, and within a layer every
matrix sees what the quantized matrices before it compute.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge.checkpoints.base import Checkpoint
from edge.checkpoints.weights import read_float32
from edge.config.tensors import EMBEDDING, expected_tensors
from edge.export.calibration import Calibration
from edge.export.quantize.activations import Stream, load_layer
from edge.export.quantize.gptq import Hessian, gptq, invert
from edge.export.quantize.options import VERSION, QuantizeOptions
from edge.export.quantize.smooth import STAGES, smooth
from edge.export.quantize.workspace import SOURCE, Workspace
from edge.model.network.decoder import Layer
from edge.quant.packing import pack
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme


def embed(checkpoint: Checkpoint, calibration: Calibration) -> Tensor:
    """The residual stream before the first layer, float32 [sequences, length, hidden]."""
    rows = read_float32(checkpoint, EMBEDDING)[calibration.tokens]
    return torch.from_numpy(rows).mul_(checkpoint.config.embedding_scale)


def job(
    checkpoint: Checkpoint, options: QuantizeOptions, calibration: Calibration, hidden: Tensor
) -> dict[str, Any]:
    """What tells one quantization from another, as JSON values; layers have digests of their own."""
    chosen = {**asdict(options), "calibration": calibration.sha256}
    return {
        "version": VERSION,
        "torch": torch.__version__,
        "source": checkpoint.source,
        "config": checkpoint.config.to_json(),
        "options": chosen,
        "embedding": hashlib.sha256(hidden.numpy().data).hexdigest(),
    }


def quantize_layers(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    hidden: Tensor,
    workspace: Workspace,
    say: Callable[[str], None],
) -> None:
    """Bring the workspace from its finished layers to all. say: gets the name of every matrix begun."""
    kept = workspace.take_hidden()
    stream = Stream(checkpoint.config, hidden if kept is None else kept)
    for index in range(workspace.finished, checkpoint.config.num_hidden_layers):
        started = time.perf_counter()
        prefix = f"model.layers.{index}."
        tensors = read_layer(checkpoint, index)
        digest = layer_digest(tensors)
        layer = load_layer(checkpoint.config, index, tensors)
        packed, errors, exponents = quantize_layer(layer, prefix, stream, options, say)
        stream.advance(layer)
        report = {
            "layer": index,
            "seconds": round(time.perf_counter() - started, 2),
            "smoothing_exponents": exponents,
            "matrices": errors,
            SOURCE: digest,
        }
        workspace.finish(packed, report, stream.hidden)


def read_layer(checkpoint: Checkpoint, index: int) -> dict[str, Tensor]:
    """Float32 weights of one decoder layer, by their names inside the layer."""
    prefix = f"model.layers.{index}."
    names = [name for name in expected_tensors(checkpoint.config) if name.startswith(prefix)]
    return {name.removeprefix(prefix): torch.from_numpy(read_float32(checkpoint, name)) for name in names}


def layer_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a layer's weights: a finished layer is used again only for the same ones."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def _grams(stream: Stream, layer: Layer, names: Sequence[str], options: QuantizeOptions) -> list[Tensor]:
    return stream.grams(layer, names, masked=options.method == "p-gptq")


def _smooth_layer(layer: Layer, stream: Stream, options: QuantizeOptions) -> dict[str, float]:
    """Smooth all stages of a layer in place; the exponents by the producer's name."""
    inputs = [stage.consumers[0] for stage in STAGES]
    grams = _grams(stream, layer, inputs, options)
    return {
        stage.producer: smooth(layer, stage, gram, options.scheme)
        for stage, gram in zip(STAGES, grams, strict=True)
    }


def quantize_layer(
    layer: Layer, prefix: str, stream: Stream, options: QuantizeOptions, say: Callable[[str], None]
) -> tuple[dict[str, npt.NDArray[np.uint8]], list[dict[str, Any]], dict[str, float]]:
    """Quantize a layer in place; (packed tensors by name, errors of its matrices, smoothing exponents)."""
    exponents = _smooth_layer(layer, stream, options) if options.smooth else {}
    packed, errors = {}, []
    for stage in STAGES:
        (gram,) = _grams(stream, layer, stage.consumers[:1], options)
        hessian = _hessian(gram, options, f"{prefix}{stage.consumers[0]}.weight")
        for name in stage.consumers:
            full_name = f"{prefix}{name}.weight"
            say(full_name)
            weight = layer.get_parameter(f"{name}.weight")
            matrix = _quantize(weight, hessian, options.scheme, full_name)
            rounded = torch.from_numpy(matrix.dequantize())
            errors.append({"name": full_name, **_errors(weight, rounded, gram)})
            weight.copy_(rounded)
            packed[full_name] = pack(matrix, matrix.scheme)
    for name, vector in layer.named_parameters():  # norms and biases, into which scales may be folded
        if vector.dim() == 1:
            packed[f"{prefix}{name}"] = vector.numpy().view(np.uint8).reshape(-1)
    return packed, errors, exponents


def _hessian(gram: Tensor, options: QuantizeOptions, name: str) -> Hessian | None:
    if options.method == "rtn":
        return None
    return invert(gram, damping=options.damping, act_order=options.act_order, name=name)


def _quantize(weight: Tensor, hessian: Hessian | None, scheme: QuantScheme, name: str) -> QuantizedMatrix:
    return quantize(weight.numpy(), scheme, name) if hessian is None else gptq(weight, hessian, scheme, name)


def _errors(weight: Tensor, rounded: Tensor, gram: Tensor) -> dict[str, float]:
    """Relative squared errors: of the outputs over the calibration inputs, and of the weights."""
    difference = weight - rounded
    output = float((difference @ gram).mul_(difference).sum())
    total = float((weight @ gram).mul_(weight).sum())
    return {
        "output_error": output / total if total else 0.0,
        "weight_error": float(difference.square().sum() / weight.square().sum().clamp_min(1e-30)),
    }
