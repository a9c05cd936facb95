"""AWQ-style smoothing: input channels with large activations get larger weights, so that they round better.

Lin et al., arXiv 2306.00978. The inputs of a linear layer are divided by s and its columns multiplied by s.
The division is folded into what produces those inputs (the norm, or the linear layer before), so that the
network computes the same and the runtime does nothing new.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge.model.network.decoder import Layer
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

_EXPONENTS = tuple(i / 10 for i in range(11))
_SAMPLE_ROWS = 512
"""Rows of a matrix, evenly spread, on which exponents are compared."""


@dataclass(frozen=True)
class Stage:
    """Linear layers that read the same inputs, and what produces these: a norm, or the rows of a linear."""

    producer: str
    consumers: tuple[str, ...]


STAGES = (
    Stage("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Stage("self_attn.v_proj", ("self_attn.o_proj",)),
    Stage("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Stage("mlp.up_proj", ("mlp.down_proj",)),
)
"""A decoder layer in the order in which it computes."""


def smooth(layer: Layer, stage: Stage, gram: Tensor, scheme: QuantScheme) -> float:
    """Scale the input channels of one stage in place; returns the exponent of s that was chosen (0: none).

    s = (root mean square of the channel)^exponent. gram [columns, columns]: X^T X of the stage's inputs, as
    the layer computes them now. Exponents are compared by the error of the outputs after round-to-nearest.
    """
    strength = channel_strength(layer, stage, gram.diagonal())
    samples = [_sample(layer.get_parameter(f"{name}.weight")) for name in stage.consumers]
    best, least, chosen = 0.0, float("inf"), torch.ones_like(strength)
    for exponent in _EXPONENTS:
        scales = strength.pow(exponent)
        error = sum(_rounding_error(sample, scales, gram, scheme) for sample in samples)
        if error < least:
            best, least, chosen = exponent, error, scales
    _fold(layer, stage, chosen)
    return best


def channel_strength(layer: Layer, stage: Stage, diagonal: Tensor) -> Tensor:
    """Size of the activations by channel, of geometric mean 1; equal where channels have one producer row."""
    size = diagonal.clone()
    if stage.producer == "self_attn.v_proj":
        heads = _by_query_head(layer, size)
        size = heads.mean(1, keepdim=True).expand_as(heads).flatten()
    size = size.clamp_min(1e-8 * float(size.max()) + 1e-30).sqrt()
    return size / size.log().mean().exp()


def _sample(weight: Tensor) -> Tensor:
    return weight[:: max(1, weight.shape[0] // _SAMPLE_ROWS)].detach()


def _rounding_error(weight: Tensor, scales: Tensor, gram: Tensor, scheme: QuantScheme) -> float:
    rounded = torch.from_numpy(quantize((weight * scales).numpy(), scheme).dequantize()) / scales
    difference = rounded - weight
    return float((difference @ gram).mul_(difference).sum())


def _fold(layer: Layer, stage: Stage, scales: Tensor) -> None:
    for name in stage.consumers:
        layer.get_parameter(f"{name}.weight").mul_(scales)
    if stage.producer == "self_attn.v_proj":
        scales = _by_query_head(layer, scales)[:, 0].flatten()
    for producer in layer.get_submodule(stage.producer).parameters():  # of a linear, its bias as well
        producer.div_(scales if producer.dim() == 1 else scales.unsqueeze(1))


def _by_query_head(layer: Layer, channels: Tensor) -> Tensor:
    """Inputs of the output projection as [KV heads, query heads of each, head_dim]."""
    attention = layer.self_attn
    return channels.unflatten(0, (attention.kv_heads, attention.heads // attention.kv_heads, -1))
