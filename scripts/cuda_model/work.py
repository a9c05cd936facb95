"""What a launch moves, by its operator: formulas of the shapes, beside the kernels in `kernels/cuda`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig, SparseConfig
from edge.executors.cuda.matrices import CHUNK, VARIANTS, Matrix, name_of
from edge.executors.cuda.operators import attention, scores
from edge.executors.cuda.operators.selection import selected_blocks
from edge.executors.cuda.operators.summaries import COARSE, FINE
from edge.executors.cuda.operators.tables import BLOCK
from edge.kernels.catalogue import ENTRIES

from .passes import Launch, Rows


@dataclass(frozen=True)
class Work:
    """programs: that do not end at once. steps: times that each goes through the main loop.

    memory: bytes that must come from memory or go to it. buffers: bytes of arrays that other kernels wrote or
    will read, which stay in L2 if that has room. again: of each array that programs read several times, (its
    bytes, how often if L2 has no room for it, where `beside` programs run at a time). asked: bytes that
    multiprocessors ask of L2. chain: reads that wait for one another before the work begins.
    """

    programs: int
    steps: float = 1
    memory: float = 0
    buffers: tuple[float, ...] = ()
    again: Callable[[int], tuple[tuple[float, float], ...]] = lambda beside: ()
    asked: float = 0
    chain: int = 1


@dataclass(frozen=True)
class Model:
    """What launches are of. element: bytes of a number in the KV cache."""

    config: ModelConfig
    sparse: SparseConfig
    element: int = 2

    def blocks(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Of 64 keys, that each row reads."""
        seen = rows.paths // BLOCK + 1
        return np.where(
            rows.paths < self.sparse.dense_len, seen, np.minimum(seen, selected_blocks(self.sparse))
        )

    def chosen(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Paths of the rows that select blocks."""
        return rows.paths[rows.paths >= self.sparse.dense_len]

    @property
    def kv_heads(self) -> int:
        return self.config.num_key_value_heads

    @property
    def window(self) -> int:
        """Bytes of a key summary."""
        return 2 * self.config.head_dim

    @property
    def block(self) -> int:
        """Bytes of the keys and values of a block, of one KV head."""
        return 2 * BLOCK * self.config.head_dim * self.element


def work_of(launch: Launch, model: Model, rows: Rows) -> Work:
    """KeyError for an operator that has no formula here."""
    operator = launch.kernel.partition(".")[0]
    if operator == "attention":
        operator = "attention." + launch.kernel.split(".")[1]
    if launch.kernel.startswith("scores.normalisers"):
        operator = "normalisers"
    return _WORK[operator](launch, model, rows)


def matrix_of(launch: Launch, outputs: int, columns: int) -> Matrix:
    """The matrix of a launch whose id names its variant, as `linear.int4.g128.r8` does."""
    name = re.sub(r"\.r\d+$", "", launch.kernel.partition(".")[2])
    layout = next(each for each in VARIANTS if name_of(each) == name)
    return Matrix(layout, outputs, columns)


def _linear(launch: Launch, model: Model, rows: Rows) -> Work:
    matrix = matrix_of(launch, launch["outputs"], launch["columns"])
    tiles, bands, slices = launch.grid
    x = 2 * launch["rows"] * matrix.columns
    made = 4 * slices * launch["rows"] * matrix.rows
    step = matrix.padded_columns // matrix.tiles * ENTRIES[launch.kernel].constants["TILES"]
    return Work(
        programs=tiles * bands * slices,
        steps=matrix.padded_columns / slices / step,
        memory=matrix.size,
        buffers=(x, made),
        asked=tiles * matrix.size + bands * x + made,
    )


def _dequantize(launch: Launch, model: Model, rows: Rows) -> Work:
    tiles, bands, _ = launch.grid
    one = matrix_of(launch, 16, CHUNK)
    columns = CHUNK // one.tiles * tiles
    matrix = matrix_of(launch, 64 * bands, columns)
    made = 2 * matrix.rows * matrix.padded_columns
    return Work(tiles * bands, memory=matrix.size, buffers=(made,), asked=matrix.size + made)


def _dense(launch: Launch, model: Model, rows: Rows) -> Work:
    constants = ENTRIES[launch.kernel].constants
    across, along, _ = launch.grid
    padded = -(-launch["columns"] // CHUNK) * CHUNK
    weights = 2 * along * constants["OUTPUTS"] * padded
    x, made = 2 * launch["rows"] * launch["columns"], 4 * launch["rows"] * launch["outputs"]

    side = launch["side"]

    def again(beside: int) -> tuple[tuple[float, float], ...]:
        """Squares of tiles run side by side: rows are read once for each of their widths, weights for each
        height.
        """
        return (x, -(-along // max(1, beside // side))), (weights, -(-across // side))

    of_program = 2 * padded * (constants["ROWS"] + constants["OUTPUTS"])
    return Work(
        programs=across * along,
        steps=padded / constants["STEP"],
        buffers=(made,),
        again=again,
        asked=across * along * of_program + made,
    )


def _splits(blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many a row of so many blocks has, see `blocks_of_splits` in kernels/cuda/attention.py."""
    size = np.full_like(blocks, attention.SPLIT_BLOCKS)
    while (short := -(-blocks // size) > attention.SPLITS).any():
        size[short] *= 2
    return np.asarray(-(-blocks // size))


def _decode(launch: Launch, model: Model, rows: Rows) -> Work:
    blocks = model.blocks(rows)
    splits = _splits(blocks)
    read = int(blocks.sum()) * model.kv_heads * model.block
    made = int(splits.sum()) * model.config.num_attention_heads * 4 * (model.config.head_dim + 2)
    programs = int(splits.sum()) * launch.grid[1]
    steps = blocks.sum() * launch.grid[1] / programs
    return Work(programs, steps, memory=read, buffers=(made,), asked=read + made, chain=4)


def _combine(launch: Launch, model: Model, rows: Rows) -> Work:
    splits = int(_splits(model.blocks(rows)).sum())
    read = splits * model.config.num_attention_heads * 4 * (model.config.head_dim + 2)
    steps = -(-splits // rows.count) / 4
    return Work(launch.grid[0] * launch.grid[1], steps, buffers=(read,), asked=read, chain=2)


def _prefill(launch: Launch, model: Model, rows: Rows) -> Work:
    blocks = model.blocks(rows)
    asked = int(blocks.sum()) * model.kv_heads * model.block
    most = (int(rows.paths[-1]) + 1) * model.kv_heads * model.block / BLOCK

    def again(beside: int) -> tuple[tuple[float, float], ...]:
        """As if rows that run side by side read the same blocks."""
        return ((most, max(1.0, asked / beside / most)),)

    programs = launch.grid[0] * launch.grid[1]
    queries = 4 * rows.count * model.config.num_attention_heads * model.config.head_dim
    return Work(programs, float(blocks.mean()), buffers=(queries,), again=again, asked=asked, chain=4)


def _windows(model: Model, rows: Rows, windows: npt.NDArray[np.int64]) -> float:
    """Bytes of the summaries that rows read, which rows of one prompt share."""
    read = windows.max(initial=0) if rows.prompt else windows.sum()
    return float(read * model.kv_heads * model.window)


def _normalisers(launch: Launch, model: Model, rows: Rows) -> Work:
    windows = model.chosen(rows) // (FINE if model.sparse.exact_lse else COARSE).stride
    programs = int((-(-windows // scores.CHUNK)).sum()) * model.kv_heads
    asked = programs * scores.CHUNK * model.window
    return Work(programs, memory=_windows(model, rows, windows), asked=asked, chain=3)


def _scores(launch: Launch, model: Model, rows: Rows) -> Work:
    chosen = model.chosen(rows)
    blocks = np.maximum(chosen // BLOCK + 1 - model.sparse.local_blocks, 0)
    programs = int((-(-blocks // scores.BLOCKS)).sum()) * model.kv_heads
    # Five windows of a block: its own, and the one that reaches into it.
    asked = programs * scores.BLOCKS * (BLOCK // FINE.stride + 1) * model.window
    made = 4 * int(blocks.sum()) * model.kv_heads
    read = _windows(model, rows, chosen // FINE.stride)
    return Work(programs, memory=read, buffers=(made,), asked=asked + made, chain=4)


def _selection(launch: Launch, model: Model, rows: Rows) -> Work:
    read = 4 * int((model.chosen(rows) // BLOCK).sum()) * model.kv_heads
    return Work(rows.count * model.kv_heads, buffers=(read,), asked=read)


def _summaries(launch: Launch, model: Model, rows: Rows) -> Work:
    """A row of 16 completes a window, of 32 keys or also of 128; its keys were just written or are near."""
    keys = FINE.size / FINE.stride + COARSE.size / COARSE.stride
    read = rows.count * keys * model.kv_heads * model.window
    return Work(rows.count * model.kv_heads, 1 / FINE.stride, buffers=(read,), asked=read, chain=3)


def _norm(launch: Launch, model: Model, rows: Rows) -> Work:
    number = launch.grid[0] * launch["columns"]
    streams = (8.0 * number, 4.0 * number * launch["slices"], 2.0 * number)
    steps = launch["columns"] / ENTRIES[launch.kernel].constants["BLOCK"]
    return Work(launch.grid[0], steps, 4 * launch["columns"], streams, asked=sum(streams))


def _swiglu(launch: Launch, model: Model, rows: Rows) -> Work:
    number = launch["rows"] * launch["columns"]
    arrays = (8.0 * number * launch["slices"], 2.0 * number)
    return Work(launch.grid[0] * launch.grid[1], buffers=arrays, asked=sum(arrays))


def _rope(launch: Launch, model: Model, rows: Rows) -> Work:
    if "slices" not in dict(launch.numbers):  # the table of angles
        return Work(launch.grid[0], buffers=(4 * rows.count * model.config.head_dim,))
    queries = rows.count * model.config.num_attention_heads * model.config.head_dim
    kept = 2 * rows.count * model.kv_heads * model.config.head_dim
    arrays = (4.0 * (queries + kept) * launch["slices"], 2.0 * queries)
    memory = model.element * kept
    return Work(launch.grid[0] * launch.grid[1], 1, memory, arrays, asked=sum(arrays) + memory, chain=2)


def _embed(launch: Launch, model: Model, rows: Rows) -> Work:
    number = rows.count * launch["columns"]
    memory = number * matrix_of(launch, 16, 16).bits / 8
    return Work(launch.grid[0] * launch.grid[1], memory=memory, buffers=(4.0 * number,), chain=2)


def _logits(launch: Launch, model: Model, rows: Rows) -> Work:
    number = launch["rows"] * model.config.vocab_size
    arrays = (4.0 * number * launch["slices"], 4.0 * number)
    return Work(launch.grid[0] * launch.grid[1], buffers=arrays, asked=sum(arrays))


_WORK: dict[str, Callable[[Launch, Model, Rows], Work]] = {
    "embed": _embed,
    "norm": _norm,
    "linear": _linear,
    "dequantize": _dequantize,
    "dense": _dense,
    "rope": _rope,
    "summaries": _summaries,
    "normalisers": _normalisers,
    "scores": _scores,
    "selection": _selection,
    "attention.decode": _decode,
    "attention.combine": _combine,
    "attention.prefill": _prefill,
    "swiglu": _swiglu,
    "logits": _logits,
}
