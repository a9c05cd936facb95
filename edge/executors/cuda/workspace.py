"""Memory of a pass beside weights and caches: made once, so that graphs can be launched again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge.config import ModelConfig, SparseConfig
from edge.config.tensors import EMBEDDING, HEAD
from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import Matrix
from edge.executors.cuda.operators import attention
from edge.executors.cuda.operators.dense import FROM_ROWS
from edge.executors.cuda.operators.scores import chunks
from edge.executors.cuda.operators.selection import Selection, selected_blocks
from edge.executors.cuda.operators.summaries import path_windows_bytes
from edge.executors.cuda.operators.tables import BLOCK, PAGE

DECODE_ROWS = 64
"""Rows of a pass up to which kernels for few rows are used, and rows of logits at a time."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of every buffer for passes of up to `rows` rows, DECODE_ROWS at least.

    Most hold one row after another: stream, the residual stream; x, inputs of matrices; q, queries; hidden,
    of wanted rows; angles; partial, sums of slices; logits, of DECODE_ROWS rows. parts and tops are of decode
    attention, score_parts, block_scores, blocks, counts and path_windows of sparse attention; dequantized
    holds one matrix where passes are long enough for that.
    """

    stream: int
    x: int
    q: int
    hidden: int
    angles: int
    partial: int
    logits: int
    parts: int
    tops: int
    path_windows: int
    score_parts: int
    block_scores: int
    blocks: int
    counts: int
    dequantized: int

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        matrices: Mapping[str, Matrix],
        sparse: SparseConfig | None,
        rows: int,
        context: int,
    ) -> Sizes:
        """For a network of these matrices, see `WeightPlan`."""
        queries, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads
        widest = max(config.hidden_size, config.intermediate_size, queries)
        blocks = -(-context // PAGE) * (PAGE // BLOCK)
        capacity = 0 if sparse is None else selected_blocks(sparse)
        heads = DECODE_ROWS * config.num_attention_heads * attention.splits(max(blocks, capacity))
        per_group = rows * kv_heads if sparse is not None else 0
        score_chunks = chunks(blocks, sparse) if sparse is not None else 0
        return cls(
            stream=4 * rows * config.hidden_size,
            x=2 * rows * widest,
            q=2 * rows * queries,
            hidden=4 * rows * config.hidden_size,
            angles=4 * rows * config.head_dim,
            partial=max(
                _partial(matrix, DECODE_ROWS if name in (EMBEDDING, HEAD) else rows)
                for name, matrix in matrices.items()
            ),
            logits=4 * DECODE_ROWS * config.vocab_size,
            parts=4 * heads * config.head_dim,
            tops=8 * heads,
            path_windows=path_windows_bytes(rows, kv_heads, config.head_dim) if per_group else 0,
            score_parts=8 * rows * config.num_attention_heads * score_chunks,
            block_scores=4 * per_group * blocks,
            blocks=4 * per_group * capacity,
            counts=4 * per_group,
            dequantized=_dequantized(matrices, rows),
        )

    @property
    def total(self) -> int:
        """All of them."""
        return sum(vars(self).values())


@dataclass
class Workspace:
    """The addresses; a buffer of no bytes is 0. taps: made when layers' outputs are asked for."""

    device: Device
    capacity: int
    addresses: dict[str, Address]
    taps: Address = 0
    _tapped: int = field(default=0)

    @classmethod
    def allocate(cls, device: Device, sizes: Sizes, sparse: SparseConfig | None) -> Workspace:
        """Raises ContextError if there is no room."""
        made = cls(device, 0 if sparse is None else selected_blocks(sparse), {})
        try:
            for name, size in vars(sizes).items():
                made.addresses[name] = device.allocate(size) if size else 0
        except BaseException:
            made.free()
            raise
        return made

    def __getattr__(self, name: str) -> Address:
        try:
            return self.addresses[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def selection(self) -> Selection:
        """Where selections are written."""
        return Selection(self.addresses["blocks"], self.addresses["counts"], self.capacity)

    def tapped(self, size: int) -> Address:
        """Room for layers' outputs."""
        if size > self._tapped:
            self.device.free(self.taps)
            self.taps, self._tapped = 0, 0
            self.taps, self._tapped = self.device.allocate(size), size
        return self.taps

    def free(self) -> None:
        """Give the memory back."""
        for address in (*self.addresses.values(), self.taps):
            self.device.free(address)
        self.addresses.clear()


def _partial(matrix: Matrix, rows: int) -> int:
    """Bytes of the sums of one product: of all slices, or of one where the passes are long."""
    return 4 * matrix.rows * max(rows, matrix.slices * min(rows, FROM_ROWS - 1))


def _dequantized(matrices: Mapping[str, Matrix], rows: int) -> int:
    """Bytes of the largest matrix of a layer as float16, where passes are long enough for that."""
    if rows < FROM_ROWS:
        return 0
    return max(matrix.dense_bytes for name, matrix in matrices.items() if name not in (EMBEDDING, HEAD))
