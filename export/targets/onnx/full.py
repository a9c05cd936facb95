"""The full flavour of the ONNX target: a decoder of our own operators (docs/operators.md), domain `edge`.

A layer is six nodes, whose arithmetic is the native decoder's: int8 activations, a float16 KV cache, and
sparse attention where the model has it. Biases and norms of q and k are more nodes between the first and the
second one; a layer without RoPE has a table of frequencies 0. Weights are the bundle's file, whose tensors
the graph refers to by their names. Caches are changed in place: a caller binds one memory as `cache.N` and as
`cache_out.N`.
"""

from __future__ import annotations

import numpy as np

from edge.config import SparseConfig
from edge.config.rope import rope_parameters
from edge.config.tensors import EMBEDDING, FINAL_NORM, HEAD
from edge.executors.native.operators import EXPORTED_KV
from edge.executors.native.shapes import layer_cache
from edge.export.targets import Progress
from edge.export.targets.onnx.graph import LOGITS_FROM, ROW_LOGITS, GraphBuilder
from edge.formats.bundle.manifest import WEIGHTS
from edge.formats.bundle.reader import Bundle
from edge.model.operators.arguments import cache_numbers, matrix_numbers

DOMAIN = "edge"
_INT8_ACTIVATIONS = 0


class FullDecoder:
    """Writes the decoder of one bundle into a graph."""

    def __init__(
        self,
        graph: GraphBuilder,
        bundle: Bundle,
        context: int,
        sparse: SparseConfig | None,
        progress: Progress | None = None,
    ) -> None:
        """context: rows of a cache, for which rotary frequencies are chosen. sparse: None for dense."""
        self.graph, self.bundle, self.context, self._progress = graph, bundle, context, progress
        self.config = config = bundle.config
        cache = cache_numbers(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            EXPORTED_KV,
            context,
            sparse,
        )
        names = ("heads", "kv_heads", "head_dim", "kv_type", "capacity", "sparse")
        # An empty list can't be written as an attribute: dense attention has none.
        self._shape = {name: value for name, value in zip(names, cache, strict=True) if value != []}
        self._cache_bytes = layer_cache(config, context, sparse).size()

    def write(self) -> None:
        """The whole decoder."""
        graph, config = self.graph, self.config
        tokens = graph.input("input_ids", "int64", ["tokens"])
        positions = graph.input("positions", "int64", ["tokens"])
        graph.input("start", "int64", [1])
        graph.input("tree", "int64", ["tree_tokens"])  # empty for causal order
        graph.optional_input(LOGITS_FROM, np.array([-1], np.int64))
        frequencies, scale = rope_parameters(
            config.rope, config.head_dim, self.context, config.max_position_embeddings
        )
        graph.constant("inverse_frequency", frequencies)
        self._node("rope_table", [positions, "inverse_frequency"], "rope", scale=scale)
        if config.layers_without_rope:
            graph.constant("no_frequency", np.zeros_like(frequencies))
            self._node("rope_table", [positions, "no_frequency"], "no_rope", scale=1.0)
        stream = self._node(
            "embedding",
            [tokens, self._weights(EMBEDDING)],
            "embedded",
            matrix=self._numbers(EMBEDDING),
            scale=config.embedding_scale,
        )
        for layer in range(config.num_hidden_layers):
            if self._progress is not None:
                self._progress(layer, config.num_hidden_layers, f"layer {layer}")
            stream = self._layer(layer, stream)
            graph.output(stream, "float32", ["tokens", config.hidden_size])
        self._end(stream)

    def _end(self, stream: str) -> None:
        """Hidden states of all tokens, and the logits of those that are wanted."""
        graph, config = self.graph, self.config
        norm = self._floats(FINAL_NORM)
        eps = config.rms_norm_eps
        graph.output(self._norm(stream, "hidden", FINAL_NORM), "float32", ["tokens", config.hidden_size])
        bounds = [graph.constant(f"int64.{n}", np.array([n], np.int64)) for n in (2**62, 0)]
        graph.node("Slice", [stream, LOGITS_FROM, *bounds], "wanted")
        head = EMBEDDING if config.tie_word_embeddings else HEAD
        self._node(
            "rms_norm_linear",
            ["wanted", norm, self._weights(head)],
            ROW_LOGITS,
            matrices=self._numbers(head),
            eps=eps,
            scale=config.logit_scale,
            activations=_INT8_ACTIVATIONS,
        )
        graph.output(ROW_LOGITS, "float32", ["logits_length", config.vocab_size])

    def _layer(self, layer: int, stream: str) -> str:
        """The residual stream after a layer."""
        graph, config = self.graph, self.config
        prefix, tensors = f"layers.{layer}", f"model.layers.{layer}"
        cache = graph.input(f"cache.{layer}", "uint8", [self._cache_bytes])
        cache_out = graph.output(f"cache_out.{layer}", "uint8", [self._cache_bytes])
        qkv = [f"{tensors}.self_attn.{name}_proj.weight" for name in "qkv"]
        eps, rounding = config.rms_norm_eps, _INT8_ACTIVATIONS
        self._node(
            "rms_norm_linear",
            [
                *(stream, self._floats(f"{tensors}.input_layernorm.weight")),
                *map(self._weights, qkv),
            ],
            f"{prefix}.qkv",
            matrices=[number for name in qkv for number in self._numbers(name)],
            eps=eps,
            scale=1.0,
            activations=rounding,
        )
        queries = f"{prefix}.queries"
        rope = "no_rope" if layer in config.layers_without_rope else "rope"
        inputs = [self._heads(layer, f"{prefix}.qkv"), rope, "start", cache, "tree"]
        graph.node("kv_append", inputs, [queries, cache_out], DOMAIN, **self._shape)
        self._node("paged_attention", [queries, "start", cache_out, "tree"], f"{prefix}.seen", **self._shape)
        attended = self._add(
            f"{prefix}.seen", f"{tensors}.self_attn.o_proj.weight", stream, f"{prefix}.attended"
        )
        gate, up = (f"{tensors}.mlp.{part}_proj.weight" for part in ("gate", "up"))
        norm = self._floats(f"{tensors}.post_attention_layernorm.weight")
        self._node(
            "rms_norm_swiglu",
            [attended, norm, self._weights(gate), self._weights(up)],
            f"{prefix}.inner",
            matrices=[*self._numbers(gate), *self._numbers(up)],
            eps=eps,
            activations=rounding,
        )
        down = f"{tensors}.mlp.down_proj.weight"
        return self._add(f"{prefix}.inner", down, attended, f"{prefix}.stream")

    def _heads(self, layer: int, qkv: str) -> str:
        """q, k and v side by side with their biases, and every head of q and k normed."""
        graph, config, prefix = self.graph, self.config, f"layers.{layer}"
        attention = f"model.layers.{layer}.self_attn"
        if f"{attention}.q_proj.bias" in self.bundle.tensors:
            biases = [self._floats(f"{attention}.{name}_proj.bias") for name in "qkv"]
            graph.node("Concat", biases, f"{prefix}.biases", axis=0)
            qkv = graph.node("Add", [qkv, f"{prefix}.biases"], f"{prefix}.biased")
        if f"{attention}.q_norm.weight" not in self.bundle.tensors:
            return qkv
        keys, size = config.num_key_value_heads * config.head_dim, config.head_dim
        widths = {"q": config.num_attention_heads * size, "k": keys, "v": keys}
        parts = [f"{prefix}.{name}" for name in widths]
        graph.node("Split", [qkv, self._shape_of("qkv", [*widths.values()])], parts, axis=1)
        for at, name in enumerate("qk"):
            x = graph.node(
                "Reshape", [parts[at], self._shape_of("head", [-1, size])], f"{prefix}.{name}_heads"
            )
            x = self._norm(x, f"{prefix}.{name}_norm", f"{attention}.{name}_norm.weight")
            rows = self._shape_of(name, [-1, widths[name]])
            parts[at] = graph.node("Reshape", [x, rows], f"{prefix}.{name}_normed")
        return graph.node("Concat", parts, f"{prefix}.heads", axis=1)

    def _norm(self, x: str, output: str, tensor: str) -> str:
        """Rows of x, normed."""
        eps = self.config.rms_norm_eps
        return self._node("rms_norm", [x, self._floats(tensor)], output, eps=eps, scale=1.0)

    def _shape_of(self, name: str, sizes: list[int]) -> str:
        return self.graph.constant(f"shape.{name}", np.array(sizes, np.int64))

    def _add(self, x: str, tensor: str, residual: str, output: str) -> str:
        """residual + muP's scale (place 2) x product."""
        return self._node(
            "linear",
            [x, self._weights(tensor), residual],
            output,
            matrix=self._numbers(tensor),
            scale=self.config.residual_scale,
            activations=_INT8_ACTIVATIONS,
        )

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        return self.graph.node(operator, inputs, output, DOMAIN, **attributes)

    def _floats(self, tensor: str) -> str:
        """A norm or a bias."""
        columns, offset = self.bundle.tensors[tensor].columns, self.bundle.offset(tensor)
        return self.graph.refer(tensor, "float32", [columns], WEIGHTS, offset)

    def _weights(self, tensor: str) -> str:
        size, offset = self.bundle.tensors[tensor].bytes, self.bundle.offset(tensor)
        return self.graph.refer(tensor, "uint8", [size], WEIGHTS, offset)

    def _numbers(self, tensor: str) -> list[int]:
        info = self.bundle.tensors[tensor]
        return matrix_numbers(info.scheme.packing, info.rows, info.columns)
