"""Runs calibration sequences through one decoder layer and keeps what quantizers need of its activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from edge.config import ModelConfig
from model.decoder import Layer, View, fused_attention
from model.rope import RotaryEmbedding

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

    def grams(self, layer: Layer, names: Sequence[str], skip: int) -> list[Tensor]:
        """X^T X [columns, columns] of the inputs of some of the layer's linear modules, in float32.

        skip: positions at the beginning of every sequence that are left out. The layer runs only as far as
        the last module needs; names are in the order in which they run.
        """
        found: dict[str, Tensor] = {}
        hooks = [
            layer.get_submodule(name).register_forward_pre_hook(_Adder(found, name, skip, name == names[-1]))
            for name in names
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
        return [found[name] for name in names]

    def _parts(self) -> Iterator[Tensor]:
        return iter(self.hidden.split(max(1, _BATCH_TOKENS // self.hidden.shape[1])))


class _Enough(Exception):
    """Ends a pass whose remaining operators nobody wants."""


class _Adder:
    """A forward hook that adds X^T X of a module's inputs to `found[name]`."""

    def __init__(self, found: dict[str, Tensor], name: str, skip: int, is_last: bool) -> None:
        self._found, self._name, self._skip, self._is_last = found, name, skip, is_last

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0][:, self._skip :].flatten(0, 1)
        total = self._found.get(self._name)
        if total is None:
            self._found[self._name] = x.t() @ x
        else:
            total.addmm_(x.t(), x)
        if self._is_last:
            raise _Enough


def load_layer(config: ModelConfig, index: int, tensors: dict[str, Tensor]) -> Layer:
    """One decoder layer over float32 tensors, named as inside the layer; it borrows their memory."""
    with torch.device("meta"):
        layer = Layer(config, index)
    layer.load_state_dict(tensors, assign=True)
    layer.self_attn.attend = fused_attention
    return layer.requires_grad_(False).eval()
