"""What one token costs: the bytes a pass must move, the multiply-adds it must do, and the time they take.

Arithmetic over shapes only. The time is a model: what is streamed takes its bytes over the read bandwidth,
what is computed its operations over the peak, both at the shares that good kernels reach (`Efficiency`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edge.config import KVType, ModelConfig, SparseConfig
from edge.config.tensors import EMBEDDING, HEAD, expected_tensors
from edge.quant.scheme import QuantScheme

Tensor = tuple[str, tuple[int, ...], QuantScheme]
Part = tuple[float, float]
"""Of a part of a pass: seconds to read what it needs, and to compute it. The longer one counts."""
Limit = Literal["memory", "arithmetic"]
Arithmetic = Literal["float32", "int16", "int8"]
"""What multiplies two numbers; int16 takes twice the time of int8."""
_INT8_PRODUCTS = {"int8": 1, "int16": 2}  # that take the time of one
_LINEAR: dict[str, Arithmetic] = {"int8": "int8", "int16": "int16"}  # by activations
_KERNELS: dict[str, Arithmetic] = {"int8 dots": "int8", "two int8 dots": "int16"}  # by how their names begin
_ATTENTION: dict[str, Arithmetic] = {
    "float16": "float32",
    "float32": "float32",
    "int16": "int16",
    "int8": "int16",  # widened
    "int4": "int16",  # unpacked, and widened
}


def arithmetic_of(operation: str, kernel: str, kv_type: KVType) -> Arithmetic:
    """What an operator of the native decoder computes with; kernel: of its matrices, empty without any."""
    if operation == "attention":
        return _ATTENTION[kv_type]
    return _KERNELS.get(kernel.split(",")[0], "float32")


@dataclass(frozen=True)
class Roofline:
    """Bytes per second read from memory, int8 and float multiply-adds per second.

    region_seconds: what one parallel region costs, where it was measured.
    """

    read_bytes: float
    int8: float
    float32: float
    region_seconds: float | None = None

    def peak(self, arithmetic: Arithmetic) -> float:
        """Multiply-adds per second of that kind."""
        return self.float32 if arithmetic == "float32" else self.int8 / _INT8_PRODUCTS[arithmetic]


@dataclass(frozen=True)
class Efficiency:
    """Shares of the limits that whole passes of the native decoder reach (docs/performance.md).

    stream: of the read bandwidth, over weights in a decode step. compute: of the int8 peak in a prefill.
    attention: of the nearer limit of attention. step_seconds: of a pass beside all that.
    """

    stream: float = 0.8
    compute: float = 0.5
    attention: float = 0.55
    step_seconds: float = 2e-4


@dataclass(frozen=True)
class NetworkCost:
    """Bytes and multiply-adds of a network in given quantizations.

    resident: bytes of all weights. streamed: those that every decode step reads (a row of an untied embedding
    is next to nothing). body, head: multiply-adds per token in the layers' matrices, and in the head, which a
    prefill needs for its last token only. kv_row: bytes that one position of the context takes. attention:
    multiply-adds per token and position that it sees. linear_arithmetic, attention_arithmetic: what the
    matrices and attention compute with. sparse: the constants of sparse attention; None is dense.
    """

    resident: int
    streamed: int
    body: int
    head: int
    kv_row: int
    attention: int
    linear_arithmetic: Arithmetic
    attention_arithmetic: Arithmetic
    sparse: SparseConfig | None = None

    @classmethod
    def of(
        cls, config: ModelConfig, tensors: Iterable[Tensor], kv_type: KVType, activations: str = "int8"
    ) -> NetworkCost:
        """The cost of these (name, shape, scheme)."""
        resident = streamed = body = head = floats = 0
        for name, shape, scheme in tensors:
            size = scheme.packed_bytes(shape[0] if len(shape) == 2 else 1, shape[-1])
            resident += size
            used = name != EMBEDDING or config.tie_word_embeddings
            streamed += size if used else 0
            operations = shape[0] * shape[1] if len(shape) == 2 and used else 0
            if name in (HEAD, EMBEDDING):
                head += operations
            else:
                body += operations
            floats += operations if scheme.is_float else 0
        return cls(
            resident=resident,
            streamed=streamed,
            body=body,
            head=head,
            kv_row=config.kv_bytes_per_token(kv_type),
            attention=2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim,
            linear_arithmetic=_LINEAR.get(activations, "float32") if floats * 2 < body + head else "float32",
            attention_arithmetic=_ATTENTION[kv_type],
        )

    @classmethod
    def planned(
        cls, config: ModelConfig, scheme: QuantScheme, head: QuantScheme | None, kv_type: KVType
    ) -> NetworkCost:
        """The cost if every matrix had `scheme`; head: of embedding and head."""
        return cls.of(config, planned_tensors(config, scheme, head), kv_type)

    def prefill_bytes(self, tokens: int, depth: int, batch: int) -> float:
        """Bytes that a prefill in pieces of `batch` tokens reads: all of them once per piece."""
        pieces = [min(batch, tokens - start) for start in range(0, tokens, batch)]
        seen = sum(depth + sum(pieces[: i + 1]) for i in range(len(pieces)))
        return self.streamed * len(pieces) + self.kv_row * seen

    def attention_pairs(self, tokens: float, depth: float) -> float:
        """Multiply-adds of the attention of `tokens` tokens after `depth` others."""
        return self.attention * self.positions_read(tokens, depth)

    def positions_read(self, tokens: float, depth: float) -> float:
        """Positions that `tokens` tokens after `depth` others read, each by itself.

        A sparse query reads its blocks and the fine and coarse windows, which are keys without values.
        """
        dense = tokens * depth + tokens * (tokens + 1) / 2
        middle = depth + (tokens + 1) / 2
        if self.sparse is None or middle <= self.sparse.dense_len:
            return dense
        visible = (self.sparse.topk + self.sparse.local_blocks) * self.sparse.block_size
        windows = middle / self.sparse.kernel_stride + middle / self.sparse.coarse_stride
        return min(dense, tokens * (visible + windows / 2))

    def seconds_at_peak(self, linear: float, attention: float, roofline: Roofline) -> float:
        """Time of so many multiply-adds in matrices and in attention, at the arithmetic peaks."""
        return linear / roofline.peak(self.linear_arithmetic) + attention / roofline.peak(
            self.attention_arithmetic
        )

    def decode_parts(
        self,
        depth: float,
        roofline: Roofline,
        efficiency: Efficiency = Efficiency(),
        *,
        streams: int = 1,
        rows: int = 1,
    ) -> tuple[Part, ...]:
        """Matrices and attention of a pass at `depth` that wants the logits of every token.

        streams: sequences in it, which share the weights' bytes. rows: of each, which share its cache's.
        """
        stream = self.streamed / roofline.read_bytes / efficiency.stream
        tokens = streams * rows
        compute = self.seconds_at_peak((self.body + self.head) * tokens, 0, roofline) / efficiency.compute
        read, attention = self._attention_part(rows, depth, roofline, efficiency)
        return (stream, compute), (read * streams, attention * streams)

    def prefill_parts(
        self, tokens: int, depth: int, roofline: Roofline, efficiency: Efficiency = Efficiency()
    ) -> tuple[Part, ...]:
        """Matrices and attention of a prefill."""
        compute = self.seconds_at_peak(self.body * tokens + self.head, 0, roofline) / efficiency.compute
        stream = self.streamed / roofline.read_bytes / efficiency.stream
        return (stream, compute), self._attention_part(tokens, depth, roofline, efficiency)

    def decode_seconds(
        self, depth: float, roofline: Roofline, efficiency: Efficiency = Efficiency()
    ) -> float:
        """Predicted time of a decode step at `depth`."""
        return pass_seconds(self.decode_parts(depth, roofline, efficiency), efficiency)

    def prefill_seconds(
        self, tokens: int, depth: int, roofline: Roofline, efficiency: Efficiency = Efficiency()
    ) -> float:
        """Predicted time of a prefill."""
        return pass_seconds(self.prefill_parts(tokens, depth, roofline, efficiency), efficiency)

    def _attention_part(self, tokens: int, depth: float, roofline: Roofline, efficiency: Efficiency) -> Part:
        read = self.kv_row * (depth + tokens) / roofline.read_bytes
        compute = self.attention_pairs(tokens, depth) / roofline.peak(self.attention_arithmetic)
        return read / efficiency.attention, compute / efficiency.attention


def pass_seconds(parts: Iterable[Part], efficiency: Efficiency = Efficiency()) -> float:
    """Predicted time of a pass with these parts."""
    return sum(max(part) for part in parts) + efficiency.step_seconds


def binding(parts: Iterable[Part]) -> Limit:
    """What most of the time of a pass goes to."""
    parts = tuple(parts)
    memory = sum(read for read, compute in parts if read >= compute)
    return "memory" if 2 * memory >= sum(max(part) for part in parts) else "arithmetic"


def planned_tensors(
    config: ModelConfig, scheme: QuantScheme, head: QuantScheme | None = None
) -> Iterable[Tensor]:
    """(name, shape, scheme) of every tensor when matrices have `scheme`, embedding and head `head`."""
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1:
            yield name, shape, QuantScheme("f32")
        else:
            yield name, shape, (head or scheme) if name in (EMBEDDING, HEAD) else scheme
