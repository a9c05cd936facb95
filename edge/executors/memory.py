"""What a model will need in memory, stated before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from edge.config import KVType, ModelConfig, SparseConfig
from edge.errors import ContextError
from edge.formats.model_files import ModelFiles
from edge.quant.scheme import QuantScheme
from edge.system.units import format_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes for one conversation of `context` tokens.

    weights: read from the bundle into memory of the process; with mapped_weights they stay in the file, whose
    pages the system reads and drops as it likes. kv_cache: at the full context, with the key summaries of
    sparse attention; it is committed as a conversation grows. workspace: buffers of a forward pass of
    `max_batch` tokens (an estimate from the shapes). draft: weights and buffers of what guesses.
    """

    weights: int
    kv_cache: int
    workspace: int
    context: int
    mapped_weights: bool = False
    draft: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.workspace + self.draft

    @property
    def committed(self) -> int:
        """What must be free: all of it but mapped weights."""
        return self.total - (self.weights if self.mapped_weights else 0)

    def __str__(self) -> str:
        mapped = " (mapped)" if self.mapped_weights else ""
        return (
            f"{format_bytes(self.total)} = weights {format_bytes(self.weights)}{mapped} "
            f"+ KV cache {format_bytes(self.kv_cache)} (at {self.context} tokens) "
            f"+ workspace {format_bytes(self.workspace)}"
            + (f" + draft {format_bytes(self.draft)}" if self.draft else "")
        )


def memory_plan(
    files: ModelFiles,
    context: int,
    kv_type: KVType = "int16",
    max_batch: int = 256,
    mapped_weights: bool = False,
    sparse: SparseConfig | None = None,
    weights: QuantScheme | None = None,
) -> MemoryPlan:
    """The plan for one conversation over `files`.

    sparse: the constants of its attention, None if dense. weights: what an executor turns them into, None if
    it reads them as they are stored.
    """
    config = files.config
    return MemoryPlan(
        weights=sum(
            info.bytes if weights is None else weights.packed_bytes(info.rows, info.columns)
            for info in files.tensors.values()
        ),
        kv_cache=context * config.kv_bytes_per_token(kv_type) + _summaries(config, sparse, context, kv_type),
        workspace=workspace_bytes(config, max_batch),
        context=context,
        mapped_weights=mapped_weights,
    )


def check_memory(plan: MemoryPlan, available: int | None) -> None:
    """Raise ContextError, with the numbers, if more than `available` bytes (None: unknown) must be free."""
    if available is None or plan.committed <= available:
        return
    raise ContextError(
        f"The model needs {plan}, but only {format_bytes(available)} of memory are available: choose a "
        "shorter context, a smaller model or a smaller quantization."
    )


def _summaries(config: ModelConfig, sparse: SparseConfig | None, context: int, kv_type: KVType) -> int:
    """Key summaries, fine and coarse: one row of keys each."""
    if sparse is None:
        return 0
    row = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    windows = context // sparse.kernel_stride + context // sparse.coarse_stride
    return windows * row * (4 if kv_type == "float32" else 2)


def workspace_bytes(config: ModelConfig, max_batch: int) -> int:
    """Buffers of a forward pass of `max_batch` tokens: an estimate from the shapes."""
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    per_token = 3 * config.hidden_size + heads + 3 * config.intermediate_size
    return 4 * (max_batch * per_token + config.vocab_size)
