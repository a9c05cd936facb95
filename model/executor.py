"""The PyTorch network as an executor: slow, exact in float32, and written apart from the native one.

Sessions, sampling, chat and perplexity run on it as they run on the native executor, so a difference between
the two is a difference of arithmetic and of nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge.config import ModelConfig, SparseConfig
from edge.config.attention import AttentionMode
from edge.errors import NativeError
from edge.executors.checks import (
    MAX_TREE,
    check_kept_rows,
    check_layers,
    check_logits,
    check_positions,
    check_tokens,
    check_tree,
)
from edge.executors.memory import check_memory, memory_plan
from edge.executors.protocol import (
    Capabilities,
    ExecutorFacts,
    KVCache,
    OneByOne,
    SequenceStep,
    StepResult,
)
from edge.formats.bundle.reader import Bundle
from edge.model.attention.mode import use_attention_mode
from edge.model.network.decoder import Decoder
from edge.model.network.kv_cache import GrowingCache
from edge.model.weights.loading import reference_from_bundle
from edge.system.memory import available_memory


def open_torch(
    bundle: Bundle, context: int, attention: AttentionMode = "auto", threads: int | None = None
) -> TorchExecutor:
    """An executor over a bundle's weights in float32; ContextError if the memory does not suffice.

    attention: see `edge.config.attention`; ConfigError where sparse was asked for and can't run. threads: of
    PyTorch, in the whole process.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    plan = memory_plan(bundle, context, "float32")
    weights = 4 * sum(tensor.rows * tensor.columns for tensor in bundle.tensors.values())
    check_memory(replace(plan, weights=weights), available_memory())
    decoder = reference_from_bundle(bundle, context)
    sparse = use_attention_mode(decoder, attention)
    return TorchExecutor(decoder, sparse=sparse)


class TorchCache:
    """The cache of one sequence on a `TorchExecutor`."""

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        self.config = config
        self.rows = GrowingCache(config)
        self.capacity = capacity

    @property
    def length(self) -> int:
        """Rows in use."""
        return self.rows.length


class TorchExecutor(ExecutorFacts, OneByOne):
    """Runs a `Decoder`, in the context that it was made for; calls are taken one at a time.

    sparse: the constants of sparse attention, None if every query is dense.
    """

    def __init__(self, decoder: Decoder, max_batch: int = 256, sparse: SparseConfig | None = None) -> None:
        """max_batch: most tokens of one step. sparse: what `use_attention_mode` returned."""
        self.sparse = sparse
        self._decoder: Decoder | None = decoder
        self._config, self._context = decoder.config, decoder.context
        self._max_batch = min(max_batch, self._context)
        self._lock = threading.Lock()

    @property
    def threads(self) -> int:
        """Threads that PyTorch uses."""
        return torch.get_num_threads()

    @property
    def tier(self) -> str:
        """What computes, in words."""
        return f"torch {torch.__version__}"

    @property
    def workspace_bytes(self) -> int:
        """PyTorch allocates as it goes."""
        return 0

    @property
    def capabilities(self) -> Capabilities:
        """Trees, hidden states, sparse attention, and caches of float32."""
        return Capabilities(
            trees=True,
            max_tree=MAX_TREE,
            hidden_states=True,
            sparse_attention=True,
            kv_types=("float32",),
        )

    def new_cache(self) -> TorchCache:
        """An empty cache."""
        with self._lock:
            self._opened()
            return TorchCache(self._config, self._context)

    def _run_step(self, step: SequenceStep) -> StepResult:
        own = self._own(step.cache)
        checked = check_tokens(
            step.tokens, self._config, length=own.length, context=self._context, max_batch=self._max_batch
        )
        n = len(checked)
        ids = torch.from_numpy(checked)
        positions = None
        if step.positions is not None:
            positions = torch.from_numpy(check_positions(step.positions, n, self._context))
        mask = None if step.tree is None else _tree_mask(check_tree(step.tree, n))
        count = check_logits(step.logits, n)
        check_layers(step.layers, self._config)
        with self._lock, torch.inference_mode():
            decoder = self._opened()
            before = own.length
            try:
                trunk = decoder.trunk(ids, positions, mask, own.rows)
                logits = decoder.logits(trunk.hidden[n - count :])
                if not (trunk.hidden.isfinite().all() and logits.isfinite().all()):
                    raise NativeError("The logits are not finite: the weights are damaged.")
            except BaseException:
                own.rows.truncate(before)
                raise
        return StepResult(
            logits.numpy() if count else None,
            trunk.hidden.numpy() if step.hidden else None,
            tuple(trunk.stream[layer].numpy() for layer in step.layers),
        )

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""
        own = self._own(cache)
        kept = check_kept_rows(rows, n, own.length)
        with self._lock:
            own.rows.keep(n, kept)

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        self.keep(cache, n, ())

    def close(self) -> None:
        """Free the weights; later calls raise NativeError."""
        with self._lock:
            self._decoder = None

    def _opened(self) -> Decoder:
        if self._decoder is None:
            raise NativeError("The model is closed; load it again.")
        return self._decoder

    def _own(self, cache: KVCache) -> TorchCache:
        if not isinstance(cache, TorchCache) or cache.config != self._config:
            raise NativeError("This cache belongs to another executor.")
        return cache


def _tree_mask(masks: npt.NDArray[np.uint64]) -> Tensor:
    """bool [n, n] from one 64-bit mask per token."""
    columns = np.arange(len(masks), dtype=np.uint64)
    return torch.from_numpy((masks[:, None] >> columns & np.uint64(1)).astype(bool))
