"""The portable flavour of the ONNX target: a decoder of ONNX Runtime's own operators, for any of its builds.

Weights are MatMulNBits at accuracy level 4 (inputs rounded to int8 per block, as the native kernels do),
attention is GroupQueryAttention over past and present buffers that may be the same memory, the embedding is
GatherBlockQuantized. Inputs and outputs have the names and shapes that onnxruntime-genai expects. muP scales
cost nothing at run time but for the embedding's: they are multiplied into scales and a norm when a session
folds its constants. Attention is dense.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from edge.config.rope import rope_parameters, rope_tables
from edge.config.tensors import EMBEDDING, FINAL_NORM, HEAD
from edge.export.targets import Progress
from edge.export.targets.onnx.graph import LOGITS_FROM, MICROSOFT, ROW_LOGITS, GraphBuilder
from edge.export.targets.onnx.weights import BlockLayout, float_vector, matrix_pieces
from edge.formats.bundle.reader import Bundle
from edge.quant.scheme import QuantizedMatrix, QuantScheme


class PortableDecoder:
    """Writes the decoder of one bundle into a graph."""

    def __init__(
        self, graph: GraphBuilder, bundle: Bundle, context: int, progress: Progress | None = None
    ) -> None:
        """context: longest sequence in tokens; rotary frequencies are chosen for it."""
        self.graph, self.bundle, self.context, self._progress = graph, bundle, context, progress
        self.config = bundle.config
        self._made: set[str] = set()  # values that several nodes share

    def write(self) -> None:
        """The whole decoder."""
        graph, config = self.graph, self.config
        graph.input("input_ids", "int64", ["batch_size", "sequence_length"])
        graph.input("attention_mask", "int64", ["batch_size", "total_sequence_length"])
        graph.optional_input(LOGITS_FROM, np.array([-1], np.int64))
        self._lengths()
        self._rotary()
        stream, pending = self._embedding(), ""
        for layer in range(config.num_hidden_layers):
            if self._progress is not None:
                self._progress(layer, config.num_hidden_layers, f"layer {layer}")
            stream, pending = self._layer(layer, stream, pending)
        graph.node("Add", [stream, pending], "stream")
        ends, axes = (self._integers(name, [value]) for name, value in (("last", 2**62), ("axis_1", 1)))
        graph.node("Slice", ["stream", LOGITS_FROM, ends, axes], "wanted")
        self._head(self._norm("wanted", "final_norm", FINAL_NORM, config.logit_scale))
        graph.output(ROW_LOGITS, "float32", ["batch_size", "logits_length", config.vocab_size])
        # onnxruntime-genai takes one row, if the graph promises that there is no more.
        graph.node("Slice", [ROW_LOGITS, self._integers("minus_1", [-1]), ends, axes], "logits")
        graph.output("logits", "float32", ["batch_size", 1, config.vocab_size])
        self._caches()

    def _lengths(self) -> None:
        """What GroupQueryAttention wants to know: rows of every sequence less one, and of the longest."""
        graph = self.graph
        graph.node("ReduceSum", ["attention_mask", self._integers("axis_1", [1])], "seen", keepdims=0)
        graph.node("Sub", ["seen", self._integers("one", [1])], "last_row")
        graph.node("Cast", ["last_row"], "seqlens_k", to=6)
        graph.node("Shape", ["attention_mask"], "mask_shape")
        graph.node("Gather", ["mask_shape", graph.constant("index_1", np.array(1, np.int64))], "total_rows")
        graph.node("Cast", ["total_rows"], "total_sequence_length", to=6)

    def _rotary(self) -> None:
        config = self.config
        frequencies, scale = rope_parameters(
            config.rope, config.head_dim, self.context, config.max_position_embeddings
        )
        tables = rope_tables(np.arange(self.context, dtype=np.float32), frequencies, scale)
        for name, values in zip(("cos", "sin"), tables, strict=True):
            self.graph.tensor(f"rotary.{name}", "float32", values.shape, [values])

    def _caches(self) -> None:
        config, graph = self.config, self.graph
        for layer in range(config.num_hidden_layers):
            for part in ("key", "value"):
                for time, declare in (("past", graph.input), ("present", graph.output)):
                    rows = f"{time}_sequence_length"
                    shape: list[int | str] = ["batch_size", config.num_key_value_heads, rows, config.head_dim]
                    declare(cache_name(time, layer, part), "float32", shape)

    def _layer(self, layer: int, stream: str, pending: str) -> tuple[str, str]:
        """stream, pending: the residual stream and what has still to be added to it; returns the same."""
        graph = self.graph
        prefix, tensors = f"layers.{layer}", f"model.layers.{layer}"
        weights = [f"{tensors}.self_attn.{name}_proj.weight" for name in "qkv"]
        normed, stream = self._add_norm(stream, pending, f"{prefix}.input_norm", f"{tensors}.input_layernorm")
        sums: dict[int, str] = {}  # of the same normed input
        if len({self.bundle.tensors[name].scheme for name in weights}) == 1:
            qkv = [self._linear(normed, f"{prefix}.qkv", weights, sums), "", ""]
        else:
            qkv = [
                self._linear(normed, f"{prefix}.{part}", [name], sums)
                for part, name in zip("qkv", weights, strict=True)
            ]
        attended = self._attention(layer, qkv)
        output = self._scaled_linear(attended, f"{prefix}.output", f"{tensors}.self_attn.o_proj.weight")
        normed, stream = self._add_norm(
            stream, output, f"{prefix}.mlp_norm", f"{tensors}.post_attention_layernorm"
        )
        sums = {}
        gate, up = (
            self._linear(normed, f"{prefix}.{part}", [f"{tensors}.mlp.{part}_proj.weight"], sums)
            for part in ("gate", "up")
        )
        graph.node("Sigmoid", [gate], f"{prefix}.sigmoid")
        graph.node("Mul", [gate, f"{prefix}.sigmoid"], f"{prefix}.silu")
        graph.node("Mul", [f"{prefix}.silu", up], f"{prefix}.inner")
        return stream, self._scaled_linear(
            f"{prefix}.inner", f"{prefix}.down", f"{tensors}.mlp.down_proj.weight"
        )

    def _attention(self, layer: int, qkv: list[str]) -> str:
        """qkv: queries, keys and values, or all three in the first of them."""
        config, rotates = self.config, layer not in self.config.layers_without_rope
        past = [cache_name("past", layer, part) for part in ("key", "value")]
        present = [cache_name("present", layer, part) for part in ("key", "value")]
        return self.graph.node(
            "GroupQueryAttention",
            [
                *(*self._heads(layer, qkv), *past, "seqlens_k", "total_sequence_length"),
                *(("rotary.cos", "rotary.sin") if rotates else ()),
            ],
            [f"layers.{layer}.attention", *present],
            domain=MICROSOFT,
            num_heads=config.num_attention_heads,
            kv_num_heads=config.num_key_value_heads,
            do_rotary=int(rotates),
            rotary_interleaved=0,
            scale=config.head_dim**-0.5,
        )

    def _heads(self, layer: int, qkv: list[str]) -> list[str]:
        """The same with biases, and every head of q and k normed."""
        graph, config = self.graph, self.config
        prefix, attention, size = f"layers.{layer}", f"model.layers.{layer}.self_attn", config.head_dim
        if f"{attention}.q_proj.bias" in self.bundle.tensors:
            biases = {name: [f"{attention}.{name}_proj.bias"] for name in "qkv"}
            if "" in qkv:
                biases = {"qkv": [bias for (bias,) in biases.values()]}
            for at, (name, tensors) in enumerate(biases.items()):
                bias = self._vector(f"{prefix}.{name}.bias", tensors)
                qkv[at] = graph.node("Add", [qkv[at], bias], f"{prefix}.{name}.biased")
        if f"{attention}.q_norm.weight" not in self.bundle.tensors:
            return qkv
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        if "" in qkv:
            sizes = [size * count for count in (*heads.values(), config.num_key_value_heads)]
            packed, qkv = qkv[0], [f"{prefix}.{name}" for name in "qkv"]
            graph.node("Split", [packed, self._integers("qkv_sizes", sizes)], qkv, axis=2)
        for at, (name, count) in enumerate(heads.items()):
            rows = graph.node(
                "Reshape", [qkv[at], self._integers("head_shape", [0, 0, -1, size])], f"{prefix}.{name}.heads"
            )
            normed = self._norm(rows, f"{prefix}.{name}_norm", f"{attention}.{name}_norm.weight")
            width = self._integers(f"{name}_width", [0, 0, count * size])
            qkv[at] = graph.node("Reshape", [normed, width], f"{prefix}.{name}.normed")
        return qkv

    def _norm(self, x: str, name: str, tensor: str, scale: float = 1.0) -> str:
        return self.graph.node(
            "SimplifiedLayerNormalization",
            [x, self._norm_weight(name, tensor, scale)],
            name,
            axis=-1,
            epsilon=self.config.rms_norm_eps,
            stash_type=1,
        )

    def _add_norm(self, stream: str, pending: str, name: str, tensor: str) -> tuple[str, str]:
        """(norm of the sum, the sum)"""
        if not pending:
            return self._norm(stream, name, f"{tensor}.weight"), stream
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [stream, pending, self._norm_weight(name, f"{tensor}.weight")],
            [name, "", "", f"{name}.stream"],
            domain=MICROSOFT,
            epsilon=self.config.rms_norm_eps,
        )
        return name, f"{name}.stream"

    def _norm_weight(self, name: str, tensor: str, scale: float = 1.0) -> str:
        return self._vector(f"{name}.weight", [tensor], scale)

    def _vector(self, name: str, tensors: Sequence[str], scale: float = 1.0) -> str:
        """Norms or biases, one after another, times `scale`."""
        values = (
            float_vector(self.bundle, each) * np.float32(scale) for each in tensors
        )  # read when written
        size = sum(self.bundle.tensors[each].columns for each in tensors)
        return self.graph.tensor(name, "float32", [size], values)

    def _embedding(self) -> str:
        graph, config = self.graph, self.config
        shape = (config.vocab_size, config.hidden_size)
        scheme = self.bundle.tensors[EMBEDDING].scheme
        self._store("embedding", [EMBEDDING])
        if scheme.is_float:
            graph.node("Gather", ["embedding.weight", "input_ids"], "embedding.rows")
            rows = graph.node("Cast", ["embedding.rows"], "embedding.wide", to=1)
        else:
            layout = BlockLayout.of(scheme)
            row_bytes = layout.blocks(shape[1]) * layout.block_bytes()
            # A tied head multiplies by the same bytes.
            codes = graph.same_bytes("embedding.row_codes", "embedding.codes", [shape[0], row_bytes])
            rows = graph.node(
                "GatherBlockQuantized",
                [codes, "input_ids", self._scales("embedding")],
                "embedding.rows",
                domain=MICROSOFT,
                bits=layout.bits,
                block_size=layout.block,
                gather_axis=0,
                quantize_axis=1,
            )
            if shape[1] % layout.block:
                bounds = [self._integers(f"columns.{n}", [n]) for n in (0, shape[1], 2)]
                rows = graph.node("Slice", [rows, *bounds], "embedding.unpadded")
            if scheme.minimum:
                offsets = self._offsets("embedding", layout)
                graph.node("Gather", [offsets, "input_ids"], "embedding.offset_rows")
                blocks = self._block_members(layout, shape[1])
                graph.node(
                    "FusedMatMul",
                    ["embedding.offset_rows", blocks],
                    "embedding.shift",
                    domain=MICROSOFT,
                    transB=1,
                )
                rows = graph.node("Add", [rows, "embedding.shift"], "embedding.shifted")
        if config.embedding_scale == 1:
            return rows
        return graph.node("Mul", [rows, self._float(config.embedding_scale)], "embedding.scaled")

    def _head(self, x: str) -> None:
        if self.config.tie_word_embeddings:
            self._multiply(x, ROW_LOGITS, "embedding", [EMBEDDING], 1.0, {})
        else:
            self._store("head", [HEAD])
            self._multiply(x, ROW_LOGITS, "head", [HEAD], 1.0, {})

    def _scaled_linear(self, x: str, name: str, tensor: str) -> str:
        """A product that joins the residual stream (muP, place 2)."""
        return self._linear(x, name, [tensor], {}, self.config.residual_scale)

    def _linear(
        self, x: str, name: str, tensors: Sequence[str], sums: dict[int, str], scale: float = 1.0
    ) -> str:
        """x times the transposed rows of all `tensors`, which have one scheme, times `scale`."""
        self._store(name, tensors)
        return self._multiply(x, name, name, tensors, scale, sums)

    def _store(self, name: str, tensors: Sequence[str]) -> None:
        """Put the rows of `tensors` into the data file, below one another, under `name`."""
        graph, bundle = self.graph, self.bundle
        infos = [bundle.tensors[tensor] for tensor in tensors]
        scheme, rows, columns = infos[0].scheme, sum(info.rows for info in infos), infos[0].columns

        def pieces() -> chain[QuantizedMatrix | np.ndarray]:
            return chain.from_iterable(matrix_pieces(bundle, tensor) for tensor in tensors)

        if scheme.is_float:
            floats = (np.asarray(piece, np.float16) for piece in pieces())
            graph.tensor(f"{name}.weight", "float16", [rows, columns], floats)
            return
        layout = BlockLayout.of(scheme)
        blocks = layout.blocks(columns)
        scales: list[np.ndarray] = []
        minimums: list[np.ndarray] = []

        def codes() -> Iterator[np.ndarray]:
            for piece in pieces():
                assert isinstance(piece, QuantizedMatrix)
                scales.append(layout.spread(piece.scales, columns))
                if piece.minimums is not None:
                    minimums.append(layout.spread(piece.minimums, columns))
                yield layout.codes(piece)

        graph.tensor(f"{name}.codes", "uint8", [rows, blocks, layout.block_bytes()], codes())
        graph.tensor(f"{name}.scales", "float16", [rows, blocks], scales)
        if scheme.minimum:
            graph.tensor(f"{name}.minimums", "float16", [rows, blocks], minimums)

    def _multiply(
        self, x: str, output: str, name: str, tensors: Sequence[str], scale: float, sums: dict[int, str]
    ) -> str:
        """x times the matrix stored under `name`; sums: block sums of x that exist already, by block size."""
        graph = self.graph
        infos = [self.bundle.tensors[tensor] for tensor in tensors]
        scheme: QuantScheme = infos[0].scheme
        columns = infos[0].columns
        if scheme.is_float:
            wide = graph.node("Cast", [f"{name}.weight"], f"{output}.wide", to=1)
            return graph.node("FusedMatMul", [x, wide], output, domain=MICROSOFT, transB=1, alpha=scale)
        layout = BlockLayout.of(scheme)
        product = f"{output}.product" if scheme.minimum else output
        graph.node(
            "MatMulNBits",
            [x, f"{name}.codes", self._scales(name, scale)],
            product,
            domain=MICROSOFT,
            K=columns,
            N=sum(info.rows for info in infos),
            bits=layout.bits,
            block_size=layout.block,
            accuracy_level=4,
        )
        if not scheme.minimum:
            return product
        # w = s (c - 8) + (m + 8 s): the second part depends on the block alone, so it needs sums of x alone.
        if layout.block not in sums:
            members = self._block_members(layout, columns)
            sums[layout.block] = graph.node("MatMul", [x, members], f"{output}.sums")
        offsets = self._offsets(name, layout)
        graph.node(
            "FusedMatMul",
            [sums[layout.block], offsets],
            f"{output}.shift",
            domain=MICROSOFT,
            transB=1,
            alpha=scale,
        )
        return graph.node("Add", [product, f"{output}.shift"], output)

    def _scales(self, name: str, scale: float = 1.0) -> str:
        """float32 scales, folded from float16 ones when a session is made."""
        wide = f"{name}.wide_scales"
        if wide not in self._made:
            self._made.add(wide)
            self.graph.node("Cast", [f"{name}.scales"], wide, to=1)
        if scale == 1:
            return wide
        return self.graph.node("Mul", [wide, self._float(scale)], f"{name}.scaled_scales")

    def _offsets(self, name: str, layout: BlockLayout) -> str:
        """float32 minimum + middle * scale of every block (int4: 8 * scale)."""
        offsets = f"{name}.offsets"
        if offsets not in self._made:
            self._made.add(offsets)
            self.graph.node("Cast", [f"{name}.minimums"], f"{name}.wide_minimums", to=1)
            self.graph.node("Mul", [self._scales(name), self._float(float(layout.middle))], f"{name}.middle")
            self.graph.node("Add", [f"{name}.wide_minimums", f"{name}.middle"], offsets)
        return offsets

    def _block_members(self, layout: BlockLayout, columns: int) -> str:
        """float32 [columns, blocks]: 1 where the column is in the block."""
        name = f"blocks.{columns}.{layout.block}"
        if name not in self._made:
            self._made.add(name)
            members = np.arange(columns)[:, None] // layout.block == np.arange(layout.blocks(columns))
            self.graph.tensor(name, "float32", members.shape, [members.astype(np.float32)])
        return name

    def _integers(self, name: str, values: list[int]) -> str:
        return self.graph.constant(name, np.array(values, np.int64))

    def _float(self, value: float) -> str:
        return self.graph.constant(f"float.{value!r}", np.array(value, np.float32))


def cache_name(time: str, layer: int, part: str) -> str:
    """The name of a cache tensor, as onnxruntime-genai has it."""
    return f"{'past_key_values' if time == 'past' else 'present'}.{layer}.{part}"
