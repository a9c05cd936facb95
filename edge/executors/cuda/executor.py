"""The CUDA executor: passes of the network on a GPU, decode as graphs; nothing but the driver is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from edge.config import KVType, SparseConfig
from edge.config.rope import rope_parameters
from edge.config.tensors import beyond_llama
from edge.errors import EdgeError, NativeError
from edge.executors.checks import MAX_TREE, check_kept_rows, check_parts, whole_number
from edge.executors.cuda.cache import CudaCache, PagePool
from edge.executors.cuda.device import Device, Graph
from edge.executors.cuda.drawing import DeviceSampler, HeldLogits, HeldRow
from edge.executors.cuda.network import Network, Pass
from edge.executors.cuda.operators import attention
from edge.executors.cuda.operators.draws import Draw
from edge.executors.cuda.operators.pages import CachePools, copy_page, move
from edge.executors.cuda.operators.tables import PAGE, TREE
from edge.executors.cuda.passes import CheckedStep, PassRows, WantedRows, checked
from edge.executors.cuda.plan import DevicePlan
from edge.executors.cuda.uploads import PassTables
from edge.executors.cuda.weights import DeviceWeights
from edge.executors.cuda.workspace import DECODE_ROWS, Workspace
from edge.executors.memory import MemoryPlan
from edge.executors.options import RunOptions
from edge.executors.protocol import (
    Capabilities,
    ExecutorFacts,
    ExecutorInfo,
    FloatArray,
    KVCache,
    SequenceStep,
    StepResult,
    check_caches,
)
from edge.executors.sampling import DrawOptions, Sampled
from edge.formats.model_files import ModelFiles
from edge.system.guards import OneCall

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Rows of passes that are recorded as graphs; shorter ones are filled up with dead rows."""

PREFILL_ROWS = 2048
"""Most rows of a pass, unless the context or the memory is smaller."""


def open_cuda(
    files: ModelFiles, options: RunOptions, *, context: int, sparse: SparseConfig | None
) -> CudaExecutor:
    """See `edge.executors.registry.ExecutorSpec`; on the first GPU that the driver names."""
    from edge.executors.cuda.driver import CudaDevice

    device = CudaDevice()
    asked = options.max_batch != RunOptions().max_batch  # whose default is one for CPUs
    rows = options.max_batch if asked else PREFILL_ROWS
    try:
        return CudaExecutor(device, files, options.kv_stored, context=context, sparse=sparse, max_batch=rows)
    except BaseException:
        device.close()
        raise


@dataclass(frozen=True)
class _Shape:
    """What a recorded pass depends on."""

    rows: int
    wanted: int


class CudaExecutor(ExecutorFacts):
    """Runs a bundle on a device, which it closes with itself; calls are taken one at a time."""

    def __init__(
        self,
        device: Device,
        files: ModelFiles,
        kv_type: KVType,
        *,
        context: int,
        sparse: SparseConfig | None,
        max_batch: int = PREFILL_ROWS,
    ) -> None:
        """max_batch: most rows of a pass, less where memory is short. Raises ContextError, with numbers, for
        a model that does not fit.
        """
        config = files.config
        check_parts(config, "cuda", beyond_llama(config))
        self._config, self._context = config, context
        self._lock = OneCall("model")
        self._device: Device | None = device
        plan = DevicePlan.of(device, files, kv_type, sparse, context=context, rows=min(max_batch, context))
        self.plan = plan
        self._max_batch = plan.rows
        frequency, rope_scale = rope_parameters(
            config.rope, config.head_dim, context, config.max_position_embeddings
        )
        weights = DeviceWeights.load(device, plan.weights, files, np.asarray(frequency, np.float32))
        self._pool = PagePool(plan.pages)
        self._pools = CachePools.allocate(device, plan.shape, plan.pages)
        self._space = Workspace.allocate(device, plan.sizes, sparse)
        self._few = PassTables(device, DECODE_ROWS, context)
        self._many = PassTables(device, plan.rows, context)
        self._moves = device.allocate(4 * 4 * TREE)
        self._network = Network(
            device, config, weights, self._pools, self._space, rope_scale=rope_scale, sparse=sparse
        )
        self._sampler = DeviceSampler(device, config.vocab_size, context)
        self._passes = 0
        self._graphs: dict[_Shape, Graph] = {}
        self._sparse = sparse
        self._info = ExecutorInfo(
            name="cuda",
            tier=f"sm_{device.facts.architecture}",
            threads=1,
            activations="float16",
            kv_type=kv_type,
            sparse=sparse,
            workspace_bytes=plan.workspace,
        )

    @property
    def capabilities(self) -> Capabilities:
        """Dense and sparse attention, trees, and rows that do not depend on each other."""
        return Capabilities(
            batch_invariant=True,
            trees=True,
            max_tree=MAX_TREE,
            hidden_states=True,
            sparse_attention=True,
            kv_types=("float16", "int8"),
        )

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches; what several share counts once."""
        return self._pool.used * self.plan.shape.page_bytes

    @property
    def memory_plan(self) -> MemoryPlan:
        """What the model takes of the device with one conversation that fills the context."""
        return self.plan.conversation

    @property
    def cache_limit(self) -> int:
        """Bytes that caches may keep of earlier sequences, so that one of the whole context has room."""
        own = -(-self._context // PAGE)
        return (self._pool.pages - own) * self.plan.shape.page_bytes

    def new_cache(self) -> CudaCache:
        """An empty cache; it takes pages as it fills."""
        with self._lock():
            self._opened()
            return CudaCache(self._pool, self._context)

    def forward(self, steps: Sequence[SequenceStep]) -> list[StepResult]:
        """See `edge.executors.protocol.Executor.forward`: all tokens go through each matrix together."""
        check_caches(steps)
        results = [StepResult()] * len(steps)
        taken: list[tuple[int, CheckedStep]] = []
        with self._lock():
            device = self._opened()
            for index, step in enumerate(steps):
                try:
                    found = checked(
                        step, self._pool, self._config, context=self._context, max_batch=self._max_batch
                    )
                    taken.append((index, found))
                except EdgeError as error:
                    results[index] = StepResult(error=error)
            tokens = sum(step.rows for _, step in taken)
            if tokens > self._max_batch:
                raise EdgeError(
                    f"A pass takes up to {self._max_batch} tokens, got {tokens}: give some later."
                )
            taken = [(index, step) for index, step in taken if self._has_room(device, index, step, results)]
            if taken:
                done = self._run(device, [step for _, step in taken])
                for (index, run), result in zip(taken, done, strict=True):
                    results[index] = result
                    if result.error is None:
                        run.cache.length += run.rows
        return results

    def sample(
        self,
        logits: FloatArray | HeldRow,
        options: DrawOptions,
        history: Sequence[int] | npt.NDArray[np.int32] = (),
        *,
        index: int = 0,
        allowed: npt.NDArray[np.uint32] | None = None,
    ) -> Sampled:
        """See `edge.executors.protocol.Executor.sample`; logits that were held are drawn from on the device,
        where its kernels know the settings.
        """
        if isinstance(logits, HeldRow):
            draw = Draw(options, history, index, allowed)
            with self._lock():
                device = self._opened()
                if logits.passed != self._passes:
                    raise NativeError("These logits are of an earlier pass, and were held for that one only.")
                address = self._space.logits + 4 * logits.row * self._config.vocab_size
                if self._sampler.takes(draw):
                    return self._sampler.draw(address, draw)
                logits = np.empty(self._config.vocab_size, np.float32)
                device.download(address, logits)
        return super().sample(logits, options, history, index=index, allowed=allowed)

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""
        own = self._own(cache)
        kept = check_kept_rows(rows, n, own.length)
        with self._lock():
            device = self._opened()
            first = whole_number(n, "the number of rows to keep")
            end = first + len(kept)
            while kept and kept[0] == first:
                kept, first = kept[1:], first + 1
            for start in range(0, len(kept), TREE):
                self._move(device, own, first + start, kept[start : start + TREE])
            own.cut(end)
            if self._sparse is not None:
                self._complete(own, n, end)

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        self.keep(cache, n, ())

    def fork(self, cache: KVCache, n: int) -> CudaCache:
        """A cache with the first n rows of another; the two share their pages, see `SharesRows`."""
        own, rows = self._own(cache), whole_number(n, "the number of rows to share")
        if not 0 <= rows <= own.length:
            raise EdgeError(f"The cache has {own.length} rows, so {rows} can't be shared.")
        copy = self.new_cache()
        with self._lock():
            own.share(rows, copy)
        return copy

    def close(self) -> None:
        """Free everything on the device; later calls raise NativeError. Does nothing in a forked process."""
        if self._lock.is_inherited:
            return
        with self._lock():
            if self._device is not None:
                for graph in self._graphs.values():
                    graph.close()
                self._device.close()
                self._device = None

    def _has_room(self, device: Device, index: int, step: CheckedStep, results: list[StepResult]) -> bool:
        """Whether the cache has pages of its own for the step; if not, the step has failed."""
        cache = step.cache
        try:
            copies = cache.writable(cache.length, cache.length + step.rows)
        except EdgeError as error:
            results[index] = StepResult(error=error)
            return False
        for source, target in copies:
            copy_page(device, self._pools, source, target)
        return True

    def _run(self, device: Device, steps: Sequence[CheckedStep]) -> list[StepResult]:
        rows = PassRows.of(steps)
        wanted = WantedRows.of(steps, rows)
        taps = tuple(sorted({layer for step in steps for layer in step.layers}))
        recorded = rows.rows <= DECODE_ROWS and not taps
        work = self._recorded(rows, wanted) if recorded else self._listed(device, rows, wanted, taps)
        self._launch(device, work, recorded)
        self._passes += 1
        held = wanted.logits <= DECODE_ROWS and all(step.held or not step.wanted for step in steps)
        logits = np.empty((0, 0), np.float32) if held else self._logits(device, wanted.logits)
        hidden = np.empty((wanted.count, self._config.hidden_size), np.float32)
        if any(step.hidden for step in steps):
            device.download(self._space.hidden, hidden)
        streams = np.empty((len(taps), rows.rows, self._config.hidden_size), np.float32)
        if taps:
            device.download(self._space.taps, streams)
        results = []
        for index, step in enumerate(steps):
            own = slice(rows.first[index], rows.first[index] + step.rows)
            place = wanted.of_logits[index]
            found = logits[place]
            states = hidden[wanted.of_hidden[index]] if step.hidden else None
            if not (np.isfinite(found).all() and (states is None or np.isfinite(states).all())):
                error = NativeError("The logits are not finite: the weights are damaged.")
                results.append(StepResult(error=error))
                continue
            layers = tuple(streams[taps.index(layer), own].copy() for layer in step.layers)
            if held:
                found = cast(FloatArray, HeldLogits(self._passes, place.start, step.wanted))
            results.append(StepResult(found if step.wanted else None, states, layers))
        return results

    def _recorded(self, rows: PassRows, wanted: WantedRows) -> Pass:
        """A pass of few rows: filled up to a bucket, every row taken by itself."""
        padded = next(bucket for bucket in BUCKETS if bucket >= rows.rows)
        count = next(bucket for bucket in (0, *BUCKETS) if bucket >= wanted.count)
        self._few.fill(rows, padded, wanted.rows)
        return Pass(
            self._few.tables(padded),
            self._few.tokens,
            tile_table=self._few.tiles,
            wanted_table=self._few.wanted,
            trees=padded,
            wanted=count,
            logits=count,
        )

    def _listed(self, device: Device, rows: PassRows, wanted: WantedRows, taps: tuple[int, ...]) -> Pass:
        """A pass of many rows, or one whose layers are looked at."""
        config = self._config
        width = attention.tile_rows(config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        dense, sparse = rows.runs(rows.trees, None if self._sparse is None else self._sparse.dense_len)
        tiles, alone = attention.tiles(dense, width), attention.tiles(sparse, 1)
        if taps:
            self._space.tapped(4 * len(taps) * rows.rows * config.hidden_size)
        self._many.fill(rows, rows.rows, wanted.rows, tiles, alone)
        return Pass(
            self._many.tables(rows.rows),
            self._many.tokens,
            tile_table=self._many.tiles,
            wanted_table=self._many.wanted,
            trees=rows.trees,
            tiles=len(tiles),
            sparse_tiles=len(alone),
            wanted=wanted.count,
            logits=wanted.logits,
            taps=taps,
        )

    def _launch(self, device: Device, work: Pass, recorded: bool) -> None:
        """A shape's first pass is made launch by launch, which loads its kernels, and recorded after that."""
        shape = _Shape(work.tables.rows, work.wanted)
        if recorded and shape in self._graphs:
            self._graphs[shape].launch()
            return
        self._network.run(work)
        if recorded:
            self._graphs[shape] = device.record(lambda: self._network.run(work))

    def _logits(self, device: Device, rows: int) -> FloatArray:
        """Of all wanted rows; the first DECODE_ROWS are computed already."""
        found = np.empty((rows, self._config.vocab_size), np.float32)
        for start in range(0, rows, DECODE_ROWS):
            count = min(DECODE_ROWS, rows - start)
            if start:
                self._network.head(start, count)
            device.download(self._space.logits, found[start : start + count])
        return found

    def _move(self, device: Device, cache: CudaCache, first: int, kept: Sequence[int]) -> None:
        """Rows `kept` of a cache become those from `first` on."""
        for source, target in cache.writable(first, first + len(kept)):
            copy_page(device, self._pools, source, target)
        self._few.fill_kept(cache, first, 0)
        numbers = np.zeros((4, TREE), np.int32)
        numbers[:3, 0] = 0, first, len(kept)
        numbers[3, : len(kept)] = kept
        device.upload(self._moves, numbers)
        sequences, before, counts, places = (self._moves + 4 * TREE * index for index in range(4))
        tables = self._few.tables(1)
        move(
            device,
            self._pools,
            tables.page_table,
            sequences,
            before,
            places,
            counts,
            moves=1,
            max_pages=tables.max_pages,
        )

    def _complete(self, cache: CudaCache, first: int, end: int) -> None:
        """Key summaries of rows that have come from a tree."""
        for start in range(first, end, DECODE_ROWS):
            count = min(DECODE_ROWS, end - start)
            self._few.fill_kept(cache, start, count)
            self._network.complete(self._few.tables(count))

    def _opened(self) -> Device:
        if self._device is None:
            raise NativeError("The model is closed; load it again.")
        return self._device

    def _own(self, cache: KVCache) -> CudaCache:
        if not isinstance(cache, CudaCache) or not cache.is_of(self._pool):
            raise NativeError("This cache belongs to another executor.")
        return cache
