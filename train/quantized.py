"""Quantization-aware training (BitCPM, section 3.2): weights are rounded in the forward pass, floats behind.

The gradient goes through the rounding as if it were not there. `fake_quantize` is the twin in PyTorch of the
rules in `edge.quant.rules`, which must not import torch, and gives the same bits: what is exported is what
was trained. Activations, embedding, head and norms stay as they are. Weights should be float32 (autocast may
compute with them in bfloat16): a bfloat16 weight is rounded once more, to scales that no export has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from edge.errors import ConfigError
from edge.model.network.decoder import Decoder
from edge.quant.rules import CUT_BELOW, HALF_STEPS, TERNARY_EPSILON
from edge.quant.scheme import QuantScheme


def fake_quantize(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """Weights [rows, columns] as `quantize` and `dequantize` of `edge.quant` give them; same type and device.

    Computed in float32, also under autocast; NaN in groups whose scale float16 can't hold. The gradient is
    that of the identity (straight-through). Raises ConfigError for a scheme that isn't trained for.
    """
    check_trainable(scheme)
    rounded: Tensor = _fake_quantize(weight, scheme.kind, scheme.group or weight.shape[1])
    return rounded


def check_trainable(scheme: QuantScheme) -> None:
    """Raise ConfigError unless networks can be trained for the scheme."""
    if scheme.kind not in _RULES or scheme.minimum:
        raise ConfigError(f"Weights can't be trained as {scheme}; choose {' or '.join(_RULES)}.")


class QuantizedLinear(nn.Linear):
    """A linear layer whose matrix is fake-quantized in every forward pass; its parameter stays float."""

    scheme: QuantScheme

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] -> [..., outputs]."""
        return functional.linear(x, fake_quantize(self.weight, self.scheme), self.bias)


def quantize_aware(decoder: Decoder, scheme: QuantScheme) -> Decoder:
    """Let every linear layer inside the decoder's layers train for this scheme; returns the decoder itself.

    Parameters, their names and optimizers that hold them stay. Called again it changes the scheme. Raises
    ConfigError as `fake_quantize` does.
    """
    quantize_linear(decoder.model.layers, scheme)
    return decoder


def quantize_linear(network: nn.Module, scheme: QuantScheme) -> None:
    """The same for every linear layer of any network."""
    check_trainable(scheme)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = QuantizedLinear
            cast(QuantizedLinear, module).scheme = scheme


def quantized_state(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's state dict as the forward pass sees it, without gradients.

    A sharded decoder's tensors are gathered, so every process of its mesh has to call.
    """
    return rounded(
        decoder,
        {
            name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for name, tensor in decoder.state_dict().items()
        },
    )


@torch.no_grad()
def rounded(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors of the network, by name, with those rounded that its layers round: what is saved."""
    found = dict(state)
    for name, module in network.named_modules():
        if isinstance(module, QuantizedLinear):
            key = f"{name}.weight"
            found[key] = fake_quantize(found[key], module.scheme)
    return found


# An operator, since compilers may leave out the rounding to float16 between two conversions.
@torch.library.custom_op("edge_train::fake_quantize", mutates_args=())
def _fake_quantize(weight: Tensor, kind: str, group: int) -> Tensor:
    columns = weight.shape[1]
    whole = columns // group * group  # the ragged last group is a matrix of one group of its own
    rule = _RULES[kind]
    parts = [
        rule(part.float().unflatten(1, (-1, min(group, part.shape[1])))).flatten(1)
        for part in (weight[:, :whole], weight[:, whole:])
        if part.shape[1]
    ]
    return torch.cat(parts, 1).to(weight.dtype)


@_fake_quantize.register_fake
def _(weight: Tensor, kind: str, group: int) -> Tensor:
    return weight.new_empty(weight.shape)


def _straight_through(context: object, gradient: Tensor) -> tuple[Tensor, None, None]:
    return gradient, None, None


_fake_quantize.register_autograd(_straight_through)


def _ternary(w: Tensor) -> Tensor:
    """float32 [rows, groups, width] -> the nearest of -s, 0 and s."""
    magnitude = w.abs()
    largest = magnitude.amax(-1)
    # 0 only where all are 0 or the largest; PyTorch's logic on bools costs several times as much.
    beside = torch.minimum(magnitude, largest.unsqueeze(-1) - magnitude).amax(-1)
    mean = _sum_by_halves(magnitude) / w.shape[-1]
    scale = torch.where((beside == 0) & (largest > 0), largest, mean.clamp(min=TERNARY_EPSILON))
    return _nearest(w, scale, -1, 1)


def _int4(w: Tensor) -> Tensor:
    """float32 [rows, groups, width] -> the nearest of -8 s .. 7 s; s has the extreme at -8."""
    low, high = w.amin(-1), w.amax(-1)
    scale = torch.where(-low > high, low, high) / -8
    cut = torch.trunc(scale * HALF_STEPS) / HALF_STEPS
    return _nearest(w, torch.where(scale.abs() < CUT_BELOW, cut, scale), -8, 7)


_RULES: dict[str, Callable[[Tensor], Tensor]] = {"ternary": _ternary, "int4": _int4}


def _sum_by_halves(values: Tensor) -> Tensor:
    while (width := values.shape[-1]) > 1:
        kept = (width + 1) // 2
        first, second = values[..., :kept], values[..., kept:]
        values = first + (second if width % 2 == 0 else functional.pad(second, (0, 1)))
    return values.squeeze(-1)


def _nearest(w: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    scale = scale.half().float().unsqueeze(-1)
    inverse = torch.where(scale == 0, 0.0, scale.reciprocal())
    return (w * inverse).round_().clamp_(low, high).mul_(scale)
