"""Runs the folders of `edge export --to executorch` on ExecuTorch's C++ runtime.

Neither torch nor executorch's Python modules are loaded: a small C++ library stands between
(`edge.executors.executorch.library`). The full flavour has trees, KV compaction and hidden states; the
portable one continues rows only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import SparseConfig
from edge.errors import EdgeError, NativeError
from edge.executors.adapters import executorch_version
from edge.executors.checks import (
    MAX_TREE,
    check_kept_rows,
    check_logits,
    check_positions,
    check_tokens,
    check_tree,
)
from edge.executors.executorch import library as runner
from edge.executors.native import library as native
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
from edge.executors.weights import HugePageFile
from edge.formats.artifact.folder import Artifact
from edge.system.guards import OneCall

RUNTIME = "executorch"
FULL = "full"
Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class ExecuTorchCache:
    """The rows of one sequence, in memory that is committed as they fill it."""

    def __init__(self, executor: ExecuTorchExecutor, program: ctypes.c_void_p) -> None:
        self.executor = executor
        self.length, self.capacity = 0, executor.context
        self.handle = ctypes.c_void_p()
        runner.check(runner.library().edge_et_cache_create(program, ctypes.byref(self.handle)))
        native.finalize(self, runner.library().edge_et_cache_destroy, self.handle)


class ExecuTorchExecutor(ExecutorFacts, OneByOne):
    """Runs a .pte; calls are taken one at a time. The weights of the full flavour are copied into huge pages,
    those of the portable one mapped: XNNPACK makes a copy of them in its own layout.
    """

    def __init__(
        self, artifact: Artifact, options: RunOptions, *, context: int, sparse: SparseConfig | None
    ) -> None:
        """See `edge.executors.registry.ExecutorSpec`.

        options.threads: those of ExecuTorch's pool, which all executors of a process share: the last one's
        choice counts.
        """
        artifact.manifest.runtime.check(executorch_version())
        self._config, self._context = artifact.config, context
        self._full = artifact.manifest.flavour == FULL
        self._lock = OneCall("model")
        lib = runner.library()
        if self._full:
            runner.load_operators()
        file: HugePageFile | npt.NDArray[np.uint8]
        if self._full:
            file = HugePageFile(artifact.model, artifact.model.stat().st_size)
            start, size = file.start, file.bytes
        else:
            file = np.memmap(artifact.model, np.uint8, mode="r")
            start, size = int(file.ctypes.data), file.nbytes
        program = ctypes.c_void_p()
        runner.check(
            lib.edge_et_open(start, size, options.threads or native.default_threads(), ctypes.byref(program))
        )
        self._file: HugePageFile | npt.NDArray[np.uint8] | None = file  # the program reads from it
        self._program = program
        self._finalizer = native.finalize(self, lib.edge_et_close, program)
        self._info = ExecutorInfo(
            name="executorch",
            tier=f"executorch {executorch_version()}",
            threads=int(lib.edge_et_threads()),
            activations=options.activations,
            kv_type=options.kv_stored,
            sparse=sparse,
        )
        self._max_batch = min(self._constant("get_max_seq_len"), options.max_batch, context)
        if self._constant("get_vocab_size") != artifact.config.vocab_size:
            raise EdgeError(
                f"'{artifact.model}' and the folder's config have different vocabularies; export again."
            )

    @property
    def capabilities(self) -> Capabilities:
        """Those of the artifact's flavour."""
        return Capabilities(
            trees=self._full,
            max_tree=MAX_TREE if self._full else 0,
            hidden_states=self._full,
            sparse_attention=self._info.sparse is not None,
            kv_types=(self._info.kv_type,),
        )

    def new_cache(self) -> ExecuTorchCache:
        """An empty cache."""
        with self._lock():
            self._check_open()
            return ExecuTorchCache(self, self._program)

    def _run_step(self, step: SequenceStep) -> StepResult:
        """What the executor has no capability for is refused."""
        own = self._own(step.cache)
        ids = check_tokens(
            step.tokens, self._config, length=own.length, context=self._context, max_batch=self._max_batch
        )
        n = len(ids)
        count = check_logits(step.logits, n)
        in_a_row = step.positions is None and step.tree is None
        if len(step.layers):
            raise EdgeError("A model for ExecuTorch gives no outputs of layers: use the native executor.")
        if not self._full and (step.hidden or not in_a_row):
            raise EdgeError(
                "The portable flavour has no positions, trees or hidden states: export the full one."
            )
        with self._lock():
            self._check_open()
            if in_a_row and count < max(n, 2):
                logits, hidden = self._continue(own, ids, step.hidden)
            elif self._full:
                positions = (
                    None if step.positions is None else check_positions(step.positions, n, self._context)
                )
                masks = None if step.tree is None else check_tree(step.tree, n).view(np.int64)
                logits, hidden = self._verify(own, ids, positions, masks)
            else:
                parts = [self._continue(own, ids[at : at + 1], False, at)[0] for at in range(n)]
                logits, hidden = np.concatenate(parts), None
            if not np.isfinite(logits).all():
                raise NativeError("The logits are not finite: the weights are damaged.")
            own.length += n  # only now: what a failed pass wrote lies beyond the cache's rows
        return StepResult(logits[len(logits) - count :] if count else None, hidden if step.hidden else None)

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest.

        The portable flavour keeps rows from the start only.
        """
        own = self._own(cache)
        kept = check_kept_rows(rows, n, own.length)
        with self._lock():
            self._check_open()
            if self._full:
                for at in range(0, len(kept), MAX_TREE):
                    piece = np.array(kept[at : at + MAX_TREE], np.int64)
                    self._run(own, "keep", (piece, _one(n + at)), (np.empty(1, np.int64),))
            elif kept != list(range(n, n + len(kept))):
                raise EdgeError("The portable flavour has no trees, so rows are kept from the start only.")
            own.length = n + len(kept)

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        self.keep(cache, n, ())

    def close(self) -> None:
        """Free the program; later calls raise NativeError."""
        if self._lock.is_inherited:
            return
        with self._lock():
            self._finalizer()
            self._file = None

    def _continue(
        self, cache: ExecuTorchCache, ids: Ids, want_hidden: bool, after: int = 0
    ) -> tuple[Floats, Floats | None]:
        """Logits of the last token [1, vocab], and hidden states if wanted; `after`: rows not counted yet."""
        logits = np.empty((1, self._config.vocab_size), np.float32)
        inputs = (ids[None], _one(cache.length + after))
        if not want_hidden:
            self._run(cache, "forward", inputs, (logits,))
            return logits, None
        hidden = np.empty((len(ids), self._config.hidden_size), np.float32)
        self._run(cache, "hidden_states", inputs, (logits, hidden))
        return logits, hidden

    def _verify(
        self, cache: ExecuTorchCache, ids: Ids, positions: Ids | None, masks: Ids | None
    ) -> tuple[Floats, Floats]:
        """Logits and hidden states of all tokens, in pieces of as many as a tree has."""
        n = len(ids)
        logits = np.empty((n, self._config.vocab_size), np.float32)
        hidden = np.empty((n, self._config.hidden_size), np.float32)
        places = cache.length + np.arange(n) if positions is None else positions
        for at in range(0, n, MAX_TREE):
            part = slice(at, min(at + MAX_TREE, n))
            tree = np.empty(0, np.int64) if masks is None else masks
            inputs = (ids[None, part], places[part], tree, _one(cache.length + at))
            self._run(cache, "verify", inputs, (logits[part], hidden[part]))
        return logits, hidden

    def _run(
        self,
        cache: ExecuTorchCache,
        method: str,
        inputs: Sequence[Ids],
        outputs: Sequence[npt.NDArray[Any]],
    ) -> None:
        given = [np.ascontiguousarray(array) for array in inputs]
        tensors = (runner.Input * len(given))(
            *(runner.Input(array.ctypes.data, array.ndim, array.shape) for array in given)
        )
        results = (runner.Output * len(outputs))(
            *(runner.Output(array.ctypes.data, array.nbytes, 0) for array in outputs)
        )
        runner.check(
            runner.library().edge_et_run(
                cache.handle, method.encode(), tensors, len(given), results, len(outputs)
            )
        )
        for result, array in zip(results, outputs, strict=True):
            if result.bytes != array.nbytes:
                raise NativeError(f"The method '{method}' gave a result of another size; export again.")

    def _constant(self, name: str) -> int:
        value, count = ctypes.c_int64(), ctypes.c_int32()
        lib = runner.library()
        status = lib.edge_et_constant(
            self._program, name.encode(), ctypes.byref(value), 1, ctypes.byref(count)
        )
        runner.check(status)
        return int(value.value)

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise NativeError("The model is closed; load it again.")

    def _own(self, cache: KVCache) -> ExecuTorchCache:
        if not isinstance(cache, ExecuTorchCache) or cache.executor is not self:
            raise NativeError("This cache belongs to another executor.")
        return cache


def _one(value: int) -> Ids:
    return np.array([value], np.int64)
