"""Predicted times on a CPU that is not here, from the cycles of the kernels (`edge.measure.profile.cores`).

A part of a pass takes its bytes over the bandwidth, or its multiply-adds over what the cores do: the longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.config import KVType, ModelConfig
from edge.errors import EdgeError
from edge.measure.profile.cores import Core
from edge.measure.profile.cost import Efficiency, NetworkCost, Part
from edge.quant.scheme import QuantScheme

_LONG = 128  # columns: from such groups on, the loops of long groups count
_TASK_ROWS = 128  # query rows that share what is converted of the KV cache, at most
_RANGE_ROWS = 16  # those that share the unpacking of codes of 4 bits


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind."""

    count: int
    core: Core
    clock_ghz: float


@dataclass(frozen=True)
class Cpu:
    """The cores that are used. read_share: what they all together read, over the memory's own bandwidth.

    assumption: where that share comes from.
    """

    clusters: tuple[Cluster, ...]
    read_share: float
    assumption: str

    def rate(self, loop: str) -> float:
        """Multiply-adds per second of a loop of `Rates`; the cores take pieces of work as they get done."""
        return sum(
            each.count * each.clock_ghz * 1e9 * float(getattr(each.core.rates, loop))
            for each in self.clusters
        )

    @property
    def tile_rows(self) -> int:
        """See `Core`."""
        return min(each.core.tile_rows for each in self.clusters)


@dataclass(frozen=True)
class CpuModel:
    """A network on a CPU. read_bytes: the memory's bandwidth in bytes per second.

    body, head: the quantizations of the layers' matrices and of the head.
    """

    cost: NetworkCost
    config: ModelConfig
    kv_type: KVType
    body: QuantScheme
    head: QuantScheme
    cpu: Cpu
    read_bytes: float
    batch: int

    def __post_init__(self) -> None:
        if self.cost.linear_arithmetic != "int8":
            raise EdgeError(
                "Speed on a device's CPU is predicted for int4, int8 and ternary weights with int8 "
                "activations only: leave out --device, or give another --quantize."
            )

    def decode_parts(self, depth: int, *, streams: int = 1, rows: int = 1) -> tuple[Part, ...]:
        """Seconds of reading and of arithmetic of a pass that wants all logits: matrices, attention.

        streams, rows: see `NetworkCost.decode_parts`; the loops for many tokens stand for a few, too.
        """
        tokens = streams * rows
        loop = _one if tokens == 1 else _many
        compute = self._seconds(self.cost.body * tokens, loop(self.body))
        compute += self._seconds(self.cost.head * tokens, loop(self.head))
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        read, attention = self._attention(rows, depth, min(_TASK_ROWS, group * rows))
        return (self._reading(self.cost.streamed), compute), (read * streams, attention * streams)

    def prefill_parts(self, tokens: int, depth: int) -> tuple[Part, ...]:
        """The same of a prefill; the head is for its last token only."""
        passes = -(-tokens // self.batch)
        compute = self._seconds(self.cost.body * tokens, _many(self.body))
        compute += self._seconds(self.cost.head, _one(self.head))
        return (self._reading(self.cost.streamed * passes), compute), self._attention(
            tokens, depth, _TASK_ROWS
        )

    def _attention(self, tokens: int, depth: int, rows: int) -> Part:
        work = self.cost.attention_pairs(tokens, depth)
        halves = self.kv_type == "float16" and rows > self.cpu.tile_rows
        loops = "float32" if halves else "int8" if self.kv_type == "int4" else self.kv_type
        compute = self._seconds(work / 2, f"scores_{loops}") + self._seconds(work / 2, f"values_{loops}")
        compute += self._seconds(work / 2 / self.config.head_dim, "powers")
        if halves:
            compute += self._seconds(work / rows, "halves")
        if self.kv_type == "int4":
            compute += self._seconds(work / min(rows, _RANGE_ROWS), "nibbles")
        passes = -(-tokens // self.batch)
        return self._reading(self.cost.kv_row * (depth + tokens) * passes), compute

    def _reading(self, size: float) -> float:
        return size / (self.read_bytes * self.cpu.read_share * Efficiency().stream)

    def _seconds(self, work: float, loop: str) -> float:
        return work / self.cpu.rate(loop)


def _one(scheme: QuantScheme) -> str:
    if scheme.kind != "int4":
        return f"one_{scheme.kind}"
    return "one_int4_g32" if 0 < scheme.group < _LONG else "one_int4_g128"


def _many(scheme: QuantScheme) -> str:
    if scheme.kind == "int8":
        return "many_int8"
    return "many_g32" if 0 < scheme.group < _LONG else "many_g128"
