"""Block-sparse attention (InfLLM-V2) of a Core ML program, composed of standard MIL operators.

The specification is `edge.model.attention.sparse`; names are those of docs/sparse-attention.md. Summaries are
states beside the cache, fine and coarse, float16 [KV heads, windows, head_dim]. A prediction computes those
again that its rows could complete, from the stored rows: so they stay a pure function of the rows after any
step back, and a window that is not complete is never read. Scores are float32.

What MIL's `topk` does with equal scores is not documented. Only its values are used here, never its indices:
blocks above the least chosen score are taken, then those that equal it from the lower id on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.config import ModelConfig, SparseConfig

_EXPONENT_LIMIT = np.float32(80)  # as in `edge.model.attention.sparse`
_LEAST = np.float32(-1e30)  # of scores that a query must not see
_FORCED = np.float32(np.finfo(np.float32).max)  # above every score, which exponents of 80 bound


@dataclass(frozen=True)
class SparseLayout:
    """Sizes of the states and of a selection. context: tokens that the program is made for."""

    sparse: SparseConfig
    context: int

    @property
    def blocks(self) -> int:
        """Blocks of the cache; the last one may reach beyond the context."""
        return -(-self.context // self.sparse.block_size)

    @property
    def rows(self) -> int:
        """Rows of the cache: whole blocks."""
        return self.blocks * self.sparse.block_size

    @property
    def fine(self) -> int:
        """Rows of the state of fine summaries."""
        return _windows(self.rows, self.sparse.kernel_size, self.sparse.kernel_stride)

    @property
    def coarse(self) -> int:
        """Rows of the state of coarse summaries; 0 if scores are normalised without them."""
        if self.sparse.exact_lse:
            return 0
        return _windows(self.rows, self.sparse.coarse_size, self.sparse.coarse_stride)

    @property
    def early(self) -> bool:
        """Whether a query can be sparse that sees no complete coarse window yet."""
        return self.coarse > 0 and self.sparse.dense_len < self.sparse.coarse_size - 1

    @property
    def states(self) -> dict[str, int]:
        """Rows of the states of a layer by kind."""
        rows = {"keys": self.rows, "values": self.rows, "fine": self.fine, "coarse": self.coarse}
        return {name: count for name, count in rows.items() if count}

    @property
    def selected(self) -> int:
        """Blocks that a sparse query reads."""
        return min(self.blocks, self.sparse.topk + self.sparse.local_blocks)

    @property
    def gathered(self) -> int:
        """Blocks that a decode step reads: enough for a query that is still dense, too."""
        dense = -(-self.sparse.dense_len // self.sparse.block_size)
        return min(self.blocks, max(self.selected, dense))

    @property
    def index_lengths(self) -> tuple[int, ...]:
        """Lengths of the tables of 4-byte numbers that the program holds."""
        return (self.rows, self.blocks, self.blocks, self.sparse.block_size, self.fine, self.coarse)

    @property
    def decode_rows(self) -> int:
        """Rows of keys, values and summaries that a decode step reads, of every KV head and layer."""
        kernels = self.sparse.kernel_size + (self.sparse.coarse_size if self.coarse else 0)
        return 2 * self.gathered * self.sparse.block_size + self.fine + self.coarse + kernels

    def updated(self, windows: int, stride: int, tokens: int) -> int:
        """How many summaries are computed again when up to `tokens` rows are written."""
        return min(windows, -(-tokens // stride))


class SparseAttention:
    """Chooses the rows of every layer that the queries of one prediction read.

    positions: int32 [n]. start: int32, the first of them. tokens: the most of them; with one, `visible`
    gathers the chosen blocks, otherwise it masks the whole cache.
    """

    def __init__(
        self,
        mb: Any,
        config: ModelConfig,
        layout: SparseLayout,
        inputs: Any,
        positions: Any,
        start: Any,
        tokens: int,
    ) -> None:
        self.mb, self.config, self.layout, self.sparse = mb, config, layout, layout.sparse
        self.inputs, self.start, self.tokens = inputs, start, tokens
        sparse = self.sparse
        self.position = mb.expand_dims(x=positions, axes=[1])
        rows = mb.add(x=self.position, y=np.int32(1))  # that a query sees
        self.fine_seen = mb.less_equal(x=_ends(layout.fine, sparse.kernel_size, sparse.kernel_stride), y=rows)
        self.coarse_seen = mb.less_equal(
            x=_ends(layout.coarse, sparse.coarse_size, sparse.coarse_stride), y=rows
        )
        blocks = _count(layout.blocks)
        own = mb.floor_div(x=self.position, y=np.int32(sparse.block_size))
        self.exists = mb.less_equal(x=blocks, y=own)
        local = mb.greater(x=blocks, y=mb.sub(x=own, y=np.int32(sparse.local_blocks)))
        dense = mb.less_equal(x=rows, y=np.int32(sparse.dense_len))
        forced = mb.logical_or(x=mb.logical_or(x=local, y=dense), y=blocks < sparse.init_blocks)
        self.forced = mb.logical_and(x=self.exists, y=forced)
        self.seen = mb.less_equal(x=_count(layout.rows), y=self.position)
        self._first: dict[int, tuple[Any, Any]] = {}

    def visible(self, q: Any, keys: Any, values: Any, layer: int) -> tuple[Any, Any, Any]:
        """Keys and values [KV heads, rows, head_dim], and which of the rows each query sees.

        q: [KV heads, group, n, head_dim]; keys, values: the layer's cache with the rows of this prediction.
        The third result broadcasts to [KV heads, group, n, rows].
        """
        sparse, layout = self.sparse, self.layout
        fine = self._summaries(f"fine_{layer}", keys, layout.fine, sparse.kernel_size, sparse.kernel_stride)
        coarse = None
        if layout.coarse:
            name = f"coarse_{layer}"
            coarse = self._summaries(name, keys, layout.coarse, sparse.coarse_size, sparse.coarse_stride)
        taken = self._taken(self._block_scores(q, fine, coarse))
        return self._gathered(taken, keys, values) if self.tokens == 1 else (keys, values, self._mask(taken))

    def _summaries(self, state: str, keys: Any, windows: int, size: int, stride: int) -> Any:
        """Bring a state up to date: the windows that end within the new rows, as many as there can be."""
        mb, heads, width = self.mb, self.config.num_key_value_heads, self.config.head_dim
        count = self.layout.updated(windows, stride, self.tokens)
        if size not in self._first:
            first = mb.floor_div(
                x=mb.maximum(x=mb.sub(x=self.start, y=np.int32(size - stride)), y=np.int32(0)),
                y=np.int32(stride),
            )
            first = mb.minimum(x=first, y=np.int32(windows - count))
            self._first[size] = first, mb.mul(x=first, y=np.int32(stride))
        first, row = self._first[size]
        length = (count - 1) * stride + size
        read = mb.slice_by_size(x=keys, begin=self._at(row), size=[heads, length, width])
        read = mb.expand_dims(x=mb.cast(x=read, dtype="fp32"), axes=[0])
        means = mb.avg_pool(x=read, kernel_sizes=[size, 1], strides=[stride, 1], pad_type="valid")
        means = mb.cast(x=mb.squeeze(x=means, axes=[0]), dtype="fp16")
        end = mb.add(x=first, y=np.int32(count))
        after = mb.slice_update(
            x=mb.read_state(input=self.inputs[state]),
            update=means,
            begin=self._at(first),
            end=mb.concat(values=[_one(heads), mb.expand_dims(x=end, axes=[0]), _one(width)], axis=0),
        )
        return mb.coreml_update_state(state=self.inputs[state], value=after)

    def _at(self, row: Any) -> Any:
        """The index [0, row, 0]."""
        return self.mb.concat(values=[_one(0), self.mb.expand_dims(x=row, axes=[0]), _one(0)], axis=0)

    def _block_scores(self, q: Any, fine: Any, coarse: Any) -> Any:
        """float32 [KV heads, n, blocks]: the best score of the fine kernels that overlap each block."""
        mb, sparse = self.mb, self.sparse
        q = mb.mul(x=mb.cast(x=q, dtype="fp32"), y=np.float32(self.config.head_dim**-0.5))
        exponents = self._products(q, fine, self.fine_seen)
        if coarse is None:
            shares = mb.softmax(x=exponents, axis=-1)
        else:
            normaliser = self._normaliser(self._products(q, coarse, self.coarse_seen), exponents)
            top = mb.reduce_max(x=normaliser, axes=[-1], keep_dims=True)
            total = mb.reduce_sum(x=mb.exp(x=mb.sub(x=normaliser, y=top)), axes=[-1], keep_dims=True)
            clamped = mb.minimum(x=mb.sub(x=exponents, y=top), y=_EXPONENT_LIMIT)
            shares = mb.real_div(x=mb.exp(x=clamped), y=total)
        scores = mb.reduce_sum(x=shares, axes=[1], keep_dims=False)
        scores = mb.select(cond=self.fine_seen, a=scores, b=np.float32(0))
        per_block = sparse.block_size // sparse.kernel_stride
        overlap = sparse.kernel_size // sparse.kernel_stride - 1  # kernels that begin in the block before
        return mb.max_pool(
            x=scores,
            kernel_sizes=[per_block + overlap],
            strides=[per_block],
            pad_type="custom",
            pad=[overlap, overlap],
        )

    def _products(self, q: Any, summaries: Any, seen: Any) -> Any:
        """q . K / sqrt(d), float32 [KV heads, group, n, windows], very small where a window is not seen."""
        mb = self.mb
        summaries = mb.expand_dims(x=mb.cast(x=summaries, dtype="fp32"), axes=[1])
        return mb.select(cond=seen, a=mb.matmul(x=q, y=summaries, transpose_y=True), b=_LEAST)

    def _normaliser(self, coarse: Any, fine: Any) -> Any:
        """Products with the coarse kernels, and with the fine ones for queries that see no coarse one yet."""
        mb, sparse = self.mb, self.sparse
        if not self.layout.early:
            return coarse
        few = _windows(sparse.coarse_size - 1, sparse.kernel_size, sparse.kernel_stride)
        end, whole = [0, 0, 0, few], [True, True, True, False]
        fine = mb.slice_by_index(x=fine, begin=[0, 0, 0, 0], end=end, end_mask=whole)
        early = mb.less(x=self.position, y=np.int32(sparse.coarse_size - 1))
        return mb.concat(values=[coarse, mb.select(cond=early, a=fine, b=_LEAST)], axis=-1)

    def _taken(self, scores: Any) -> Any:
        """bool [KV heads, n, blocks]: what each query reads; the first that do not exist yet fill it up."""
        mb = self.mb
        scores = mb.select(cond=self.exists, a=scores, b=np.float32(-1))
        scores = mb.select(cond=self.forced, a=_FORCED, b=scores)
        best = mb.topk(x=scores, k=self.layout.selected, axis=-1, return_indices=False)
        least = mb.reduce_min(x=best, axes=[-1], keep_dims=True)
        above, equal = mb.greater(x=scores, y=least), mb.equal(x=scores, y=least)
        taken = mb.reduce_sum(x=mb.cast(x=above, dtype="fp32"), axes=[-1], keep_dims=True)
        place = mb.add(x=mb.cumsum(x=mb.cast(x=equal, dtype="fp32"), axis=-1), y=taken)
        fits = mb.less_equal(x=place, y=np.float32(self.layout.selected))
        chosen = mb.logical_or(x=above, y=mb.logical_and(x=equal, y=fits))
        return mb.logical_or(x=chosen, y=self.forced)

    def _mask(self, taken: Any) -> Any:
        """bool [KV heads, 1, n, rows] of the whole cache."""
        mb, layout, heads = self.mb, self.layout, self.config.num_key_value_heads
        seen = mb.reshape(x=self.seen, shape=[-1, layout.blocks, self.sparse.block_size])
        mask = mb.logical_and(x=mb.expand_dims(x=taken, axes=[3]), y=seen)
        return mb.reshape(x=mask, shape=[heads, 1, -1, layout.rows])

    def _gathered(self, taken: Any, keys: Any, values: Any) -> tuple[Any, Any, Any]:
        """The chosen blocks of a single query, ascending, and which of their rows it sees."""
        mb, layout, heads = self.mb, self.layout, self.config.num_key_value_heads
        size, width, count = self.sparse.block_size, self.config.head_dim, layout.gathered
        # Distinct numbers, so that their order is certain: chosen blocks above 0, the lower id the higher.
        blocks = _count(layout.blocks).astype(np.float32)
        order = mb.mul(x=mb.cast(x=mb.squeeze(x=taken, axes=[1]), dtype="fp32"), y=np.float32(layout.blocks))
        best = mb.topk(x=mb.sub(x=order, y=blocks), k=count, axis=-1, return_indices=False)
        chosen = mb.greater(x=best, y=np.float32(0))
        offset = mb.mul(x=mb.cast(x=chosen, dtype="fp32"), y=np.float32(layout.blocks))
        ids = mb.cast(x=mb.sub(x=offset, y=best), dtype="int32")  # [KV heads, count]
        first = mb.expand_dims(x=mb.mul(x=ids, y=np.int32(size)), axes=[2])
        rows = mb.add(x=first, y=_count(size)[None])
        seen = mb.less_equal(x=rows, y=mb.expand_dims(x=self.position, axes=[2]))
        seen = mb.logical_and(x=seen, y=mb.expand_dims(x=chosen, axes=[2]))
        heads_first = np.arange(heads, dtype=np.int32)[:, None] * layout.blocks
        indices = mb.reshape(x=mb.add(x=ids, y=heads_first), shape=[heads * count])
        found = []
        for cache in (keys, values):
            flat = mb.reshape(x=cache, shape=[heads * layout.blocks, size * width])
            flat = mb.gather(x=flat, indices=indices, axis=0, validate_indices=False)
            found.append(mb.reshape(x=flat, shape=[heads, count * size, width]))
        return found[0], found[1], mb.reshape(x=seen, shape=[heads, 1, 1, count * size])


def _count(n: int) -> Any:
    """int32 [1, n] of 0, 1, ..."""
    return np.arange(n, dtype=np.int32)[None]


def _windows(rows: int, size: int, stride: int) -> int:
    """How many windows of `size` at multiples of `stride` end within `rows` rows."""
    return max((rows - size) // stride + 1, 0)


def _one(value: int) -> Any:
    return np.array([value], np.int32)


def _ends(windows: int, size: int, stride: int) -> Any:
    """int32 [1, windows]: rows after which each window is complete."""
    return _count(windows) * np.int32(stride) + np.int32(size)
