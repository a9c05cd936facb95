"""What a model takes of a device's memory, decided before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from edge.config import KVType, SparseConfig
from edge.errors import ContextError
from edge.executors.cuda.device import Device
from edge.executors.cuda.drawing import DeviceSampler
from edge.executors.cuda.operators.norm import check_columns
from edge.executors.cuda.operators.pages import CacheShape
from edge.executors.cuda.operators.selection import check_blocks
from edge.executors.cuda.operators.tables import BLOCK, PAGE
from edge.executors.cuda.uploads import PassTables
from edge.executors.cuda.weights import WeightPlan
from edge.executors.cuda.workspace import DECODE_ROWS, Sizes
from edge.executors.memory import MemoryPlan
from edge.formats.model_files import ModelFiles
from edge.system.units import format_bytes

_LEFT = 0.05  # of what is free, for the driver and for whatever else is running
_LEFT_SHARED = 0.2  # where the memory is the system's own
_MOST_CACHES = 16  # of the whole context
_MOST_CACHES_SHARED = 2
_FEWER = 4  # times fewer rows of a pass, where memory is short


@dataclass(frozen=True)
class DevicePlan:
    """Bytes, but for rows and pages. rows: most of a pass. pages: of the KV cache, each of `page_bytes`."""

    weights: WeightPlan
    sizes: Sizes
    tables: int
    shape: CacheShape
    pages: int
    rows: int
    context: int

    @classmethod
    def of(
        cls,
        device: Device,
        files: ModelFiles,
        kv_type: KVType,
        sparse: SparseConfig | None,
        *,
        context: int,
        rows: int,
    ) -> DevicePlan:
        """For passes of `rows` rows, or fewer if only then it fits; as many pages as there is room for, up to
        some whole contexts. Raises ContextError if not even one context fits, and EdgeError for a network or
        context that the kernels are not made for.
        """
        config, free = files.config, device.free_memory
        check_columns(config.hidden_size)
        if sparse is not None:
            check_blocks(-(-context // BLOCK))
        shared = device.facts.integrated
        room = int(free * (1 - (_LEFT_SHARED if shared else _LEFT)))
        shape = CacheShape(
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
            int8=kv_type == "int8",
            summaries=sparse is not None,
        )
        weights = WeightPlan.of(config, files.tensors)
        least = -(-context // PAGE)
        most = least * (_MOST_CACHES_SHARED if shared else _MOST_CACHES)
        while True:
            padded = max(rows, DECODE_ROWS)  # short passes are filled up with dead rows
            sizes = Sizes.of(config, weights.matrices, sparse, padded, context)
            tables = PassTables.size(padded, context) + PassTables.size(DECODE_ROWS, context)
            tables += DeviceSampler.size(config.vocab_size, context)
            beside = weights.total + max(weights.uploaded, sizes.total + tables)
            pages = min(most, (room - beside) // shape.page_bytes)
            found = cls(weights, sizes, tables, shape, pages, rows, context)
            if pages >= least:
                return found
            if rows <= DECODE_ROWS:
                raise ContextError(
                    f"The model needs {found.conversation} of the device's memory, but {format_bytes(room)} "
                    "can be had: choose a shorter context, --kv int8, a smaller model or quantization."
                )
            rows = max(DECODE_ROWS, rows // _FEWER)

    @property
    def workspace(self) -> int:
        """Buffers of a pass."""
        return self.sizes.total + self.tables

    @property
    def conversation(self) -> MemoryPlan:
        """What it takes with one cache of the whole context."""
        cache = -(-self.context // PAGE) * self.shape.page_bytes
        return MemoryPlan(self.weights.total, cache, self.workspace, self.context)

    @property
    def total(self) -> int:
        """Everything that is taken."""
        return self.weights.total + self.workspace + self.pages * self.shape.page_bytes
