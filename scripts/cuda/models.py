"""Whole models with random weights: the CUDA executor beside the native one, and beside itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints.synthetic import RandomCheckpoint
from edge.config import KVType, SparseConfig
from edge.executors.cuda.executor import PREFILL_ROWS, CudaExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import Executor, KVCache, SequenceStep, StepResult, run_step
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.quant.scheme import QuantScheme

from .devices import Kept, Watched
from .extents import Extent, Shape
from .report import Report

LIMITS = {"float16": 0.05, "int8": 0.3}
"""Of logits, in units of their standard deviation, by type of the cache: inputs of matrices, keys and values
are rounded to float16 in every layer, where the reference has float32 activations."""
_FEW_LAYERS = 2  # of the model whose longest context is compared
_LAST = 15.0  # seconds before the end, after which no pass of the longest prompt is begun

Floats = npt.NDArray[np.float32]


def bundle_of(folder: Path, shape: Shape, scheme: str, layers: int | None = None) -> Bundle:
    """Random weights of a shape, made once in `folder`. layers: fewer than it has."""
    config = shape.config if layers is None else replace(shape.config, num_hidden_layers=layers)
    path = folder / f"{shape.name}-{config.num_hidden_layers}-{scheme}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        convert(RandomCheckpoint(config, QuantScheme.from_name(scheme)), path)
    return Bundle.open(path)


def prepare(folder: Path, extent: Extent) -> None:
    """Make the weights of all parts, the small ones first."""
    first = extent.shapes[0]
    bundle_of(folder, first, extent.scheme)
    bundle_of(folder, first, extent.scheme, _FEW_LAYERS)
    for shape in extent.shapes[1:]:
        bundle_of(folder, shape, extent.scheme)


def check_model(device: Watched, report: Report, extent: Extent, shape: Shape, folder: Path) -> None:
    """One model: dense, sparse, with an int8 cache; then the longest context with few layers."""
    bundle = bundle_of(folder, shape, extent.scheme)
    for kind in extent.kinds:
        sparse = extent.sparse_model if kind == "sparse" else None
        pair = Pair(device, bundle, sparse, "int8" if kind == "int8" else "float16", extent.context)
        report.run(f"{shape.name} {kind}", partial(_check_kind, pair, report, extent, shape, kind))
    if shape is extent.shapes[0]:
        report.run("longest context", partial(check_longest, device, report, extent, folder))


def _check_kind(pair: Pair, report: Report, extent: Extent, shape: Shape, kind: str) -> None:
    title = f"{shape.name} {kind}"
    with pair.opened():
        checks = Checks(pair, report, title, extent, shape.prompt)
        report.run(f"{title}, prompt and decoding", checks.prompt_and_decoding)
        if kind != "int8":
            report.run(f"{title}, tree", checks.tree)
            report.run(f"{title}, cut", checks.cut)
            report.run(f"{title}, batch", checks.batch)
            report.run(f"{title}, graphs", checks.graphs)
        report.run(f"{title}, memory", checks.memory)


def check_longest(device: Watched, report: Report, extent: Extent, folder: Path) -> None:
    """The last token of every pass over a long prompt that repeats itself; where the native executor
    takes too long, of the first passes.
    """
    bundle = bundle_of(folder, extent.shapes[0], extent.scheme, _FEW_LAYERS)
    tokens = np.tile(_tokens(bundle, extent.long // 7 + 1, 5), 7)[: extent.long]
    context = max(extent.long, extent.context)
    pair = Pair(device, bundle, extent.sparse, "float16", context)
    rows: list[tuple[Floats, Floats]] = []
    with pair.opened():
        mine, native = pair.mine.new_cache(), pair.native.new_cache()
        for start in range(0, extent.long, extent.many):
            if report.left < _LAST:
                break
            part = tokens[start : start + extent.many]
            found = _of(run_step(pair.mine, SequenceStep(mine, part)))
            rows.append((found, _of(run_step(pair.native, SequenceStep(native, part)))))
        length = mine.length
    found, wanted = (np.concatenate(each) for each in zip(*rows, strict=True))
    compare(report, f"{length} tokens, sparse", found, wanted, LIMITS["float16"], share=0.9)


class Pair:
    """A model on the device and natively, once `opened`. context: most tokens of a sequence. opening: the
    allocations until it was open.
    """

    def __init__(
        self, device: Watched, bundle: Bundle, sparse: SparseConfig | None, kv_type: KVType, context: int
    ) -> None:
        self.device, self.kv_type, self.sparse, self._context = device, kv_type, sparse, context
        self.files = bundle if sparse is None else bundle.with_config(replace(bundle.config, sparse=sparse))
        self.mine: CudaExecutor
        self.watched: Watched
        self.opening = 0
        self.native: Executor

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Both, for as long as this lasts; the device stays open."""
        options = RunOptions(
            activations="float32",
            kv_type=self.kv_type,
            context=self._context,
            threads=len(os.sched_getaffinity(0)),
            attention="dense" if self.sparse is None else "sparse",
            max_batch=PREFILL_ROWS,
        )
        self.watched = Kept(self.device)
        self.mine = CudaExecutor(
            self.watched, self.files, self.kv_type, context=self._context, sparse=self.sparse
        )
        self.opening = self.watched.allocations
        self.native = open_executor(self.files, options)
        try:
            yield
        finally:
            self.native.close()
            self.mine.close()

    def both(self) -> Iterator[tuple[Executor, KVCache]]:
        """Each with an empty cache."""
        for executor in (self.mine, self.native):
            yield executor, executor.new_cache()

    def tokens(self, count: int, seed: int) -> list[int]:
        """Random ones."""
        return list(_tokens(self.files, count, seed))


class Checks:
    """Of one pair. prompt: tokens of the prompt that all begin with."""

    def __init__(self, pair: Pair, report: Report, title: str, extent: Extent, prompt: int) -> None:
        self._pair, self._report, self._title, self._extent = pair, report, title, extent
        self._prompt = prompt
        self._share = 1.0 if pair.sparse is None else 0.97  # a tie of scores may be decided otherwise
        self._mine, self._native = pair.mine.new_cache(), pair.native.new_cache()

    def prompt_and_decoding(self) -> None:
        """Logits of all tokens of a prompt, and of tokens one by one, the native executor's choices."""
        step, rows = self._pair.tokens(self._prompt, 1), []
        for _ in range(1 + self._extent.decoded):
            found = _logits(self._pair.mine, self._mine, step)
            wanted = _logits(self._pair.native, self._native, step)
            rows.append((found, wanted))
            step = [int(wanted[-1].argmax())]
        self._compare("prompt", *rows[0])
        decoded = [np.concatenate(each) for each in zip(*rows[1:], strict=True)]
        self._compare("decoding", decoded[0], decoded[1])

    def tree(self) -> None:
        """A tree's logits beside the native ones, and its longest path beside plain decoding."""
        nodes, mine, start = self._extent.tree, self._pair.mine, self._prompt
        parents = [-1, *(max(0, node - 1 - node % 3) for node in range(1, nodes))]
        paths: list[list[int]] = []
        for parent in parents:
            paths.append([*(paths[parent] if parent >= 0 else []), len(paths)])
        tokens = self._pair.tokens(nodes, 2)
        fields: dict[str, Any] = {
            "tree": np.array([sum(1 << node for node in path) for path in paths], np.uint64),
            "positions": np.array([start + len(path) - 1 for path in paths]),
        }
        self._pair.native.keep(self._native, start, ())
        cache, plain = mine.fork(self._mine, start), mine.fork(self._mine, start)
        found = _logits(mine, cache, tokens, **fields)
        self._compare(f"tree of {nodes}", found, _logits(self._pair.native, self._native, tokens, **fields))
        longest = max(paths, key=len)
        alone = _logits(mine, plain, [tokens[node] for node in longest])
        self._same("a path of the tree", found[longest], alone)
        mine.keep(cache, start, [start + node for node in longest])
        more = self._pair.tokens(3, 3)
        self._same("after the tree", _logits(mine, cache, more), _logits(mine, plain, more))

    def cut(self) -> None:
        """A prompt in one piece, which dequantizes whole matrices if it is long, and in many."""
        mine, prompt = self._pair.mine, self._pair.tokens(self._extent.cut, 4)
        whole = _logits(mine, mine.new_cache(), prompt)
        sizes = (3, 1, 2, 64, 5, 70, 33)
        cache, start = mine.new_cache(), 0
        parts: list[Floats] = []
        while start < len(prompt):
            size = sizes[len(parts) % len(sizes)]
            parts.append(_logits(mine, cache, prompt[start : start + size]))
            start += size
        self._same(f"a prompt in {len(parts)} pieces", np.concatenate(parts), whole)

    def batch(self) -> None:
        """Steps of several sequences together, and alone."""
        mine, tokens = self._pair.mine, self._pair.tokens(3, 5)
        ends = {2: tokens[:1], self._prompt: tokens}
        alone = [_logits(mine, mine.fork(self._mine, end), step) for end, step in ends.items()]
        steps = [SequenceStep(mine.fork(self._mine, end), step, logits="all") for end, step in ends.items()]
        together = [_of(result) for result in mine.forward(steps)]
        self._same("a batch", np.concatenate(together), np.concatenate(alone))

    def graphs(self) -> None:
        """Recorded passes, and their launches one by one."""
        mine, device, found = self._pair.mine, self._pair.watched, []
        for plain in (True, False):  # the first time, a pass is no graph yet
            device.plain = plain
            cache = mine.fork(self._mine, self._prompt)
            steps = [self._pair.tokens(count, 6) for count in self._extent.measured]
            found.append(np.concatenate([_logits(mine, cache, step) for step in steps]))
        device.plain = False
        self._same("graphs as single launches", found[1], found[0])

    def memory(self) -> None:
        """Nothing was allocated since the executor was opened."""
        allocated = self._pair.watched.allocations - self._pair.opening
        self._report.check(f"{self._title}, memory", allocated == 0, allocations=allocated)
        self._report.measured("memory", title=self._title, plan=str(self._pair.mine.plan))

    def _compare(self, name: str, found: Floats, wanted: Floats) -> None:
        limit = LIMITS[self._pair.kv_type]
        compare(self._report, f"{self._title}, {name}", found, wanted, limit, self._share)

    def _same(self, name: str, found: Floats, wanted: Floats) -> None:
        self._report.same(f"{self._title}, {name}", found, wanted)


def compare(
    report: Report, name: str, found: Floats, wanted: Floats, limit: float, share: float = 1.0
) -> None:
    """Logits [rows, vocabulary]. share: of rows, how many must be within the limit; and where the best tokens
    differ, the two that are meant must be as close as that.
    """
    spread = float(wanted.std())
    apart = np.abs(found - wanted).max(axis=1) / spread
    rows = np.arange(len(wanted))
    gaps = (wanted.max(axis=1) - wanted[rows, found.argmax(axis=1)]) / spread
    good = np.mean(apart <= limit) >= share and np.mean(gaps <= 2 * limit) >= share
    report.check(
        name,
        good and np.isfinite(found).all(),
        apart=float(apart.max()),
        median=float(np.median(apart)),
        limit=limit,
        same_token=float(np.mean(gaps == 0)),
        rows=len(rows),
    )


def _logits(executor: Executor, cache: KVCache, tokens: Sequence[int], **fields: Any) -> Floats:
    return _of(run_step(executor, SequenceStep(cache, list(tokens), logits="all", **fields)))


def _of(result: StepResult) -> Floats:
    assert result.logits is not None
    return result.logits


def _tokens(bundle: Bundle, count: int, seed: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(3, bundle.config.vocab_size, count).astype(np.int32)
