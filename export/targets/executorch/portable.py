"""The portable flavour of ExecuTorch: XNNPACK programs between standard operators that keep the KV cache.

A program goes from the attention of a layer to the keys of the next one: softmax attention, projection,
SwiGLU, then norm, queries, keys and values of the next layer. Between two programs the new keys and values
are written into the cache in place, which XNNPACK can't do. Matrices are XNNPACK's int4 or int8, with
activations rounded to int8 per token (8da4w); everything else is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge.config import ModelConfig
from edge.config.tensors import EMBEDDING, FINAL_NORM, HEAD, expected_tensors
from edge.export.targets.executorch.lowering import Entry
from edge.export.targets.executorch.weights import (
    Matrix,
    PortableEmbedding,
    PortableWeights,
    portable_weights,
    stacked,
)
from edge.export.targets.executorch.xnnpack_graph import XnnpackGraph
from edge.export.targets.executorch.xnnpack_shapes import Shape, Size
from edge.model.network.rope import RotaryEmbedding

_EXAMPLE = 3  # tokens of the example inputs; any length from 2 on
_BLOCK = 64  # attention reads the cache up to a multiple of so many rows
_HIDDEN = -1e9  # added to the scores of rows that a token may not see
ReadTensor = Callable[[str], Matrix]
"""A tensor of the source by name: a quantized matrix, or floats."""


class PortableNetwork(nn.Module):
    """`forward(tokens int64 [1, n], start_pos int64 [1])` -> logits [1, vocab]: what phone runners call."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: ModelConfig, read: ReadTensor, context: int, max_tokens: int) -> None:
        """max_tokens: most tokens of a call."""
        super().__init__()
        self.config = config
        self.capacity = capacity = -(-context // _BLOCK) * _BLOCK
        self.embedding = PortableEmbedding(read(EMBEDDING))
        cosines, sines = RotaryEmbedding(config, context)(torch.arange(context))
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)
        shape = (config.num_key_value_heads, capacity, config.head_dim)
        for layer in range(config.num_hidden_layers):
            self.register_buffer(f"keys_{layer}", torch.zeros(shape), persistent=False)
            self.register_buffer(f"values_{layer}", torch.zeros(shape), persistent=False)
        programs = _Programs(config, read, capacity, max_tokens)
        self.first = programs.first()
        self.stages = nn.ModuleList(programs.stage(layer) for layer in range(config.num_hidden_layers))
        self.head = programs.head()

    def forward(self, tokens: Tensor, start_pos: Tensor) -> Tensor:
        """See the class; the tokens' keys and values are written at rows start_pos .. start_pos + n."""
        ids = tokens.reshape(-1)
        rows = start_pos + torch.arange(ids.shape[0])
        tables = self.cosines.index_select(1, rows), self.sines.index_select(1, rows)
        angles = tuple(table.squeeze(0).unsqueeze(1) for table in tables)
        used: int = ((start_pos + ids.shape[0] + _BLOCK - 1) // _BLOCK * _BLOCK)[0].item()  # type: ignore[assignment]
        torch._check(used >= _BLOCK)
        torch._check(used <= self.capacity)
        seen = torch.arange(used) <= rows.unsqueeze(-1)
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        mask = torch.where(seen, 0.0, _HIDDEN).repeat(group, 1)
        x = self.embedding(ids) * self.config.embedding_scale
        q, k, v = self.first(x, *(angles if self._rotates(0) else ()))
        for layer, stage in enumerate(self.stages):
            keys, values = getattr(self, f"keys_{layer}"), getattr(self, f"values_{layer}")
            # index_put is the one update that the runtime's reinplace pass turns into a write without a copy.
            keys[:, rows] = k
            values[:, rows] = v
            given = (x, q, keys[:, :used], values[:, :used], mask)
            if layer == self.config.num_hidden_layers - 1:
                (x,) = stage(*given)
            else:
                x, q, k, v = stage(*given, *(angles if self._rotates(layer + 1) else ()))
        logits: Tensor = self.head(x[-1:])[0]
        return logits

    def _rotates(self, layer: int) -> bool:
        return layer not in self.config.layers_without_rope


class _Programs:
    """Writes the XNNPACK programs of a network."""

    def __init__(self, config: ModelConfig, read: ReadTensor, capacity: int, max_tokens: int) -> None:
        self.config, self.read, self.most = config, read, max_tokens
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.group, self.dim = self.heads // self.kv_heads, config.head_dim
        self._rotated = (("q", self.heads), ("k", self.kv_heads))
        self.tensors = expected_tensors(config).keys()
        tokens, used = Size("tokens", max_tokens), Size("used", capacity)
        self._x: Shape = (tokens, config.hidden_size)
        self._angle: Shape = (tokens, 1, self.dim // 2)
        self._q: Shape = (self.kv_heads, tokens * self.group, self.dim)
        self._kv: Shape = (self.kv_heads, tokens, self.dim)
        self._cache: Shape = (self.kv_heads, used, self.dim)
        self._mask: Shape = (tokens * self.group, used)

    def first(self) -> nn.Module:
        """x (, cos, sin) -> q, k, v of layer 0; cos and sin for a layer that rotates."""
        graph = XnnpackGraph()
        x = graph.input(self._x)
        return graph.lowered(self._projections(graph, x, self._angles(graph, 0), 0))

    def stage(self, layer: int) -> nn.Module:
        """x, q, keys, values, mask (, cos, sin) -> x after this layer (, q, k, v of the next one)."""
        graph, last = XnnpackGraph(), layer == self.config.num_hidden_layers - 1
        x, q = graph.input(self._x), graph.input(self._q)
        keys, values = graph.input(self._cache), graph.input(self._cache)
        mask = graph.input(self._mask)
        angles = () if last else self._angles(graph, layer + 1)
        scores = graph.add(graph.matmul(q, keys, transposed=True), mask)
        seen = graph.matmul(graph.softmax(scores), values)
        x = self._residual(graph, x, self._merged(graph, seen), f"model.layers.{layer}.self_attn.o_proj")
        x = self._mlp(graph, x, f"model.layers.{layer}")
        projections = {} if last else self._projections(graph, x, angles, layer + 1)
        return graph.lowered({x: self._x, **projections})

    def head(self) -> nn.Module:
        """x [1, hidden] -> logits [1, vocab]."""
        config, graph = self.config, XnnpackGraph()
        x = graph.input((1, config.hidden_size))
        norm = self._floats(FINAL_NORM) * np.float32(config.logit_scale)
        name = EMBEDDING if config.tie_word_embeddings else HEAD
        logits = graph.quantized_linear(self._normed(graph, x, norm), portable_weights(self.read(name)))
        return graph.lowered({logits: (1, config.vocab_size)})

    def _angles(self, graph: XnnpackGraph, layer: int) -> tuple[int, ...]:
        """cos and sin for the queries and keys of a layer; () where it does without them."""
        rotates = layer not in self.config.layers_without_rope
        return (graph.input(self._angle), graph.input(self._angle)) if rotates else ()

    def _floats(self, name: str) -> npt.NDArray[np.float32]:
        return np.asarray(self.read(name), np.float32).reshape(-1)

    def _normed(self, graph: XnnpackGraph, x: int, weight: npt.NDArray[np.float32]) -> int:
        """RMSNorm of rows."""
        factor = self._inverse_rms(graph, (x,), len(weight))
        return graph.multiply(graph.multiply(x, factor), graph.constant(weight))

    def _inverse_rms(self, graph: XnnpackGraph, parts: Sequence[int], size: int) -> int:
        """1 / rms of rows of `size` columns, which may lie in equal parts.

        XNNPACK has no mean over columns, so it is a matrix of one row.
        """
        weights = np.full((1, size // len(parts)), 1 / size, np.float32)
        mean = graph.constant(np.array([self.config.rms_norm_eps], np.float32))
        for part in parts:
            mean = graph.add(graph.linear(graph.square(part), weights), mean)
        return graph.rsqrt(mean)

    def _projections(
        self, graph: XnnpackGraph, x: int, angles: tuple[int, ...], layer: int
    ) -> dict[int, Shape]:
        """q [kv_heads, group * n, dim], rotated and scaled; k, rotated, and v [kv_heads, n, dim]."""
        prefix, half, most = f"model.layers.{layer}.", self.dim // 2, self.most
        normed = self._normed(graph, x, self._floats(f"{prefix}input_layernorm.weight"))
        q, k, v = (portable_weights(self.read(f"{prefix}self_attn.{part}_proj.weight")) for part in "qkv")
        # The first halves of all heads, then the second ones: a rotation mixes one with the other.
        places = [(part, self._halves(heads, at)) for at in (0, 1) for part, heads in self._rotated]
        order = [(q if part == "q" else k).rows(rows) for part, rows in places]
        y = self._joined(graph, normed, [*order, v])
        if f"{prefix}self_attn.q_proj.bias" in self.tensors:
            b = {part: self._floats(f"{prefix}self_attn.{part}_proj.bias") for part in "qkv"}
            biases = [*(b[part][rows] for part, rows in places), b["v"]]
            y = graph.add(y, graph.constant(np.concatenate(biases)))
        heads = self.heads + self.kv_heads
        first, second = (
            graph.reshape(
                graph.slice(y, 1, at * heads * half, (at + 1) * heads * half),
                (0, heads, half),
                (most, heads, half),
            )
            for at in (0, 1)
        )
        if f"{prefix}self_attn.q_norm.weight" in self.tensors:
            first, second = self._normed_heads(graph, (first, second), f"{prefix}self_attn")
        if angles:
            cos, sin = angles
            first, second = (
                graph.subtract(graph.multiply(first, cos), graph.multiply(second, sin)),
                graph.add(graph.multiply(second, cos), graph.multiply(first, sin)),
            )
        turned = graph.concatenate(first, second)
        queries = graph.slice(turned, 1, 0, self.heads)
        queries = graph.multiply(queries, graph.constant(np.array([self.dim**-0.5], np.float32)))
        grouped = (self.kv_heads, self.group, self.dim)
        queries = graph.transpose(graph.reshape(queries, (0, *grouped), (most, *grouped)), (1, 2, 0, 3))
        queries = graph.reshape(
            queries, (self.kv_heads, 0, self.dim), (self.kv_heads, self.group * most, self.dim)
        )
        keys = graph.transpose(graph.slice(turned, 1, self.heads, heads), (1, 0, 2))
        width = self.kv_heads * self.dim
        values = graph.slice(y, 1, 2 * heads * half, 2 * heads * half + width)
        values = graph.reshape(values, (0, self.kv_heads, self.dim), (most, self.kv_heads, self.dim))
        return {queries: self._q, keys: self._kv, graph.transpose(values, (1, 0, 2)): self._kv}

    def _normed_heads(self, graph: XnnpackGraph, halves: tuple[int, int], attention: str) -> tuple[int, int]:
        """RMSNorm of every head of q and k, whose halves are [n, heads, dim / 2]."""
        factor = self._inverse_rms(graph, halves, self.dim)
        weight = np.concatenate(
            [
                np.tile(self._floats(f"{attention}.{part}_norm.weight"), (heads, 1))
                for part, heads in self._rotated
            ]
        )
        first, second = (
            graph.multiply(graph.multiply(half, factor), graph.constant(columns))
            for half, columns in zip(halves, np.split(weight, 2, axis=1), strict=True)
        )
        return first, second

    def _halves(self, heads: int, half: int) -> npt.NDArray[np.int64]:
        """Rows of the first (0) or second (1) halves of the heads of a projection."""
        rows = np.arange(heads * self.dim).reshape(heads, 2, self.dim // 2)
        return rows[:, half].reshape(-1)

    def _merged(self, graph: XnnpackGraph, seen: int) -> int:
        """[kv_heads, group * n, dim] -> [n, heads * dim]"""
        split = (self.kv_heads, self.group, self.most, self.dim)
        parts = graph.reshape(seen, (self.kv_heads, self.group, 0, self.dim), split)
        rows = graph.transpose(parts, (2, 0, 1, 3))
        return graph.reshape(rows, (0, self.heads * self.dim), (self.most, self.heads * self.dim))

    def _mlp(self, graph: XnnpackGraph, x: int, prefix: str) -> int:
        normed = self._normed(graph, x, self._floats(f"{prefix}.post_attention_layernorm.weight"))
        parts = [portable_weights(self.read(f"{prefix}.mlp.{part}_proj.weight")) for part in ("gate", "up")]
        both, size = self._joined(graph, normed, parts), self.config.intermediate_size
        gate, up = graph.slice(both, 1, 0, size), graph.slice(both, 1, size, 2 * size)
        inner = graph.multiply(graph.multiply(gate, graph.sigmoid(gate)), up)
        return self._residual(graph, x, inner, f"{prefix}.mlp.down_proj")

    def _residual(self, graph: XnnpackGraph, x: int, inner: int, name: str) -> int:
        y = graph.quantized_linear(inner, portable_weights(self.read(f"{name}.weight")))
        if self.config.residual_scale != 1:
            y = graph.multiply(y, graph.constant(np.array([self.config.residual_scale], np.float32)))
        return graph.add(x, y)

    def _joined(self, graph: XnnpackGraph, x: int, parts: Sequence[PortableWeights]) -> int:
        """x times several matrices, side by side: one matrix for neighbours of one format."""
        results = [graph.quantized_linear(x, weights) for weights in stacked(parts)]
        result = results[0]
        for other in results[1:]:
            result = graph.concatenate(result, other)
        return result


def entry(network: PortableNetwork, max_tokens: int) -> Entry:
    """The method `forward` with a prefill of 1 to max_tokens tokens."""
    inputs = torch.ones(1, _EXAMPLE, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    many = torch.export.Dim("n", min=1, max=max_tokens)
    return Entry(network, inputs, {"tokens": {1: many}, "start_pos": None})
