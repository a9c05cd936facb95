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

from edge.checkpoints.bita import SoftWeights
from edge.config import SparseConfig
from edge.config.rope import rope_parameters
from edge.config.rope_regime import without_regime
from edge.config.tensors import network_tensors, parts_beyond
from edge.errors import EdgeError, NativeError
from edge.executors.checks import check_parts, integers, whole_number
from edge.executors.native import library as native
from edge.executors.native.cache import NativeCache, handle_of
from edge.executors.native.draft import NativeDraft
from edge.executors.native.next_token import (
    Decoding,
    NativeNextToken,
    Search,
    decodings_of,
    records_of,
)
from edge.executors.native.packed import packed_tensor, weight_of
from edge.executors.native.pool import ThreadPool
from edge.executors.native.resting import RestingWeights
from edge.executors.native.searches import Searches
from edge.executors.native.shapes import sparse_constants, sparse_obstacle
from edge.executors.native.soft import NativeSoftPrompt
from edge.executors.native.steps import StepMemory, error_of
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
from edge.formats.draft.files import DraftFiles
from edge.formats.model_files import ModelFiles
from edge.system.guards import OneCall

TIER_VARIABLE = "EDGE_CPU"
"""Environment variable that forces a kernel tier, for example `avx2`."""

_NOTHING = StepResult()


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
        check_parts(config, "native", parts_beyond(config, lambda role: role.native is not None))
        self._config = config
        self._context = context
        self._max_batch = min(options.max_batch, context)
        self._lock = OneCall("model")
        self._pool = ThreadPool(options.threads)
        self._searches = Searches(self._pool)
        # The model borrows this memory.
        weight_memory = open_weights(files, options.mmap)
        self._weights: WeightMemory | None = weight_memory
        self._resting = RestingWeights(self._lock, self._searches.join)
        self._resting.add(weight_memory)
        frequency, rope_scale = rope_parameters(
            config.rope, config.head_dim, context, config.max_position_embeddings
        )
        frequency = np.ascontiguousarray(frequency, np.float32)
        self._cache_identity = {
            "model": files.with_config(without_regime(config)).content_hash,  # the regime is in "rope"
            "layout": f"native {native.CACHE_LAYOUT}",
            "activations": options.activations,
            "kv_type": options.kv_stored,  # after what it may follow from
            "rope": hashlib.sha256(frequency.tobytes() + np.float32(rope_scale).tobytes()).hexdigest(),
            "attention": "dense" if sparse is None else repr(sparse),
        }
        without_rope = (ctypes.c_uint8 * config.num_hidden_layers)()
        for layer in config.layers_without_rope:
            without_rope[layer] = 1
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
            layers_without_rope=without_rope,
        )
        self._tensors = dict(files.tensors)
        self._replaced: dict[str, npt.NDArray[np.uint8]] = {}
        self._coming: dict[str, npt.NDArray[np.uint8]] = {}
        network = network_tensors(config)
        weights = (native.Weight * len(files.tensors))(
            *(
                weight_of(info, network[name], weight_memory.address(name))
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
            soft_rows=sparse is None,
            cache_files=True,
            kv_types=tuple(native.KV_TYPE),
        )
        self._drawn_from = np.empty((0, config.vocab_size), np.float32)  # logits that tokens are drawn from
        self._drawn_at = 0
        self._is_observed = False
        self._observer_error: BaseException | None = None
        self._drafts: weakref.WeakSet[NativeDraft] = weakref.WeakSet()
        self._finalizer = native.finalize(self, _destroy, self._searches, weight_memory, handle)
        weakref.finalize(self, self._searches.wait)  # at exit too, when what a search uses goes in any order

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

    def rest(self) -> None:
        """See `edge.executors.protocol.Rests`: a copy of the weights' file leaves memory."""
        self._resting.rest()

    def wait_for_weights(self) -> None:
        """Until a copy that comes back after a rest is there; a pass need not wait for it."""
        self._resting.join()

    def new_cache(self) -> NativeCache:
        """An empty cache; memory is committed as it fills."""
        with self._lock():
            self._check_open()
            return NativeCache(self.handle, self._context)

    def forward(self, steps: Sequence[SequenceStep]) -> list[StepResult]:
        """See `edge.executors.protocol.Executor.forward`: all tokens go through each matrix together."""
        check_caches(steps)
        results = [_NOTHING] * len(steps)
        passed: list[tuple[int, StepMemory]] = []
        for index, step in enumerate(steps):
            try:
                passed.append((index, StepMemory(step, self._config, self._max_batch)))
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
            failed = error_of(record)
            results[index] = memory.result(own) if failed is None else StepResult(error=failed)
        return results

    def next_token(self, cache: KVCache, options: DrawOptions) -> NativeNextToken:
        """See `edge.executors.protocol.DrawsTokens`."""
        return NativeNextToken(cache, options, self._config)

    def decode(self, steps: Sequence[NativeNextToken]) -> list[list[int] | EdgeError]:
        """See `edge.executors.protocol.DrawsTokens`."""
        count = sum([step.rows for step in steps])
        if len(steps) > 1:
            check_caches(steps)
        if count > self._max_batch:
            raise EdgeError(f"A pass takes up to {self._max_batch} tokens, got {count}: give some later.")
        with self._lock():
            self._check_open()
            searches = [search for step in steps if (search := step.search) is not None]
            if searches:
                for step in steps:
                    if step.search is not None and not step.search.is_open():
                        step.decoding.draft = None
            if count > len(self._drawn_from):
                self._drawn_from = np.empty((count, self._config.vocab_size), np.float32)
                self._drawn_at = self._drawn_from.ctypes.data
            records, decodings, drawings = records_of(steps), decodings_of(steps), [e.drawn for e in steps]
            failed = self._pass(records, self._drawn_at, [step.cache for step in steps], decodings, searches)
            # Here nothing is at hand but what this function holds.
            found: list[list[int] | EdgeError] = []
            for drawn in drawings:
                if failed and (error := error_of(records[len(found)])) is not None:
                    found.append(error)
                else:
                    found.append(drawn.tokens[: drawn.count])
        return found

    def _pass(
        self,
        records: ctypes.Array[native.Step],
        logits: int,
        caches: Sequence[KVCache],
        decodings: ctypes.Array[Decoding] | None = None,
        searches: Sequence[Search] = (),
    ) -> bool:
        """Run the steps, and draw their tokens if `decodings` say how, and begin the searches; whether any
        has failed. Raises what concerns all of them, and leaves the caches as they were then.
        """
        self._searches.join()
        self._resting.wake()
        lengths = [cache.length for cache in caches] if self._is_observed else None
        self._observer_error = None
        if decodings is None:
            status = native.library().edge_forward(self.handle, records, len(caches), logits)
        else:
            self._searches.begin([search.held for search in searches])
            pool = self._searches.handle
            status = native.library().edge_decode(self.handle, records, decodings, len(caches), logits, pool)
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
            packed[name] = packed_tensor(values, self._tensors[name])
        network = network_tensors(self._config)
        weights = [
            weight_of(self._tensors[name], network[name], int(data.ctypes.data))
            for name, data in packed.items()
        ]
        if not weights:
            return
        digest = hashlib.sha256(self._cache_identity["model"].encode())
        for name, data in sorted(packed.items()):
            digest.update(name.encode() + data.tobytes())
        with self._lock():
            self._check_open()
            self._searches.join()
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
            draft = NativeDraft(files, self, lock=self._lock, searches=self._searches)
            self._drafts.add(draft)
            self._resting.add(draft.weights)
            return draft

    def open_soft(self, weights: SoftWeights) -> NativeSoftPrompt:
        """See `edge.executors.protocol.TakesSoftRows`."""
        weights.check_target(self._config, "The soft prompt")
        with self._lock():
            self._check_open()
            return NativeSoftPrompt(weights, self.handle, lock=self._lock)

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


def _destroy(searches: Searches, weights: WeightMemory, model: ctypes.c_void_p) -> None:
    """weights: which a search reads, so they stay until here."""
    searches.join()
    native.library().edge_model_destroy(model)
