"""The decoder as a stateful ML Program for iOS 18, built operator by operator.

The function `main` gives `logits` float32 [1, vocab_size] of the last of `tokens` int32 [1, n], which stand
at `position` int32 [1] and after. Keys and values are states, float16 [KV heads, context, head_dim] for every
layer: rows from `position` on are overwritten, so a sequence is continued by the next position, and cut back
by a smaller one.
Weights, products and caches are float16; the residual stream and the norms are float32, because the squares
of large activations leave float16's range.

With sparse attention there are states of summaries too (`edge.export.targets.coreml.sparse`), and a second
function `decode` with the same weights, names and states for a single token: it gathers the blocks that the
token reads, where `main` masks a product with the whole cache. Both give the same result at every position.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.config import ModelConfig
from edge.config.rope import rope_parameters, rope_tables
from edge.config.tensors import EMBEDDING, FINAL_NORM, HEAD
from edge.export.source import Source
from edge.export.targets.coreml.sparse import SparseAttention, SparseLayout
from edge.export.targets.coreml.weights import Weights

MAX_TOKENS = 256
"""Most tokens of one prediction."""
_HIDDEN = np.float16(-3e4)  # of scores that a query must not see; float16 has no room for much less


def build_program(source: Source, context: int, layout: SparseLayout | None = None) -> Any:
    """The MIL program of the source's network with caches for `context` tokens; layout: None for dense."""
    from coremltools.converters.mil.mil import Program, get_new_symbol

    program, weights = Program(), Weights(source)
    program.add_function("main", _function(weights, context, layout, get_new_symbol()))
    if layout is not None:
        program.add_function("decode", _function(weights, context, layout, 1))
    return program


def _function(weights: Weights, context: int, layout: SparseLayout | None, count: Any) -> Any:
    """The function for `count` tokens, a number or a symbol."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, types

    config = weights.source.config
    inputs = {
        "tokens": mb.placeholder(shape=(1, count), dtype=types.int32),
        "position": mb.placeholder(shape=(1,), dtype=types.int32),
    }
    rows = {"keys": context, "values": context} if layout is None else layout.states
    for layer in range(config.num_hidden_layers):
        for part, length in rows.items():
            shape = (config.num_key_value_heads, length, config.head_dim)
            inputs[f"{part}_{layer}"] = mb.state_tensor_placeholder(shape=shape, dtype=types.fp16)
    with Function(inputs, opset_version=ct.target.iOS18) as function:
        graph = _Graph(weights, context, layout, mb, function.inputs, count == 1)
        function.set_outputs([graph.logits()])
    return function


class _Graph:
    """Adds the network's operators to the function that is being built."""

    def __init__(
        self, weights: Weights, context: int, layout: SparseLayout | None, mb: Any, inputs: Any, single: bool
    ) -> None:
        """single: the function takes one token, so no shape depends on an input."""
        self.weights, self.source, self.config, self.mb = weights, weights.source, weights.source.config, mb
        self.inputs = inputs
        self.start = mb.squeeze(x=inputs["position"], axes=[0])
        count = np.int32(1) if single else mb.gather(x=mb.shape(x=inputs["tokens"]), indices=1, axis=0)
        self.stop = mb.add(x=self.start, y=count)
        positions = inputs["position"] if single else mb.range_1d(start=self.start, end=self.stop, step=1)
        cos, sin = _rotary_tables(self.config, context)
        self.cos = mb.gather(x=cos, indices=positions, axis=0, validate_indices=False)
        self.sin = mb.gather(x=sin, indices=positions, axis=0, validate_indices=False)
        self.sparse: SparseAttention | None = None
        if layout is not None:
            most = 1 if single else MAX_TOKENS
            self.sparse = SparseAttention(mb, self.config, layout, inputs, positions, self.start, most)
        else:
            columns = np.arange(context, dtype=np.int32)[None]
            self.seen = mb.less_equal(x=columns, y=mb.expand_dims(x=positions, axes=[1]))

    def logits(self) -> Any:
        mb, config = self.mb, self.config
        table = self.weights.matrix(EMBEDDING)
        embedded = mb.gather(x=table, indices=self.inputs["tokens"], axis=0, validate_indices=False)
        x = mb.mul(x=self._float32(mb.squeeze(x=embedded, axes=[0])), y=np.float32(config.embedding_scale))
        for layer in range(config.num_hidden_layers):
            x = self._layer(x, layer)
        last = mb.slice_by_index(
            x=x, begin=[-1, 0], end=[0, 0], begin_mask=[False, True], end_mask=[True, True]
        )
        normed = self._norm(last, FINAL_NORM, config.logit_scale)
        head = table if config.tie_word_embeddings else self.weights.matrix(HEAD)
        return mb.cast(x=mb.linear(x=normed, weight=head), dtype="fp32", name="logits")

    def _layer(self, x: Any, layer: int) -> Any:
        name = f"model.layers.{layer}"
        attended = self._attention(self._norm(x, f"{name}.input_layernorm.weight"), layer)
        x = self._add(x, attended)
        normed = self._norm(x, f"{name}.post_attention_layernorm.weight")
        gate = self.mb.silu(x=self._linear(normed, f"{name}.mlp.gate_proj.weight"))
        inner = self.mb.mul(x=gate, y=self._linear(normed, f"{name}.mlp.up_proj.weight"))
        return self._add(x, self._linear(inner, f"{name}.mlp.down_proj.weight"))

    def _attention(self, x: Any, layer: int) -> Any:
        mb, config = self.mb, self.config
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        name = f"model.layers.{layer}.self_attn"
        q, k, v = (self._linear(x, f"{name}.{part}_proj.weight") for part in "qkv")
        q = mb.transpose(x=mb.reshape(x=q, shape=[-1, heads, size]), perm=[1, 0, 2])
        k, v = (mb.transpose(x=mb.reshape(x=y, shape=[-1, kv_heads, size]), perm=[1, 0, 2]) for y in (k, v))
        if f"{name}.q_norm.weight" in self.source.tensors:
            q, k = (
                self._norm(self._float32(y), f"{name}.{part}_norm.weight") for y, part in ((q, "q"), (k, "k"))
            )
        if layer not in config.layers_without_rope:
            q, k = self._rotate(q), self._rotate(k)
        keys = self._append(f"keys_{layer}", k)
        values = self._append(f"values_{layer}", v)
        # Query heads of a group share keys: [KV heads, group, n, size] against [KV heads, 1, m, size].
        q = mb.reshape(x=q, shape=[kv_heads, heads // kv_heads, -1, size])
        if self.sparse is None:
            seen = self.seen
        else:
            keys, values, seen = self.sparse.visible(q, keys, values, layer)
        q = mb.mul(x=q, y=np.float16(size**-0.5))
        scores = mb.matmul(x=q, y=mb.expand_dims(x=keys, axes=[1]), transpose_y=True)
        weights = mb.softmax(x=mb.select(cond=seen, a=scores, b=_HIDDEN), axis=-1)
        found = mb.matmul(x=weights, y=mb.expand_dims(x=values, axes=[1]))
        found = mb.transpose(x=mb.reshape(x=found, shape=[heads, -1, size]), perm=[1, 0, 2])
        return self._linear(mb.reshape(x=found, shape=[-1, heads * size]), f"{name}.o_proj.weight")

    def _append(self, state: str, rows: Any) -> Any:
        """Write rows [KV heads, n, head_dim] from the position on; the whole cache after it."""
        mb, (heads, _, size) = self.mb, self.inputs[state].shape
        zero = np.zeros(1, np.int32)
        ends = [np.array([each], np.int32) for each in (heads, size)]
        begin = mb.concat(values=[zero, mb.expand_dims(x=self.start, axes=[0]), zero], axis=0)
        end = mb.concat(values=[ends[0], mb.expand_dims(x=self.stop, axes=[0]), ends[1]], axis=0)
        before = mb.read_state(input=self.inputs[state])
        after = mb.slice_update(x=before, update=rows, begin=begin, end=end)
        return mb.coreml_update_state(state=self.inputs[state], value=after)

    def _rotate(self, x: Any) -> Any:
        """Rotary embedding of [heads, n, head_dim]: the two halves of a head are the pairs."""
        mb = self.mb
        first, second = mb.split(x=x, num_splits=2, axis=-1)
        left = mb.sub(x=mb.mul(x=first, y=self.cos), y=mb.mul(x=second, y=self.sin))
        right = mb.add(x=mb.mul(x=second, y=self.cos), y=mb.mul(x=first, y=self.sin))
        return mb.concat(values=[left, right], axis=-1)

    def _norm(self, x: Any, name: str, scale: float = 1.0) -> Any:
        """RMSNorm of the last dimension of a float32 tensor, times `scale`, as float16."""
        mb = self.mb
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        normed = mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float32(self.config.rms_norm_eps)))
        factor = self.source.floats(name) * np.float32(scale)
        return mb.cast(x=mb.mul(x=normed, y=factor), dtype="fp16")

    def _linear(self, x: Any, name: str) -> Any:
        bias = f"{name.removesuffix('.weight')}.bias"
        given = {"bias": self.weights.bias(bias)} if bias in self.source.tensors else {}
        return self.mb.linear(x=x, weight=self.weights.matrix(name), **given)

    def _add(self, x: Any, y: Any) -> Any:
        """x + residual scale * y, in float32."""
        return self.mb.add(x=x, y=self.mb.mul(x=self._float32(y), y=np.float32(self.config.residual_scale)))

    def _float32(self, x: Any) -> Any:
        return self.mb.cast(x=x, dtype="fp32")


def _rotary_tables(config: ModelConfig, context: int) -> tuple[Any, Any]:
    """cos and sin, float16 [context, head_dim / 2]."""
    frequencies, factor = rope_parameters(
        config.rope, config.head_dim, context, config.max_position_embeddings
    )
    cos, sin = rope_tables(np.arange(context, dtype=np.float64), frequencies, factor)
    return cos.astype(np.float16), sin.astype(np.float16)
