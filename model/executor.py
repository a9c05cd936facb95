"""The PyTorch network as an executor: slow, exact in float32, and written apart from the native one.

Sessions, sampling, chat and perplexity run on it as they run on the native executor, so a difference between
the two is a difference of arithmetic and of nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge.checkpoints.bita import SoftWeights
from edge.config import ModelConfig, SparseConfig
from edge.errors import ContextError, NativeError
from edge.executors.checks import (
    MAX_TREE,
    check_kept_rows,
    check_layers,
    check_logits,
    check_positions,
    check_tokens,
    check_tree,
)
from edge.executors.options import RunOptions
from edge.executors.protocol import (
    Capabilities,
    ExecutorFacts,
    ExecutorInfo,
    KVCache,
    OneByOne,
    SequenceStep,
    StepResult,
)
from edge.formats.draft.files import DraftFiles
from edge.formats.model_files import ModelFiles
from edge.model.attention.mode import attend_function
from edge.model.draft import TorchDraft
from edge.model.network.decoder import Decoder
from edge.model.network.kv_cache import GrowingCache
from edge.model.soft_prompt import TorchSoftPrompt, checked_rows
from edge.model.stages import reported
from edge.model.weights.checkpoint import reference_from_bundle
from edge.system.guards import OneCall


def open_torch(
    files: ModelFiles, options: RunOptions, *, context: int, sparse: SparseConfig | None
) -> TorchExecutor:
    """See `edge.executors.registry.ExecutorSpec`; the weights become float32.

    options.threads: of PyTorch, in the whole process.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    decoder = reference_from_bundle(files, context)
    decoder.use_attention(attend_function(sparse))
    return TorchExecutor(decoder, options.max_batch, sparse)


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
    """Runs a `Decoder`, in the context that it was made for; calls are taken one at a time."""

    def __init__(self, decoder: Decoder, max_batch: int = 256, sparse: SparseConfig | None = None) -> None:
        """max_batch: most tokens of one step. sparse: the constants of the decoder's attention."""
        self._info = ExecutorInfo(
            name="torch",
            tier=f"torch {torch.__version__}",
            threads=torch.get_num_threads(),
            activations="float32",
            kv_type="float32",
            sparse=sparse,
        )
        self._decoder: Decoder | None = decoder
        self._config, self._context = decoder.config, decoder.context
        self._max_batch = min(max_batch, self._context)
        self._lock = OneCall("model")
        self._report: Callable[[str, int, npt.NDArray[np.float32]], None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Trees, hidden states, sparse attention, soft rows without it, and caches of float32."""
        return Capabilities(
            trees=True,
            max_tree=MAX_TREE,
            hidden_states=True,
            sparse_attention=True,
            soft_rows=self._info.sparse is None,
            kv_types=("float32",),
        )

    def new_cache(self) -> TorchCache:
        """An empty cache."""
        with self._lock():
            self._opened()
            return TorchCache(self._config, self._context)

    def _run_step(self, step: SequenceStep) -> StepResult:
        own = self._own(step.cache)
        checked = check_tokens(
            step.tokens, self._config, length=own.length, context=self._context, max_batch=self._max_batch
        )
        n, soft = len(checked), None if step.soft is None else checked_rows(step.soft)
        ids, rows = torch.from_numpy(checked), step.rows
        if own.length + rows > self._context:
            raise ContextError(
                f"{rows} more rows after {own.length} do not fit the context of {self._context} tokens."
            )
        soft_rows = None if soft is None else soft.network.rows(soft.numbers)
        positions = None
        if step.positions is not None:
            positions = torch.from_numpy(check_positions(step.positions, rows, self._context))
        mask = None if step.tree is None else _tree_mask(check_tree(step.tree, rows))
        count = check_logits(step.logits, n)
        check_layers(step.layers, self._config)
        with self._lock(), torch.inference_mode():
            decoder = self._opened()
            before = own.length
            try:
                with nullcontext() if self._report is None else reported(decoder, self._stage):
                    trunk = decoder.trunk(ids, positions, mask, own.rows, soft_rows)
                wanted = trunk.hidden[n - count :]
                logits = decoder.logits(wanted)
                if self._report is not None and len(wanted):
                    self._stage("final_norm", -1, wanted * decoder.config.logit_scale)
                    self._stage("head", -1, logits)
                if not (trunk.hidden.isfinite().all() and logits.isfinite().all()):
                    raise NativeError("The logits are not finite: the weights are damaged.")
            except BaseException:
                own.rows.truncate(before)
                raise
            if soft is not None:
                own.rows.truncate(before + n)
        return StepResult(
            logits[:count].numpy() if count else None,
            trunk.hidden[:n].numpy() if step.hidden else None,
            tuple(trunk.stream[layer][:n].numpy() for layer in step.layers),
            None if soft is None else logits[count:].numpy(),
        )

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""
        own = self._own(cache)
        kept = check_kept_rows(rows, n, own.length)
        with self._lock():
            own.rows.keep(n, kept)

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        self.keep(cache, n, ())

    def open_draft(self, files: DraftFiles) -> TorchDraft:
        """See `edge.executors.drafts.Drafts`."""
        with self._lock():
            return TorchDraft(files, self._opened(), self._lock)

    def open_soft(self, weights: SoftWeights) -> TorchSoftPrompt:
        """See `edge.executors.protocol.TakesSoftRows`."""
        weights.check_target(self._config, "The soft prompt")
        return TorchSoftPrompt(weights, self._config)

    def report_stages(self, report: Callable[[str, int, npt.NDArray[np.float32]], None] | None) -> None:
        """See `edge.executors.protocol.Staged`."""
        with self._lock():
            self._report = report

    def _stage(self, operation: str, layer: int, output: Tensor) -> None:
        assert self._report is not None
        self._report(operation, layer, output.numpy())

    def close(self) -> None:
        """Free the weights; later calls raise NativeError."""
        if self._lock.is_inherited:
            return
        with self._lock():
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
