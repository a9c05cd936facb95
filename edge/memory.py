"""What a model will need in memory, stated before anything is allocated, and whether this machine has it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge.artifact import Artifact
from edge.bundle.reader import Bundle
from edge.config import KVType, ModelConfig, SparseConfig
from edge.errors import ContextError

_GIB = 1 << 30


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes for one conversation of `context` tokens.

    weights: read from the bundle into memory of the process; with mapped_weights they stay in the file, whose
    pages the system reads and drops as it likes. kv_cache: at the full context, with the key summaries of
    sparse attention; it is committed as a conversation grows. workspace: buffers of a forward pass of
    `max_batch` tokens (an estimate from the shapes).
    """

    weights: int
    kv_cache: int
    workspace: int
    context: int
    mapped_weights: bool = False

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.workspace

    @property
    def committed(self) -> int:
        """What must be free: all of it but mapped weights."""
        return self.total - (self.weights if self.mapped_weights else 0)

    def __str__(self) -> str:
        mapped = " (mapped)" if self.mapped_weights else ""
        return (
            f"{self.total / _GIB:.2f} GiB = weights {self.weights / _GIB:.2f}{mapped} + KV cache "
            f"{self.kv_cache / _GIB:.2f} (at {self.context} tokens) + workspace {self.workspace / _GIB:.2f}"
        )


def memory_plan(
    bundle: Bundle | Artifact,
    context: int,
    kv_type: KVType = "float16",
    max_batch: int = 256,
    mapped_weights: bool = False,
    sparse: SparseConfig | None = None,
) -> MemoryPlan:
    """The plan for one conversation over `bundle`; sparse: the constants of its attention, None if dense."""
    config = bundle.config
    return MemoryPlan(
        weights=sum(tensor.bytes for tensor in bundle.tensors.values()),
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
        f"The model needs {plan}, but only {available / _GIB:.2f} GiB of memory are available: choose a "
        "shorter context, a smaller model or a smaller quantization."
    )


def available_memory() -> int | None:
    """Bytes that this process can still use: free and reclaimable memory within the cgroup's limits.

    None where the system does not tell.
    """
    found = [value for value in (_system_available(), *_cgroup_available()) if value is not None]
    return min(found, default=None)


def _summaries(config: ModelConfig, sparse: SparseConfig | None, context: int, kv_type: KVType) -> int:
    """Key summaries, fine and coarse: one row of keys each."""
    if sparse is None:
        return 0
    row = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    windows = context // sparse.kernel_stride + context // sparse.coarse_stride
    return windows * row * (4 if kv_type == "float32" else 2)


def huge_page_bytes(address: int, size: int) -> int | None:
    """How much of this process's memory from `address` on lies in huge pages; None where nobody tells.

    Counts anonymous memory and mapped files. Whole mappings are looked at, so memory beside it can count too.
    """
    total, inside = 0, False
    try:
        with Path("/proc/self/smaps").open() as lines:
            for line in lines:
                key, _, rest = line.partition(" ")
                if key[-1] != ":":  # the head of a mapping: "START-END permissions ..."
                    start, _, end = key.partition("-")
                    inside = int(start, 16) < address + size and int(end, 16) > address
                elif inside and key in ("AnonHugePages:", "FilePmdMapped:", "ShmemPmdMapped:"):
                    total += int(rest.split()[0]) * 1024
    except (OSError, ValueError):
        return None
    return min(total, size)


def workspace_bytes(config: ModelConfig, max_batch: int) -> int:
    """Buffers of a forward pass of `max_batch` tokens: an estimate from the shapes."""
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    per_token = 3 * config.hidden_size + heads + 3 * config.intermediate_size
    return 4 * (max_batch * per_token + config.vocab_size)


def _system_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        # Without a figure for reclaimable memory (macOS), what is installed is the only firm bound.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _cgroup_available(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """What the limits of this process's cgroup (v2 or v1) and of those above it leave."""
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    left: list[int] = []
    for entry in entries:
        if len(entry) != 3 or (entry[1] and "memory" not in entry[1].split(",")):
            continue
        version_2 = entry[1] == ""
        base = root if version_2 else root / "memory"
        limit, used = (
            ("memory.max", "memory.current")
            if version_2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        folder = base / entry[2].strip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(base):
                break
            room = _room(place / limit, place / used, place / "memory.stat")
            if room is not None:
                left.append(room)
    return left


def _room(limit: Path, used: Path, stat: Path) -> int | None:
    """The limit less what is in use and can't be reclaimed; None where there is no limit."""
    try:
        text = limit.read_text().strip()
        if text == "max":
            return None
        in_use = int(used.read_text())
        files = {line.split()[0]: int(line.split()[1]) for line in stat.read_text().splitlines()}
    except (OSError, ValueError, IndexError):
        return None
    cached = files.get("inactive_file", 0) + files.get("active_file", 0)
    return max(0, int(text) - max(0, in_use - cached))
