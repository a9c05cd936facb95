"""Times: reading alone, products beside it, whole passes and what they are made of."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from edge.config import SparseConfig
from edge.config.tensors import EMBEDDING, HEAD
from edge.executors.cuda.driver import CudaDevice
from edge.executors.cuda.executor import CudaExecutor
from edge.executors.cuda.matrices import Matrix, variant_of
from edge.executors.cuda.operators.dense import dense
from edge.executors.cuda.operators.linear import linear
from edge.executors.cuda.operators.probe import BLOCK, probe
from edge.executors.cuda.trial import Trial
from edge.executors.protocol import SequenceStep, run_step
from edge.quant.scheme import QuantScheme

from .beside import Beside
from .devices import Kept, Launch, Watched
from .extents import Extent, Shape
from .models import bundle_of
from .report import Report

_READ = 2 << 30  # bytes that the probe reads, of a GPU; far beyond any cache
_BEYOND = 512 << 20  # bytes of matrices that are read in turn, so that no cache holds them


def measure(device: Watched, report: Report, extent: Extent, shape: Shape, folder: Path) -> None:
    """One shape."""
    real = isinstance(device.device, CudaDevice)
    report.run("reading", lambda: _reading(device, report, _READ if real else 1 << 16))
    report.run(f"{shape.name} products", lambda: _products(device, report, extent, shape, real))
    report.run(f"{shape.name} prefill products", lambda: _prefill_products(device, report, extent, shape))
    report.run(f"{shape.name} steps", lambda: _steps(device, report, extent, shape, folder))
    report.run(f"{shape.name} sparse", lambda: _sparse(device, report, extent, shape, folder))


def _reading(device: Watched, report: Report, size: int) -> None:
    size = min(size, device.free_memory // 4)
    steps = 16 if size > 1 << 20 else 1
    programs = max(1, size // (4 * BLOCK * steps))
    size = programs * steps * BLOCK * 4
    with Trial(device) as trial:
        words, out = trial.room(size), trial.room(programs * BLOCK * 4)
        read = device.time_of(lambda: probe(device, words, out, programs=programs, steps=steps), 3)
        half = size // 2
        copied = device.time_of(lambda: device.copy(words + half, words, half), 3)
        tiny: list[Launch] = [("probe", (1, 1, 1), (words, out, 1))] * (200 if size > 1 << 20 else 2)
        gap = _time_of(device, tiny, 3) / len(tiny)
        plain = device.time_of(lambda: probe(device, words, out, programs=1, steps=1), 200)
    # A program also writes one of its blocks.
    moved = size + programs * BLOCK * 4
    report.measured("bandwidth", read=moved / read, copy=2 * half / copied, bytes=size)
    report.measured("launch", in_graph=gap, plain=plain)


def _products(device: Watched, report: Report, extent: Extent, shape: Shape, real: bool) -> None:
    """`linear` alone; each launch reads another matrix than the one before."""
    scheme = QuantScheme.from_name(extent.scheme)
    for name, (rows, columns) in shape.matrices.items():
        matrix = Matrix(variant_of(scheme.packing), rows, columns)
        room = min(_BEYOND, device.free_memory // 4) if real else matrix.size
        with Trial(device) as trial:
            matrices = [matrix.at(trial.room(matrix.size)) for _ in range(-(-room // matrix.size))]
            for each in matrices:
                _fill(device, each, matrices[0])
            most = max(extent.measured)
            x = trial.sent(np.ones((most, columns), np.float16))
            out = trial.room(4 * matrix.slices * most * rows)
            for count in extent.measured:
                launches: list[Launch] = []
                for each in matrices:
                    launches += device.launches_of(partial(linear, device, each, x, out, rows=count))
                seconds = _time_of(device, launches, 2) / len(matrices)
                report.measured(
                    "product",
                    shape=shape.name,
                    matrix=name,
                    rows=count,
                    seconds=seconds,
                    bytes=matrix.size,
                    speed=matrix.size / seconds,
                )


def _fill(device: Watched, matrix: Matrix, first: Matrix) -> None:
    """Random codes and a scale of 1 / 64 everywhere; of further matrices copies."""
    if matrix is not first:
        device.copy(matrix.address, first.address, matrix.size)
        return
    codes = np.random.default_rng(0).integers(0, 256, matrix.word_bytes, np.uint8)
    device.upload(matrix.address, codes)
    device.upload(matrix.scales, np.full((matrix.size - matrix.word_bytes) // 2, 1 / 64, np.float16))


def _prefill_products(device: Watched, report: Report, extent: Extent, shape: Shape) -> None:
    """`dense` of all matrices of a layer, and the same in fp16 by torch where it can."""
    scheme, beside = QuantScheme.from_name(extent.scheme), Beside.of()
    mine = theirs = work = 0.0
    for name, (rows, columns) in shape.matrices.items():
        if name == "head":  # of wanted rows only
            continue
        matrix = Matrix(variant_of(scheme.packing), rows, columns)
        with Trial(device) as trial:
            matrix = matrix.at(trial.room(matrix.size))
            _fill(device, matrix, matrix)
            x = trial.sent(np.ones((extent.many, columns), np.float16))
            out, plain = trial.room(4 * extent.many * rows), trial.room(matrix.dense_bytes)
            product = partial(dense, device, matrix, x, out, plain, rows=extent.many)
            mine += device.time_of(product, extent.repeats)
        work += 2.0 * extent.many * rows * columns
        if beside is not None:
            theirs += beside.product(extent.many, rows, columns)
    report.measured(
        "prefill products",
        shape=shape.name,
        rows=extent.many,
        seconds=mine,
        flops=work / mine,
        torch=theirs or None,
    )


def _steps(device: Watched, report: Report, extent: Extent, shape: Shape, folder: Path) -> None:
    """Passes of few rows behind a short context, then the first pass of a prompt."""
    context = max(extent.context, extent.many)
    with _opened(device, extent, shape, folder, None, context) as (kept, executor):
        matrices = executor.plan.weights.matrices
        read = sum(each.size for name, each in matrices.items() if name != EMBEDDING or HEAD not in matrices)
        for rows in extent.measured:
            figures = _pass(kept, executor, rows, extent.short, extent.repeats)
            figures |= {"rows": rows, "context": extent.short, "bytes": read}
            report.measured("step", shape=shape.name, **figures)
        for launches in _pieces(_launched(kept, executor, 1, extent.short)):
            seconds = _time_of(kept, launches, extent.repeats)
            named = {"kernel": launches[0][0], "grid": launches[0][1], "launches": len(launches)}
            report.measured("piece", shape=shape.name, **named, seconds=seconds)
        seconds = min(_prefilled(executor, [7] * extent.many) for _ in range(min(3, extent.repeats)))
        report.measured("prefill", shape=shape.name, rows=extent.many, seconds=seconds)


def _time_of(device: Watched, launches: Sequence[Launch], repeats: int) -> float:
    """Seconds of them all, as a graph."""

    def again() -> None:
        for each in launches:
            device.launch(*each)

    graph = device.record(again)
    try:
        return device.time_of(graph.launch, repeats)
    finally:
        graph.close()


def _prefilled(executor: CudaExecutor, tokens: list[int]) -> float:
    """Seconds until the logits after a prompt are here."""
    cache, started = executor.new_cache(), time.perf_counter()
    run_step(executor, SequenceStep(cache, tokens))
    return time.perf_counter() - started


def _sparse(device: Watched, report: Report, extent: Extent, shape: Shape, folder: Path) -> None:
    """Decoding behind contexts that nobody has computed: keys of zeros are as many as others."""
    with _opened(device, extent, shape, folder, extent.sparse, max(extent.deep)) as (kept, executor):
        for context in extent.deep:
            figures = _pass(kept, executor, 1, context - 1, extent.repeats)
            report.measured("sparse step", shape=shape.name, context=context, **figures)


@contextmanager
def _opened(
    device: Watched, extent: Extent, shape: Shape, folder: Path, sparse: SparseConfig | None, context: int
) -> Iterator[tuple[Kept, CudaExecutor]]:
    bundle, kept = bundle_of(folder, shape, extent.scheme), Kept(device)
    executor = CudaExecutor(kept, bundle, "float16", context=context, sparse=sparse)
    try:
        yield kept, executor
    finally:
        executor.close()


def _launched(device: Watched, executor: CudaExecutor, rows: int, context: int) -> list[Launch]:
    """What a pass of so many rows behind a context launches; `device.last` is its graph."""
    cache = executor.new_cache()
    cache.writable(0, context + rows)
    cache.length = context
    run_step(executor, SequenceStep(cache, [5] * rows, logits="all"))
    assert device.last is not None
    return device.launches_of(device.last.work)


def _pass(device: Watched, executor: CudaExecutor, rows: int, context: int, repeats: int) -> dict[str, float]:
    """Seconds as a graph and as single launches, and with what the host does besides."""
    launches = _launched(device, executor, rows, context)
    graph = device.last
    assert graph is not None
    in_graph = device.time_of(graph.graph.launch, repeats)
    plain = device.time_of(graph.work, max(1, repeats // 4))
    cache = executor.new_cache()
    cache.writable(0, context + rows)
    started = time.perf_counter()
    for _ in range(repeats):
        cache.length = context
        run_step(executor, SequenceStep(cache, [5] * rows, logits="all"))
    whole = (time.perf_counter() - started) / repeats
    return {"graph": in_graph, "plain": plain, "host": whole, "launches": len(launches)}


def _pieces(launches: Sequence[Launch]) -> list[list[Launch]]:
    """Launches of the same kernel and grid, in their order: a layer after the other, so no cache helps."""
    found: dict[tuple[str, tuple[int, ...]], list[Launch]] = defaultdict(list)
    for each in launches:
        found[each[0], each[1]].append(each)
    return list(found.values())
