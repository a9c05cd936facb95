"""Runs calibration sequences through one decoder layer and keeps what quantizers need of its activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from edge.config import ModelConfig
from edge.model.network.decoder import Layer, View, fused_attention
from edge.model.network.rope import RotaryEmbedding

MASKED_POSITIONS = 4
"""Positions at the beginning of every sequence that P-GPTQ quietens."""
_BATCH_TOKENS = 2048


class Stream:
    """The residual stream before one layer, float32 [sequences, length, hidden]."""

    def __init__(self, config: ModelConfig, hidden: Tensor) -> None:
        self.hidden = hidden
        length = hidden.shape[1]
        positions = torch.arange(length)
        cos, sin = RotaryEmbedding(config, length)(positions)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        self._view = View(cos, sin, causal, positions)

    def advance(self, layer: Layer) -> None:
        """Replace the stream by the one after the layer, in place."""
        for part in self._parts():
            part.copy_(layer(part, self._view)[0])

    def grams(self, layer: Layer, names: Sequence[str], *, masked: bool) -> list[Tensor]:
        """X^T X [columns, columns] of the inputs of some of the layer's linear modules, in float32.

        masked: quieten the first positions of every sequence. The layer runs only as far as the last module
        needs; names are in the order in which they run.
        """
        adders = [_Adder(MASKED_POSITIONS if masked else 0, name == names[-1]) for name in names]
        hooks = [
            layer.get_submodule(name).register_forward_pre_hook(adder)
            for name, adder in zip(names, adders, strict=True)
        ]
        try:
            for part in self._parts():
                try:
                    layer(part, self._view)
                except _Enough:
                    continue
        finally:
            for hook in hooks:
                hook.remove()
        return [adder.gram() for adder in adders]

    def _parts(self) -> Iterator[Tensor]:
        return iter(self.hidden.split(max(1, _BATCH_TOKENS // self.hidden.shape[1])))


class _Enough(Exception):
    """Ends a pass whose remaining operators nobody wants."""


class _Adder:
    """A forward hook that adds X^T X of a module's inputs; `gram` gives the sum."""

    def __init__(self, skip: int, is_last: bool) -> None:
        self._skip, self._is_last = skip, is_last
        self._total: Tensor | None = None
        self._count = 0
        self._first: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0][:, self._skip :].flatten(0, 1)
        if self._total is None:
            self._total = x.t() @ x
        else:
            self._total.addmm_(x.t(), x)
        self._count += len(x)
        self._first.append(inputs[0][:, : self._skip].flatten(0, 1).clone())
        if self._is_last:
            raise _Enough

    def gram(self) -> Tensor:
        """The sum, with every skipped position at the size of an ordinary one at most.

        Without a trace of them, a channel that speaks only there would look free: GPTQ would move the errors
        of all others into it. But attention sinks are made of such channels.
        """
        assert self._total is not None
        ordinary, first = self._total.trace() / self._count, torch.cat(self._first)
        size = first.square().sum(1, keepdim=True).clamp_min(1e-30)
        first *= (ordinary / size).clamp_max(1).sqrt()
        return self._total.addmm_(first.t(), first)


def load_layer(config: ModelConfig, index: int, tensors: dict[str, Tensor]) -> Layer:
    """One decoder layer over float32 tensors, named as inside the layer; it borrows their memory."""
    with torch.device("meta"):
        layer = Layer(config, index)
    layer.load_state_dict(tensors, assign=True)
    layer.self_attn.attend = fused_attention
    return layer.requires_grad_(False).eval()
