"""Runs the folders of `edge export --to onnx` on ONNX Runtime, which is imported when an executor is made.

Inputs, outputs and KV caches are NumPy arrays that stay where they are: ONNX Runtime reads and writes them in
place, and a cache is bound to the inputs and the outputs of a pass at once.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from edge.config import SparseConfig
from edge.errors import EdgeError, NativeError
from edge.executors.adapters import onnxruntime_library
from edge.executors.checks import (
    check_kept_rows,
    check_layers,
    check_logits,
    check_positions,
    check_tokens,
    check_tree,
)
from edge.executors.native import library as native
from edge.executors.onnx.flavours import FLAVOURS, SESSION_ENTRIES, Array, CacheArrays
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
from edge.executors.weights import open_weights
from edge.formats.artifact.folder import Artifact
from edge.system.guards import OneCall
from edge.system.huge_pages import moved_to_huge_pages

_CPU = "CPUExecutionProvider"
_WARNINGS = 3  # only errors are logged


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


class OnnxExecutor(ExecutorFacts, OneByOne):
    """Runs an exported decoder; calls are taken one at a time."""

    def __init__(
        self, artifact: Artifact, options: RunOptions, *, context: int, sparse: SparseConfig | None
    ) -> None:
        """See `edge.executors.registry.ExecutorSpec`; options.threads: those of ONNX Runtime."""
        runtime = _onnxruntime()
        artifact.manifest.runtime.check(runtime.__version__)
        self._config, self._context = artifact.config, context
        self._max_batch = min(options.max_batch, context)
        self._flavour = FLAVOURS[artifact.manifest.flavour](artifact.manifest, context, sparse)
        self._info = ExecutorInfo(
            name="onnx",
            tier=f"onnxruntime {runtime.__version__}",
            threads=options.threads or native.default_threads(),
            activations=options.activations,
            kv_type=options.kv_stored,
            sparse=sparse,
        )
        self._lock = OneCall("model")
        self._caches: weakref.WeakSet[OnnxCache] = weakref.WeakSet()
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = self._info.threads, 1
        settings.log_severity_level = _WARNINGS
        for name, value in SESSION_ENTRIES.items():
            settings.add_session_config_entry(name, value)
        self._borrowed = _add_operators(settings, artifact) if self._flavour.needs_operators else []
        try:
            with moved_to_huge_pages():
                self._session = runtime.InferenceSession(str(artifact.model), settings, providers=[_CPU])
        except Exception as error:  # ONNX Runtime has no common base class for its errors
            raise EdgeError(
                f"ONNX Runtime {runtime.__version__} can't open '{artifact.model}': {_first_line(error)}; "
                "update onnxruntime or export the model again."
            ) from None

    @property
    def capabilities(self) -> Capabilities:
        """Everything in the full flavour, tokens in a row and their logits in the portable one."""
        return self._flavour.capabilities

    def new_cache(self) -> OnnxCache:
        """An empty cache."""
        with self._lock():
            cache = OnnxCache(self, self._flavour.new_cache(), self._opened().io_binding())
            self._caches.add(cache)
            return cache

    def _run_step(self, step: SequenceStep) -> StepResult:
        """What the executor has no capability for is refused."""
        own = self._own(step.cache)
        ids = check_tokens(
            step.tokens, self._config, length=own.length, context=self._context, max_batch=self.max_batch
        )
        n = len(ids)
        count = check_logits(step.logits, n)
        check_layers(step.layers, self._config)
        positions = None if step.positions is None else check_positions(step.positions, n, self._context)
        tree = None if step.tree is None else check_tree(step.tree, n)
        inputs = self._flavour.inputs(ids, own.length, positions, tree)
        inputs["logits_from"] = np.array([n - max(count, self._flavour.least_logits)], np.int64)
        outputs = self._flavour.outputs(n, count, step.hidden, step.layers)
        with self._lock():
            self._run(own, inputs, outputs)
            if not all(np.isfinite(array).all() for array in outputs.values()):
                raise NativeError("The logits are not finite: the weights are damaged.")
            own.length += n  # only now: what a failed pass wrote lies beyond the cache's rows
        return StepResult(
            outputs["row_logits"].reshape(count, -1) if count else None,
            outputs["hidden"] if step.hidden else None,
            tuple(outputs[f"layers.{layer}.stream"] for layer in step.layers),
        )

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""
        own = self._own(cache)
        kept = check_kept_rows(rows, n, own.length)
        with self._lock():
            if kept:
                self._flavour.keep(own.arrays, n, kept)
            own.length = n + len(kept)

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        self.keep(cache, n, ())

    def close(self) -> None:
        """Free the weights; later calls raise NativeError."""
        if self._lock.is_inherited:
            return
        with self._lock():
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
