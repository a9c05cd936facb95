"""`torch.export` and `torch.compile` take the network as it is, with any length and with a static cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edge.config import ModelConfig
from edge.model.network.decoder import Decoder
from edge.model.network.kv_cache import StaticCache
from edge.model.weights.upcycling import upcycle

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


class Step(nn.Module):
    """A decoder with its cache inside: what an exporter lowers."""

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.cache = StaticCache(decoder.config, capacity)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(tokens, cache=self.cache)


def tokens(config: ModelConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(shape[-1]))


@pytest.fixture
def decoder(tiny_config, llama) -> Decoder:
    config = tiny_config(scale_emb=12.0, scale_depth=0.8, dim_model_base=32.0)
    return Decoder.from_tensors(config, llama(config).state_dict())


def test_export_any_length(decoder):
    length = torch.export.Dim("n", min=2, max=64)
    program = torch.export.export(decoder, (tokens(decoder.config, 2, 9),), dynamic_shapes=({1: length},))
    for n in (3, 20):
        ids = tokens(decoder.config, 2, n)
        torch.testing.assert_close(program.module()(ids), decoder(ids), **TOLERANCE)


def test_export_experts(decoder):
    sparse = upcycle(decoder, 4, 2).requires_grad_(False).eval()
    ids = tokens(decoder.config, 1, 9)
    program = torch.export.export(sparse, (ids,))
    other = (ids + 1) % decoder.config.vocab_size
    torch.testing.assert_close(program.module()(other), sparse(other), **TOLERANCE)


def test_export_decode_step(decoder):
    """One exported step, called again and again, writes the cache in its own buffers."""
    program = torch.export.export(Step(decoder, 24), (torch.zeros(1, dtype=torch.long),))
    step = program.module()
    ids = tokens(decoder.config, 13)
    logits = torch.cat([step(token[None]) for token in ids])
    torch.testing.assert_close(logits, decoder(ids), **TOLERANCE)


@pytest.mark.slow
def test_compile(decoder):
    ids = tokens(decoder.config, 13)
    wanted = decoder(ids)
    compiled = torch.compile(Step(decoder, 24), fullgraph=True, dynamic=False)
    logits = torch.cat([compiled(token[None]) for token in ids])
    torch.testing.assert_close(logits, wanted, **TOLERANCE)
