"""The native executor: the whole transformer in one call of libedge per step."""

from __future__ import annotations

import ctypes
import hashlib
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import KVType, ModelConfig, SparseConfig
from edge.config.rope import rope_parameters
from edge.config.tensors import NetworkTensor, network_tensors
from edge.errors import EdgeError, NativeError
from edge.executors.checks import check_parts, integers, token_ids, whole_number
from edge.executors.native import library as native
from edge.executors.native.cache import NativeCache, handle_of
from edge.executors.native.draft import NativeDraft
from edge.executors.native.next_token import NativeNextToken, records_of
from edge.executors.native.operators import EXPORTED_KV, LayerCache
from edge.executors.native.pool import ThreadPool
from edge.executors.options import RunOptions
from edge.executors.protocol import (
    Capabilities,
    ExecutorFacts,
    ExecutorInfo,
    KVCache,
    SequenceStep,
    StepResult,
    check_caches,
)
from edge.executors.sampling import DrawOptions
from edge.executors.weights import WeightMemory, open_weights
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.draft.files import DraftFiles
from edge.formats.model_files import ModelFiles
from edge.quant.layout import LAYOUT_ALIGNMENT
from edge.quant.packing import pack
from edge.quant.rounding import quantize, to_float16
from edge.system.guards import OneCall

TIER_VARIABLE = "EDGE_CPU"
"""Environment variable that forces a kernel tier, for example `avx2`."""

_NOTHING = StepResult()
_BLOCK_SIZE, _KEY_GROUP, _MOST_GROUP = 64, 16, 64  # what the sparse kernels are built for


class NativeExecutor(ExecutorFacts):
    """Runs a bundle on the CPU. Safe to call from several threads: calls are taken one at a time.

    `info.tier` names the kernels in use, for example `avx512vnni`.
    """

    def __init__(
        self, files: ModelFiles, options: RunOptions, *, context: int, sparse: SparseConfig | None
    ) -> None:
        """See `edge.executors.registry.ExecutorSpec`.

        options.tier: by default $EDGE_CPU or the best of this CPU. options.mmap: True maps the weights' file
        and reads it when it is used, False copies it into huge pages; by default whichever is at once and
        fast (`edge.executors.weights`).
        """
        config = files.config
        check_parts(config, "native")
        self._config = config
        self._context = context
        self._max_batch = min(options.max_batch, context)
        self._lock = OneCall("model")
        self._pool = ThreadPool(options.threads)
        # The model borrows this memory.
        weight_memory = open_weights(files, options.mmap)
        self._weights: WeightMemory | None = weight_memory
        frequency, rope_scale = rope_parameters(
            config.rope, config.head_dim, context, config.max_position_embeddings
        )
        frequency = np.ascontiguousarray(frequency, np.float32)
        self._cache_identity = {
            "model": files.content_hash,
            "layout": f"native {native.CACHE_LAYOUT}",
            "activations": options.activations,
            "kv_type": options.kv_stored,  # after what it may follow from
            "rope": hashlib.sha256(frequency.tobytes() + np.float32(rope_scale).tobytes()).hexdigest(),
            "attention": "dense" if sparse is None else repr(sparse),
        }
        c_config = native.Config(
            size=ctypes.sizeof(native.Config),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            context=context,
            max_batch=self._max_batch,
            activations=native.ACTIVATIONS[options.activations],
            kv_type=native.KV_TYPE[options.kv_stored],
            rms_norm_eps=config.rms_norm_eps,
            embedding_scale=config.embedding_scale,
            residual_scale=config.residual_scale,
            logit_scale=config.logit_scale,
            rope_scale=rope_scale,
            inverse_frequency=frequency.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            sparse=sparse_constants(sparse),
        )
        self._tensors = dict(files.tensors)
        self._replaced: dict[str, npt.NDArray[np.uint8]] = {}
        self._coming: dict[str, npt.NDArray[np.uint8]] = {}
        network = network_tensors(config)
        weights = (native.Weight * len(files.tensors))(
            *(
                _weight(info, network[name], weight_memory.address(name))
                for name, info in files.tensors.items()
            )
        )
        lib, handle = native.library(), ctypes.c_void_p()
        tier = options.tier or os.environ.get(TIER_VARIABLE) or None
        native.check(
            lib.edge_model_create(
                ctypes.byref(c_config),
                weights,
                len(weights),
                ctypes.byref(self._pool.parallel),
                tier.encode() if tier else None,
                ctypes.byref(handle),
            )
        )
        self.handle = handle
        self._info = ExecutorInfo(
            name="native",
            tier=str(lib.edge_model_tier(handle).decode()),
            threads=self._pool.threads,
            activations=options.activations,
            kv_type=options.kv_stored,
            sparse=sparse,
            workspace_bytes=int(lib.edge_model_workspace_bytes(handle)),
            mapped_weights=weight_memory.mapped,
        )
        self._capabilities = Capabilities(
            batch_invariant=True,
            trees=True,
            max_tree=native.MAX_TREE,
            hidden_states=True,
            sparse_attention=sparse_obstacle(config) is None,
            cache_files=True,
            kv_types=tuple(native.KV_TYPE),
        )
        self._drawn_from = np.empty((0, config.vocab_size), np.float32)  # logits that tokens are drawn from
        self._drawn_at = 0
        self._is_observed = False
        self._observer_error: BaseException | None = None
        self._drafts: weakref.WeakSet[NativeDraft] = weakref.WeakSet()
        self._finalizer = native.finalize(self, lib.edge_model_destroy, handle)

    @property
    def weights(self) -> WeightMemory:
        """Where the weights lie, and how much of them in huge pages."""
        self._check_open()
        assert self._weights is not None
        return self._weights

    @property
    def capabilities(self) -> Capabilities:
        """Dense and sparse attention, and trees."""
        return self._capabilities

    def new_cache(self) -> NativeCache:
        """An empty cache; memory is committed as it fills."""
        with self._lock():
            self._check_open()
            return NativeCache(self.handle, self._context)

    def forward(self, steps: Sequence[SequenceStep]) -> list[StepResult]:
        """See `edge.executors.protocol.Executor.forward`: all tokens go through each matrix together."""
        check_caches(steps)
        results = [_NOTHING] * len(steps)
        passed: list[tuple[int, _StepMemory]] = []
        for index, step in enumerate(steps):
            try:
                passed.append((index, _StepMemory(step, self._config, self._max_batch)))
            except EdgeError as error:
                results[index] = StepResult(error=error)
        tokens = sum(memory.n for _, memory in passed)
        if tokens > self._max_batch:
            raise EdgeError(f"A pass takes up to {self._max_batch} tokens, got {tokens}: give some later.")
        if not passed:
            return results
        rows = sum(memory.logits_count for _, memory in passed)
        logits = np.empty((rows, self._config.vocab_size), np.float32)
        records = (native.Step * len(passed))()
        with self._lock():
            self._check_open()
            for record, (_, memory) in zip(records, passed, strict=True):
                memory.write(record)
            self._pass(records, logits.ctypes.data, [memory.cache for _, memory in passed])
        row = 0
        for (index, memory), record in zip(passed, records, strict=True):
            own = logits[row : row + memory.logits_count]
            row += memory.logits_count
            failed = _error_of(record)
            results[index] = memory.result(own) if failed is None else StepResult(error=failed)
        return results

    def next_token(self, cache: KVCache, options: DrawOptions) -> NativeNextToken:
        """See `edge.executors.protocol.DrawsTokens`."""
        return NativeNextToken(cache, options, self._config.vocab_size)

    def decode(self, steps: Sequence[NativeNextToken]) -> list[int | EdgeError]:
        """See `edge.executors.protocol.DrawsTokens`."""
        count, sample = len(steps), native.library().edge_sample
        if count > 1:
            check_caches(steps)
        if count > self._max_batch:
            raise EdgeError(f"A pass takes up to {self._max_batch} tokens, got {count}: give some later.")
        with self._lock():
            self._check_open()
            if count > len(self._drawn_from):
                self._drawn_from = np.empty((count, self._config.vocab_size), np.float32)
                self._drawn_at = self._drawn_from.ctypes.data
            logits = self._drawn_at
            for step in steps:
                step.read(logits)
                logits += 4 * self._config.vocab_size
            records, drawings = records_of(steps), [step.drawing for step in steps]
            failed = self._pass(records, self._drawn_at, [step.cache for step in steps])
            # Here nothing is at hand but what this function holds.
            found: list[int | EdgeError] = []
            for sampling, draw, result in drawings:
                if failed and (error := _error_of(records[len(found)])) is not None:
                    found.append(error)
                elif status := sample(sampling, draw, result):
                    found.append(native.error_of(status, native.library().edge_last_error()))
                else:
                    found.append(result.token)
        return found

    def _pass(self, records: ctypes.Array[native.Step], logits: int, caches: Sequence[KVCache]) -> bool:
        """Run the steps; whether any has failed. Raises what concerns all of them, and leaves the caches as
        they were then.
        """
        lengths = [cache.length for cache in caches] if self._is_observed else None
        self._observer_error = None
        status = native.library().edge_forward(self.handle, records, len(caches), logits)
        if status != 0 and all(record.status == 0 for record in records):
            native.check(status)
        if lengths is not None and self._observer_error is not None:
            for cache, length in zip(caches, lengths, strict=True):
                native.check(native.library().edge_cache_truncate(handle_of(cache), length))
            raise self._observer_error
        return bool(status != 0)

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""
        first = whole_number(n, "the number of rows to keep")
        kept = integers(rows, "rows to keep", np.int64)
        with self._lock():
            native.check(
                native.library().edge_cache_keep(handle_of(cache), first, kept.ctypes.data, kept.size)
            )

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        rows = whole_number(n, "the number of rows to keep")
        with self._lock():
            native.check(native.library().edge_cache_truncate(handle_of(cache), rows))

    @property
    def cache_identity(self) -> Mapping[str, str]:
        """The model's contents, the layout and every setting that changes keys and values."""
        return self._cache_identity

    def update(self, tensors: Mapping[str, npt.NDArray[np.floating[Any]]]) -> None:
        """See `edge.executors.protocol.TakesWeights`."""
        packed = {}
        for name, values in tensors.items():
            if name not in self._tensors:
                raise EdgeError(f"The network has no tensor '{name}'.")
            packed[name] = _packed(values, self._tensors[name])
        network = network_tensors(self._config)
        weights = [
            _weight(self._tensors[name], network[name], int(data.ctypes.data))
            for name, data in packed.items()
        ]
        if not weights:
            return
        digest = hashlib.sha256(self._cache_identity["model"].encode())
        for name, data in sorted(packed.items()):
            digest.update(name.encode() + data.tobytes())
        with self._lock():
            self._check_open()
            records = (native.Weight * len(weights))(*weights)
            self._coming = packed  # the model borrows them as soon as it has them
            native.check(native.library().edge_model_replace(self.handle, records, len(weights)))
            self._replaced |= packed
            self._cache_identity = {**self._cache_identity, "model": digest.hexdigest()}

    @property
    def arithmetic(self) -> str:
        """The tier and the library's own bytes."""
        return f"{self._info.tier} {native.content_hash()}"

    def fork(self, cache: KVCache, n: int) -> NativeCache:
        """A cache with the first n rows of another; the two share their memory, see `SharesRows`."""
        rows = whole_number(n, "the number of rows to share")
        copy = self.new_cache()
        with self._lock():
            native.check(native.library().edge_cache_fork(handle_of(cache), rows, copy.handle))
        return copy

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches; what several share counts once."""
        with self._lock():
            self._check_open()
            return int(native.library().edge_model_cache_bytes(self.handle))

    def cache_pages(self, cache: KVCache) -> list[npt.NDArray[np.uint8]]:
        """The rows in use as they stand in memory; borrowed until the cache changes."""
        pages, memory, size = [], ctypes.c_void_p(), ctypes.c_uint64()
        with self._lock():
            for page in range(-(-cache.length // native.CACHE_PAGE)):
                native.check(
                    native.library().edge_cache_page(
                        handle_of(cache), page, ctypes.byref(memory), ctypes.byref(size)
                    )
                )
                array = (ctypes.c_uint8 * size.value).from_address(memory.value or 0)
                pages.append(np.ctypeslib.as_array(array))
        return pages

    def restore(self, cache: KVCache, n: int, memory: npt.NDArray[np.uint8]) -> None:
        """Make n rows, the pages of `cache_pages` one after the other, the content of the cache."""
        rows = whole_number(n, "the number of rows")
        self._lock.check_process()
        # No lock: pages are taken under the pool's own, and a pass of others must not wait for the copying.
        native.check(
            native.library().edge_cache_restore(handle_of(cache), rows, memory.ctypes.data, memory.nbytes)
        )

    def repeat(self, cache: KVCache, n: int) -> None:
        """Grow the cache to n rows by repeating those it has: plausible values without a prefill."""
        rows = whole_number(n, "the number of rows")
        with self._lock():
            native.check(native.library().edge_cache_repeat(handle_of(cache), rows))

    def observe(self, observer: Callable[[bytes], None] | None) -> None:
        """See `edge.executors.protocol.Observable`; the bytes are those of a `native.Event`."""
        size = ctypes.sizeof(native.Event)

        def tell(_: int | None, event: Any) -> None:
            assert observer is not None
            if self._observer_error is None:
                try:
                    # Bytes are cheap to keep: in a slow observer the threads would fall asleep.
                    observer(ctypes.string_at(event, size))
                except BaseException as error:  # can't pass through C: `forward` raises it
                    self._observer_error = error

        hook = native.Observer() if observer is None else native.Observer(tell)
        with self._lock():
            self._check_open()
            native.check(native.library().edge_model_observe(self.handle, hook, None))
            self._is_observed = observer is not None
            self._observer = hook  # the library holds its address

    def open_draft(self, files: DraftFiles) -> NativeDraft:
        """See `edge.executors.drafts.Drafts`."""
        with self._lock():
            self._check_open()
            draft = NativeDraft(files, self, lock=self._lock)
            self._drafts.add(draft)
            return draft

    def close(self) -> None:
        """Free the native model and its drafts; later calls raise NativeError. Does nothing in a forked
        process.
        """
        if self._lock.is_inherited:
            return
        with self._lock():
            for draft in self._drafts:
                draft.free()
            self._finalizer()
            self._weights = None

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise NativeError("The model is closed; load it again.")


class _StepMemory:
    """What libedge reads and writes of one step, checked as far as it can't be there."""

    def __init__(self, step: SequenceStep, config: ModelConfig, max_batch: int) -> None:
        self.cache = step.cache
        self._tokens = token_ids(step.tokens)
        self.n = self._tokens.size
        if not 0 < self.n <= max_batch:
            raise NativeError(f"A batch has 1 to {max_batch} tokens, got {self.n}.")
        self._positions = _per_token(step.positions, np.int32, self.n, "positions")
        self._tree = _per_token(step.tree, np.uint64, self.n, "tree")
        self.logits_count = _choice({"none": 0, "last": 1, "all": self.n}, step.logits, "choice of logits")
        self._hidden = np.empty((self.n, config.hidden_size), np.float32) if step.hidden else None
        plain = isinstance(step.layers, tuple) and not step.layers
        self._indices = None if plain else integers(step.layers, "layers")
        count = 0 if self._indices is None else self._indices.size
        self._layers = np.empty((count, self.n, config.hidden_size), np.float32) if count else None

    def write(self, record: native.Step) -> None:
        """The step as libedge takes it; what the record has zeros for stays as it is."""
        record.size = ctypes.sizeof(native.Step)
        record.n = self.n
        record.cache = handle_of(self.cache)
        record.tokens = self._tokens.ctypes.data
        record.logits_count = self.logits_count
        record.positions = _address(self._positions)
        record.tree = _address(self._tree)
        record.hidden = _address(self._hidden)
        if self._indices is not None:
            record.layer_count = self._indices.size
            record.layer_indices = _address(self._indices)
            record.layer_outputs = _address(self._layers)

    def result(self, logits: npt.NDArray[np.float32]) -> StepResult:
        """What the step asked for, after the pass."""
        layers = () if self._layers is None else tuple(self._layers)
        return StepResult(logits if self.logits_count else None, self._hidden, layers)


def sparse_constants(sparse: SparseConfig | None) -> native.Sparse:
    """The constants as libedge takes them; None is dense attention."""
    if sparse is None:
        return native.Sparse(enabled=0)
    return native.Sparse(
        enabled=1,
        kernel_size=sparse.kernel_size,
        kernel_stride=sparse.kernel_stride,
        block_size=sparse.block_size,
        init_blocks=sparse.init_blocks,
        window_size=sparse.window_size,
        topk=sparse.topk,
        dense_len=sparse.dense_len,
        exact_lse=int(sparse.exact_lse),
    )


def layer_cache(
    config: ModelConfig, capacity: int, sparse: SparseConfig | None, kv_type: KVType = EXPORTED_KV
) -> LayerCache:
    """The cache of one layer, as exported graphs hold it."""
    return LayerCache(
        kv_type=native.KV_TYPE[kv_type],
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        capacity=capacity,
        sparse=sparse_constants(sparse),
    )


def sparse_obstacle(config: ModelConfig) -> str | None:
    """Why the kernels can't run this network's sparse attention; None if they can."""
    sparse = config.sparse or SparseConfig()
    group = config.num_attention_heads // config.num_key_value_heads
    if sparse.block_size != _BLOCK_SIZE:
        return f"the native kernels need a block_size of {_BLOCK_SIZE}, not {sparse.block_size}"
    if sparse.kernel_size % _KEY_GROUP or sparse.kernel_stride % _KEY_GROUP:
        return f"the native kernels need a kernel_size and kernel_stride that are multiples of {_KEY_GROUP}"
    if group > _MOST_GROUP:
        return f"the native kernels take up to {_MOST_GROUP} query heads per KV head, not {group}"
    return None


def _packed(values: npt.NDArray[np.floating[Any]], info: BundleTensor) -> npt.NDArray[np.uint8]:
    """The nearest codes in the kernels' layout, in memory that starts at a cache line."""
    matrix = np.asarray(values)
    if matrix.shape != info.shape or matrix.dtype.kind != "f":
        raise EdgeError(
            f"'{info.name}' is a float tensor of shape {list(info.shape)}, got {matrix.dtype} "
            f"{list(matrix.shape)}."
        )
    if not np.isfinite(matrix).all():
        raise EdgeError(f"'{info.name}' has values that are not finite: nothing was changed.")
    scheme = info.scheme
    if not scheme.is_float:
        data = pack(quantize(matrix, scheme, info.name), scheme)
    else:
        data = pack(to_float16(matrix, info.name) if matrix.ndim == 2 else matrix, scheme)
    place = np.empty(data.size + LAYOUT_ALIGNMENT, np.uint8)
    start = -place.ctypes.data % LAYOUT_ALIGNMENT
    place[start : start + data.size] = data
    return place[start : start + data.size]


def _weight(info: BundleTensor, tensor: NetworkTensor, address: int) -> native.Weight:
    matrix = native.matrix(info.scheme.packing, info.rows, info.columns, address)
    return native.Weight(role=tensor.role.native, layer=tensor.layer or 0, matrix=matrix)


def _error_of(record: native.Step) -> EdgeError | None:
    """Why a step of a pass failed."""
    return native.error_of(record.status, record.error) if record.status else None


def _choice(table: dict[str, int], name: str, what: str) -> int:
    if name not in table:
        raise NativeError(f"Unknown {what} '{name}'; choose one of {', '.join(table)}.")
    return table[name]


def _address(array: npt.NDArray[np.generic] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _per_token(
    array: npt.NDArray[np.generic] | None, dtype: type[np.integer], n: int, what: str
) -> npt.NDArray[np.generic] | None:
    if array is None:
        return None
    if np.shape(array) != (n,):
        raise EdgeError(f"{what} must have one entry per token ({n}), got shape {np.shape(array)}.")
    return integers(array, what, dtype)
