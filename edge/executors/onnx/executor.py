"""Runs the folders of `edge export --to onnx` on ONNX Runtime, which is imported when an executor is made.

Inputs, outputs and KV caches are NumPy arrays that stay where they are: ONNX Runtime reads and writes them in
place, and a cache is bound to the inputs and the outputs of a pass at once.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from edge.config import KVType
from edge.errors import EdgeError, NativeError
from edge.executors.adapters import onnxruntime_library
from edge.executors.checks import (
    check_kept_rows,
    check_logits,
    check_positions,
    check_taps,
    check_tokens,
    check_tree,
)
from edge.executors.memory import check_memory, memory_plan
from edge.executors.native import library as native
from edge.executors.onnx.flavours import FLAVOURS, SESSION_ENTRIES, Array, CacheArrays
from edge.executors.protocol import Capabilities, ExecutorFacts, ForwardResult, KVCache, Logits
from edge.executors.weights import open_weights
from edge.formats.artifact.folder import Artifact
from edge.system.huge_pages import moved_to_huge_pages
from edge.system.memory import available_memory

_MAX_BATCH = 256
_CPU = "CPUExecutionProvider"
_WARNINGS = 3  # only errors are logged


def open_executor(artifact: Artifact, *, context: int, threads: int | None = None) -> OnnxExecutor:
    """An executor over an artifact of the target onnx; see `edge.executors.registry`."""
    return OnnxExecutor(artifact, context=context, threads=threads)


def runtime_version() -> str:
    """The installed version of ONNX Runtime; EdgeError if there is none."""
    version: str = _onnxruntime().__version__
    return version


class OnnxCache:
    """The keys and values of one sequence; memory is committed as it fills."""

    def __init__(self, executor: OnnxExecutor, arrays: CacheArrays, binding: Any) -> None:
        """binding: of ONNX Runtime, to which the arrays are bound for good."""
        self.executor, self.arrays, self.binding = executor, arrays, binding
        self.length, self.capacity = 0, executor.context
        self.inputs: dict[str, Array] = {}  # that are bound beside the cache
        self.outputs: Set[str] | None = None
        for (taken, _), memory in arrays.items():
            _bind(binding.bind_input, taken, memory)


class OnnxExecutor(ExecutorFacts):
    """Runs an exported decoder; calls are taken one at a time.

    threads: those of ONNX Runtime. sparse: the constants of sparse attention, None if every query is dense.
    """

    def __init__(self, artifact: Artifact, *, context: int, threads: int | None = None) -> None:
        """context: longest sequence in tokens, at most the artifact's.

        Raises ContextError if the memory does not suffice, and EdgeError as the registry says.
        """
        runtime = _onnxruntime()
        artifact.manifest.runtime.check(runtime.__version__)
        self._config, self._context = artifact.config, context
        self._max_batch = min(_MAX_BATCH, context)
        self._flavour = FLAVOURS[artifact.manifest.flavour](artifact.manifest, context)
        self.sparse = self._flavour.sparse
        kv_type = cast(KVType, self.capabilities.kv_types[0])
        check_memory(memory_plan(artifact, context, kv_type, sparse=self.sparse), available_memory())
        self.threads = threads or native.default_threads()
        self._lock = threading.Lock()
        self._caches: weakref.WeakSet[OnnxCache] = weakref.WeakSet()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = _WARNINGS
        for name, value in SESSION_ENTRIES.items():
            options.add_session_config_entry(name, value)
        self._borrowed = _add_operators(options, artifact) if self._flavour.needs_operators else []
        try:
            with moved_to_huge_pages():
                self._session = runtime.InferenceSession(str(artifact.model), options, providers=[_CPU])
        except Exception as error:  # ONNX Runtime has no common base class for its errors
            raise EdgeError(
                f"ONNX Runtime {runtime.__version__} can't open '{artifact.model}': {_first_line(error)}; "
                "update onnxruntime or export the model again."
            ) from None

    @property
    def capabilities(self) -> Capabilities:
        """Everything in the full flavour, tokens in a row and their logits in the portable one."""
        return self._flavour.capabilities

    @property
    def tier(self) -> str:
        """What computes, in words."""
        return f"onnxruntime {runtime_version()}"

    @property
    def workspace_bytes(self) -> int:
        """ONNX Runtime does not tell how much it has in its arena."""
        return 0

    def new_cache(self) -> OnnxCache:
        """An empty cache."""
        with self._lock:
            cache = OnnxCache(self, self._flavour.new_cache(), self._opened().io_binding())
            self._caches.add(cache)
            return cache

    def forward(
        self,
        cache: KVCache,
        tokens: Sequence[int] | npt.NDArray[np.int32],
        *,
        positions: npt.NDArray[np.int32] | None = None,
        tree: npt.NDArray[np.uint64] | None = None,
        want_logits: Logits = "last",
        want_hidden: bool = False,
        taps: Sequence[int] = (),
    ) -> ForwardResult:
        """See `edge.executors.protocol.Executor.forward`; what it has no capability for is refused."""
        own = self._own(cache)
        ids = check_tokens(
            tokens, self._config, length=own.length, context=self._context, max_batch=self.max_batch
        )
        n = len(ids)
        rows = check_logits(want_logits, n)
        check_taps(taps, self._config)
        places = None if positions is None else check_positions(positions, n, self._context)
        masks = None if tree is None else check_tree(tree, n)
        inputs = self._flavour.inputs(ids, own.length, places, masks)
        inputs["logits_from"] = np.array([n - max(rows, self._flavour.least_logits)], np.int64)
        outputs = self._flavour.outputs(n, rows, want_hidden, taps)
        with self._lock:
            self._run(own, inputs, outputs)
            if not all(np.isfinite(array).all() for array in outputs.values()):
                raise NativeError("The logits are not finite: the weights are damaged.")
            own.length += n  # only now: what a failed pass wrote lies beyond the cache's rows
        return ForwardResult(
            outputs["row_logits"].reshape(rows, -1) if rows else None,
            outputs["hidden"] if want_hidden else None,
            tuple(outputs[f"layers.{layer}.stream"] for layer in taps),
        )

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""
        own = self._own(cache)
        kept = check_kept_rows(rows, n, own.length)
        with self._lock:
            if kept:
                self._flavour.keep(own.arrays, n, kept)
            own.length = n + len(kept)

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        self.keep(cache, n, ())

    def close(self) -> None:
        """Free the weights; later calls raise NativeError."""
        with self._lock:
            self._session = None
            self._borrowed = []
            for cache in self._caches:  # a binding may keep the session, or outlive it
                cache.binding = None

    def _run(self, cache: OnnxCache, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        session, binding = self._opened(), cache.binding
        if outputs.keys() != cache.outputs:  # what was bound before would be written again
            binding.clear_binding_outputs()
            for (_, given), memory in cache.arrays.items():
                _bind(binding.bind_output, given, memory)
            cache.outputs = outputs.keys()
        for name, array in inputs.items():
            bound = cache.inputs.get(name)
            if bound is not None and bound.shape == array.shape:
                bound[...] = array
            else:
                cache.inputs[name] = array.copy()  # it may be the caller's
                _bind(binding.bind_input, name, cache.inputs[name])
        for name, array in outputs.items():
            _bind(binding.bind_output, name, array)
        try:
            session.run_with_iobinding(binding)
        except RuntimeError as error:
            raise NativeError(f"ONNX Runtime failed: {_first_line(error)}.") from None

    def _opened(self) -> Any:
        if self._session is None:
            raise NativeError("The model is closed; load it again.")
        return self._session

    def _own(self, cache: KVCache) -> OnnxCache:
        if not isinstance(cache, OnnxCache) or cache.executor is not self:
            raise NativeError("This cache belongs to another executor.")
        return cache


def _bind(bind: Callable[..., None], name: str, array: Array) -> None:
    """Let ONNX Runtime read or write `array` where it is."""
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _add_operators(options: Any, artifact: Artifact) -> list[Any]:
    """Our operators, and the weights in the memory that they read fastest.

    ONNX Runtime by itself would map the file, in pages that stream slower. Returns what a session borrows.
    """
    options.register_custom_ops_library(str(onnxruntime_library()))
    weights = open_weights(artifact)
    borrowed: list[Any] = [weights]
    for name, info in artifact.tensors.items():
        memory = (ctypes.c_uint8 * info.bytes).from_address(weights.address(name))
        array: Array = np.ctypeslib.as_array(memory)
        if len(info.shape) == 1:
            array = array.view(np.float32)[: info.columns]
        value = _onnxruntime().OrtValue.ortvalue_from_numpy(array)
        options.add_initializer(name, value)
        borrowed += [array, value]
    return borrowed


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EdgeError(
            f"The onnx executor needs ONNX Runtime ({error}); install it with `pip install onnxruntime`."
        ) from None
    onnxruntime.disable_telemetry_events()  # what runs here is nobody's business
    return onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
