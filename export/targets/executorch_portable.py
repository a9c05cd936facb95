"""The portable flavour of ExecuTorch: standard operators only, matrices as XNNPACK's int4 (8da4w).

The network is `model.decoder` itself, with quantized weights in its linear layers and a KV cache of a fixed
size that is written in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from edge.config import ModelConfig
from edge.tensors import EMBEDDING, HEAD, expected_tensors
from export.targets.executorch_lowering import Entry
from export.targets.executorch_weights import Matrix, PortableEmbedding, PortableLinear, portable_weights
from model.decoder import Decoder, View

_EXAMPLE = 3  # tokens of the example inputs; any length from 2 on
ReadTensor = Callable[[str], Matrix]
"""A tensor of the source by name: a quantized matrix, or floats."""


class PortableNetwork(nn.Module):
    """`forward(tokens int64 [1, n], start_pos int64 [1])` -> logits [1, vocab]: what phone runners call."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: ModelConfig, read: ReadTensor, context: int) -> None:
        super().__init__()
        self.context = context
        decoder = self._decoder(config, read, context).use_attention(_grouped_attention)
        cosines, sines = decoder.model.rotary(torch.arange(context))
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)
        self.caches = nn.ModuleList(_LayerCache(config, context) for _ in range(config.num_hidden_layers))
        decoder.model.rotary = nn.Identity()  # type: ignore[assignment]
        self.decoder = decoder

    def _decoder(self, config: ModelConfig, read: ReadTensor, context: int) -> Decoder:
        # XNNPACK packs the head by itself, so a tied one is stored twice.
        untied = replace(config, tie_word_embeddings=False)
        with torch.device("meta"):
            decoder = Decoder(untied, context)
        decoder.model.rotary = type(decoder.model.rotary)(untied, context)
        decoder.model.embed_tokens = PortableEmbedding(read(EMBEDDING))  # type: ignore[assignment]
        for name, shape in expected_tensors(untied).items():
            if name == EMBEDDING:
                continue
            matrix = read(EMBEDDING if name == HEAD and config.tie_word_embeddings else name)
            path = name.removesuffix(".weight")
            if len(shape) == 1:
                norm = torch.tensor(np.asarray(matrix).reshape(shape), dtype=torch.float32)
                decoder.get_submodule(path).weight = nn.Parameter(norm)
                continue
            parent, _, child = path.rpartition(".")
            setattr(decoder.get_submodule(parent), child, PortableLinear(portable_weights(matrix)))
        return decoder.requires_grad_(False).eval()

    def forward(self, tokens: Tensor, start_pos: Tensor) -> Tensor:
        """See the class; the tokens' keys and values are written at rows start_pos .. start_pos + n."""
        ids = tokens.reshape(-1)
        rows = start_pos + torch.arange(ids.shape[0])
        mask = torch.arange(self.context) <= rows.unsqueeze(-1)
        view = View(self.cosines.index_select(1, rows), self.sines.index_select(1, rows), mask, rows)
        x = self.decoder.model.embed(ids)
        for layer, cache in zip(self.decoder.model.layers, self.caches, strict=True):
            cache.rows = rows
            x, _ = layer(x, view, cache)
        head = self.decoder.lm_head
        assert head is not None
        logits: Tensor = head(self.decoder.model.norm(x[-1:]) * self.decoder.config.logit_scale)
        return logits


class _LayerCache(nn.Module):
    """Keys and values of a layer, float32 [kv_heads, context, head_dim], as `model.kv_cache.KVCache`."""

    keys: Tensor
    values: Tensor
    rows: Tensor
    """Where the next tokens go, int64 [n]."""

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        shape = (config.num_key_value_heads, context, config.head_dim)
        self.register_buffer("keys", torch.zeros(shape), persistent=False)
        self.register_buffer("values", torch.zeros(shape), persistent=False)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [kv_heads, n, head_dim] and return all rows."""
        # index_put is the one update that the runtime's reinplace pass turns into a write without a copy.
        self.keys[:, self.rows] = k
        self.values[:, self.rows] = v
        return self.keys, self.values


def _grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Dense attention without a copy of the cache for every query head; see `model.decoder.Attend`."""
    kv_heads, group, n = k.shape[0], q.shape[0] // k.shape[0], q.shape[1]
    grouped = (q * q.shape[-1] ** -0.5).unflatten(0, (kv_heads, group)).flatten(1, 2)
    scores = (grouped @ k.transpose(-1, -2)).unflatten(1, (group, n))
    weights = torch.where(mask, scores, -1e9).softmax(-1)
    return (weights.flatten(1, 2) @ v).unflatten(1, (group, n)).flatten(0, 1)


def entry(network: PortableNetwork, max_tokens: int) -> Entry:
    """The method `forward` with a prefill of 1 to max_tokens tokens."""
    inputs = torch.ones(1, _EXAMPLE, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    many = torch.export.Dim("n", min=1, max=max_tokens)
    return Entry(network, inputs, {"tokens": {1: many}, "start_pos": None})
