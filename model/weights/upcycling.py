"""Sparse upcycling: experts that start as copies of a trained dense network (arXiv 2212.05055)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edge.errors import ConfigError
from edge.model.network.decoder import Decoder

_EXPERT_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def upcycle(dense: Decoder, num_experts: int, num_experts_per_tok: int, seed: int = 0) -> Decoder:
    """A new decoder whose experts all are copies of their layer's MLP, under a small random router.

    Shares of the chosen experts sum to 1, so it computes what `dense` computed until training tells the
    experts apart. Raises ConfigError if `dense` has experts already.
    """
    if dense.config.num_experts:
        raise ConfigError("num_experts: the network has experts already; upcycle a dense one.")
    config = replace(dense.config, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, tensor in dense.state_dict().items():
        layer, found, part = name.partition(".mlp.")
        if not found:
            tensors[name] = tensor.clone()
            continue
        matrix = _EXPERT_NAMES[part.removesuffix(".weight")]
        for expert in range(num_experts):
            tensors[f"{layer}.mlp.experts.{expert}.{matrix}.weight"] = tensor.clone()
        gate = torch.randn(num_experts, config.hidden_size, generator=generator) * 0.02
        tensors.setdefault(f"{layer}.mlp.gate.weight", gate.to(tensor))
    decoder = Decoder.from_tensors(config, tensors, dense.context)
    return decoder.requires_grad_(True).train(dense.training)
