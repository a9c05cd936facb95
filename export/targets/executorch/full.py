"""The full flavour of ExecuTorch: a decoder layer is six of our operators, on the bundle's own packed bytes.

Biases and norms of q and k stand between the first and the second of them, in ExecuTorch's own operators and
our `rms_norm`; a layer without RoPE has a table of frequencies 0.

The arithmetic is the native decoder's (`edge.model.operators.linear`, `edge.model.operators.cache`). All
methods of the .pte share one module, and with it the weights and the KV cache:

* `forward(tokens [1, n], start_pos [1])` -> logits [1, vocab] of the last token: what phone runners call;
* `hidden_states(tokens, start_pos)` -> the same logits, and hidden states [n, hidden] after the final norm;
* `verify(tokens [1, n], positions [n], tree [n], start_pos)` -> logits [n, vocab] and hidden states of a
  tree of up to 64 tokens, with masks as `edge.executors.protocol.Executor.forward` has them; without masks of
  tokens in a row;
* `keep(rows [k], start_pos)` -> the new length: after the first start_pos rows keep these.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import edge.model.operators.cache  # noqa: F401  (defines operators)
from edge.config import SparseConfig
from edge.config.rope import rope_parameters
from edge.config.tensors import EMBEDDING, FINAL_NORM, HEAD
from edge.executors.native.operators import EXPORTED_KV
from edge.export.source import Source
from edge.export.targets.executorch.lowering import Entry
from edge.model.operators.cache_pages import LayerCache
from edge.model.operators.linear import PackedShape

MAX_TREE = 64
_INT8_ACTIVATIONS = 0
_EXAMPLE = 3  # tokens of the example inputs; any length from 2 on


class FullNetwork(nn.Module):
    """The decoder on operators of the `edge` namespace."""

    inverse_frequency: Tensor
    no_frequency: Tensor

    def __init__(self, source: Source, context: int, sparse: SparseConfig | None) -> None:
        super().__init__()
        config = self.config = source.config
        self.cache = LayerCache(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            EXPORTED_KV,
            context,
            sparse,
        )
        frequency, self.rope_scale = rope_parameters(
            config.rope, config.head_dim, context, config.max_position_embeddings
        )
        self.register_buffer("inverse_frequency", torch.from_numpy(np.asarray(frequency, np.float32)))
        if config.layers_without_rope:
            self.register_buffer("no_frequency", torch.zeros_like(self.inverse_frequency))
        self.shapes: dict[str, list[int]] = {}
        self.tensors = source.tensors.keys()
        for name, info in source.tensors.items():
            if len(info.shape) == 1:
                data = torch.from_numpy(np.array(source.floats(name)))
            else:
                # Copied: an exported graph may not point into a read-only mapping.
                data = torch.from_numpy(np.array(source.packed(name)))
                self.shapes[name] = PackedShape(info.scheme.packing, info.rows, info.columns).numbers
            self.register_buffer(_buffer(name), data)
        for layer in range(config.num_hidden_layers):
            self.register_buffer(f"cache_{layer}", self.cache.empty(), persistent=False)
        self.head = EMBEDDING if config.tie_word_embeddings else HEAD

    def weight(self, name: str) -> Tensor:
        """A tensor of the bundle."""
        tensor: Tensor = getattr(self, _buffer(name))
        return tensor

    def trunk(self, tokens: Tensor, positions: Tensor, start: Tensor, tree: Tensor | None) -> Tensor:
        """The residual stream [n, hidden] after the last layer; rows start .. start + n are written."""
        ops, config = torch.ops.edge, self.config
        x = ops.embedding(tokens, self.weight(EMBEDDING), self.shapes[EMBEDDING], config.embedding_scale)
        rope = ops.rope_table(positions, self.inverse_frequency, self.rope_scale)
        without = ops.rope_table(positions, self.no_frequency, 1.0) if config.layers_without_rope else rope
        for layer in range(config.num_hidden_layers):
            x = self._layer(x, without if layer in config.layers_without_rope else rope, start, tree, layer)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Of rows of the residual stream."""
        return torch.ops.edge.rms_norm_linear(
            x,
            self.weight(FINAL_NORM),
            [self.weight(self.head)],
            self.shapes[self.head],
            self.config.rms_norm_eps,
            self.config.logit_scale,
            _INT8_ACTIVATIONS,
        )

    def hidden(self, x: Tensor) -> Tensor:
        """Rows of the residual stream after the final norm."""
        return torch.ops.edge.rms_norm(x, self.weight(FINAL_NORM), self.config.rms_norm_eps, 1.0)

    def _layer(self, x: Tensor, rope: Tensor, start: Tensor, tree: Tensor | None, layer: int) -> Tensor:
        ops, config, prefix = torch.ops.edge, self.config, f"model.layers.{layer}."
        names = [f"{prefix}self_attn.{part}_proj.weight" for part in "qkv"]
        qkv = ops.rms_norm_linear(
            x,
            self.weight(f"{prefix}input_layernorm.weight"),
            [self.weight(name) for name in names],
            [number for name in names for number in self.shapes[name]],
            config.rms_norm_eps,
            1.0,
            _INT8_ACTIVATIONS,
        )
        cache: Tensor = getattr(self, f"cache_{layer}")
        qkv = self._heads(qkv, f"{prefix}self_attn")
        queries = ops.kv_append(qkv, rope, start, cache, tree, *self.cache.arguments)
        seen = ops.paged_attention(queries, start, cache, tree, *self.cache.arguments)
        x = self._linear(seen, f"{prefix}self_attn.o_proj.weight", x)
        gate, up = f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight"
        inner = ops.rms_norm_swiglu(
            x,
            self.weight(f"{prefix}post_attention_layernorm.weight"),
            self.weight(gate),
            self.weight(up),
            [*self.shapes[gate], *self.shapes[up]],
            config.rms_norm_eps,
            _INT8_ACTIVATIONS,
        )
        return self._linear(inner, f"{prefix}mlp.down_proj.weight", x)

    def _heads(self, qkv: Tensor, attention: str) -> Tensor:
        """q, k and v [n, all heads] with their biases, and every head of q and k normed."""
        if f"{attention}.q_proj.bias" in self.tensors:
            qkv = qkv + torch.cat([self.weight(f"{attention}.{part}_proj.bias") for part in "qkv"])
        if f"{attention}.q_norm.weight" not in self.tensors:
            return qkv
        config, eps = self.config, self.config.rms_norm_eps
        heads = qkv.unflatten(-1, (-1, config.head_dim))
        q, k, v = heads.split([config.num_attention_heads, *[config.num_key_value_heads] * 2], -2)
        q = torch.ops.edge.rms_norm(q, self.weight(f"{attention}.q_norm.weight"), eps, 1.0)
        k = torch.ops.edge.rms_norm(k, self.weight(f"{attention}.k_norm.weight"), eps, 1.0)
        return torch.cat([q, k, v], -2).flatten(-2)

    def _linear(self, x: Tensor, name: str, residual: Tensor) -> Tensor:
        scale = self.config.residual_scale
        return torch.ops.edge.linear(
            x, self.weight(name), self.shapes[name], residual, scale, _INT8_ACTIVATIONS
        )


class _Forward(nn.Module):
    def __init__(self, network: FullNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, start_pos: Tensor) -> Tensor:
        ids = tokens.reshape(-1)
        x = self.network.trunk(ids, start_pos + torch.arange(ids.shape[0]), start_pos, None)
        return self.network.logits(x[-1:])


class _HiddenStates(nn.Module):
    def __init__(self, network: FullNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, start_pos: Tensor) -> tuple[Tensor, Tensor]:
        ids = tokens.reshape(-1)
        x = self.network.trunk(ids, start_pos + torch.arange(ids.shape[0]), start_pos, None)
        return self.network.logits(x[-1:]), self.network.hidden(x)


class _Verify(nn.Module):
    def __init__(self, network: FullNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, tokens: Tensor, positions: Tensor, tree: Tensor, start_pos: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = self.network.trunk(tokens.reshape(-1), positions, start_pos, tree)
        return self.network.logits(x), self.network.hidden(x)


class _Keep(nn.Module):
    def __init__(self, network: FullNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor, start_pos: Tensor) -> Tensor:
        length = start_pos
        for layer in range(self.network.config.num_hidden_layers):
            cache: Tensor = getattr(self.network, f"cache_{layer}")
            length = torch.ops.edge.kv_keep(rows, start_pos, cache, *self.network.cache.arguments)
        return length


def entries(network: FullNetwork, max_tokens: int) -> dict[str, Entry]:
    """The four methods. max_tokens: most tokens of a `forward` or `hidden_states` call."""
    tokens = torch.ones(1, _EXAMPLE, dtype=torch.int64)
    row, start = torch.arange(_EXAMPLE), torch.zeros(1, dtype=torch.int64)
    many = torch.export.Dim("n", min=1, max=max_tokens)
    few = torch.export.Dim("n", min=1, max=min(MAX_TREE, max_tokens))
    prefill = {"tokens": {1: many}, "start_pos": None}
    tree = {"tokens": {1: few}, "positions": {0: few}, "tree": {0: few}, "start_pos": None}
    masks = 2 ** (row + 1) - 1
    return {
        "forward": Entry(_Forward(network), (tokens, start), prefill),
        "hidden_states": Entry(_HiddenStates(network), (tokens, start), prefill),
        "verify": Entry(_Verify(network), (tokens, row, masks, start), tree),
        "keep": Entry(_Keep(network), (row, start), {"rows": {0: few}, "start_pos": None}),
    }


def _buffer(name: str) -> str:
    return name.replace(".", "_")
