"""The launches of a pass, as the executor's own network queues them on a device that only notes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig, SparseConfig
from edge.config.tensors import EMBEDDING, HEAD
from edge.executors.cuda.device import Address, Device, DeviceFacts, Grid
from edge.executors.cuda.matrices import VARIANTS, Matrix, kind_of
from edge.executors.cuda.network import Network, Pass
from edge.executors.cuda.operators.pages import CachePools, CacheShape
from edge.executors.cuda.operators.tables import PAGE, StepTables
from edge.executors.cuda.weights import DeviceWeights, LayerWeights
from edge.executors.cuda.workspace import DECODE_ROWS, Sizes, Workspace
from edge.kernels.catalogue import ENTRIES


@dataclass(frozen=True)
class Rows:
    """Rows of a pass. first: path of the first one. count: how many. prompt: whether they follow one another
    in one sequence; else each is of a sequence of its own, at the same place.
    """

    first: int
    count: int
    prompt: bool

    @property
    def paths(self) -> npt.NDArray[np.int64]:
        """Of each, its place on its path."""
        return self.first + (np.arange(self.count) if self.prompt else np.zeros(self.count, np.int64))


@dataclass(frozen=True)
class Launch:
    """kernel: id of its entry. numbers: arguments that are no addresses, by name."""

    kernel: str
    grid: Grid
    numbers: tuple[tuple[str, int | float], ...]

    def __getitem__(self, name: str) -> int:
        return int(dict(self.numbers)[name])


class Recorder:
    """What a network and its memory ask of a device in a pass: nothing runs, and nothing is held."""

    facts = DeviceFacts("none", 87, 1 << 40, 16, 163 << 10, integrated=True)
    free_memory = 1 << 40

    def __init__(self) -> None:
        self.launches: Counter[Launch] = Counter()
        self._end = 256

    def allocate(self, size: int) -> Address:
        """Another address."""
        self._end += -(-size // 256) * 256
        return self._end

    def launch(self, kernel: str, grid: Grid, arguments: Sequence[int | float]) -> None:
        """Write it down."""
        kinds = ENTRIES[kernel].signature.items()
        numbers = [
            (name, value) for (name, kind), value in zip(kinds, arguments, strict=True) if "*" not in kind
        ]
        self.launches[Launch(kernel, grid, tuple(numbers))] += 1


def matrices_of(config: ModelConfig, kind: str, group: int) -> dict[str, Matrix]:
    """Those of a layer, by their names in `LayerWeights`, then embedding and head."""
    hidden, middle = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes = {
        "qkv": (queries + 2 * keys, hidden),
        "out": (hidden, queries),
        "gate_up": (2 * middle, hidden),
        "down": (hidden, middle),
        EMBEDDING: (config.vocab_size, hidden),
        HEAD: (config.vocab_size, hidden),
    }
    layout = next(
        each for each in VARIANTS if (kind_of(each), each.group, each.minimum) == (kind, group, False)
    )
    return {name: Matrix(layout, *shape, address=1) for name, shape in shapes.items()}


def resident(config: ModelConfig, kind: str, group: int, context: int, sequences: int) -> int:
    """Bytes of the weights, and of caches of the whole context with key summaries, in float16."""
    matrices = matrices_of(config, kind, group)
    ends = sum(matrices[name].size for name in (EMBEDDING, HEAD))
    layer = sum(matrix.size for matrix in matrices.values()) - ends
    page = _cache(config, summaries=True).page_bytes
    return config.num_hidden_layers * layer + ends + sequences * -(-context // PAGE) * page


def _cache(config: ModelConfig, summaries: bool) -> CacheShape:
    layers, kv_heads = config.num_hidden_layers, config.num_key_value_heads
    return CacheShape(layers, kv_heads, config.head_dim, summaries=summaries)


def launches_of(
    config: ModelConfig, kind: str, group: int, rows: Rows, sparse: SparseConfig | None, *, wanted: int
) -> Counter[Launch]:
    """All that a pass launches, each with its number. kind, group: of all matrices, see `Matrix`. wanted:
    rows whose logits are.
    """
    recorder = Recorder()
    device = cast(Device, recorder)
    context = int(rows.paths[-1]) + 1

    matrices = matrices_of(config, kind, group)
    parts = {name: matrices[name] for name in ("qkv", "out", "gate_up", "down")}
    layer = LayerWeights(input_norm=1, post_norm=1, **parts)
    layers = config.num_hidden_layers
    shape = _cache(config, summaries=sparse is not None)
    pools = CachePools.allocate(device, shape, -(-context // PAGE))
    sizes = Sizes.of(config, matrices, sparse, max(rows.count, DECODE_ROWS), context)
    space = Workspace.allocate(device, sizes, sparse)
    weights = DeviceWeights(matrices[EMBEDDING], [layer] * layers, 1, matrices[HEAD], 1)
    network = Network(device, config, weights, pools, space, rope_scale=1.0, sparse=sparse)
    tables = StepTables(rows.count, 1, 1, 1, 1, 1, 1, 1, 1, max_pages=-(-context // PAGE))
    many = rows.count > DECODE_ROWS
    assert sparse is not None or not many  # dense prefill has other tiles
    network.run(
        Pass(
            tables,
            1,
            tile_table=1,
            wanted_table=1,
            trees=0 if many else rows.count,
            sparse_tiles=rows.count if many else 0,  # also of the first rows, which are dense
            wanted=wanted,
            logits=wanted,
        )
    )
    return recorder.launches
