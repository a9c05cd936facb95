"""What a pass of several steps says of its rows: checked, put in order, and laid out for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.errors import NativeError
from edge.executors.checks import check_layers, check_logits, check_positions, check_tokens, check_tree
from edge.executors.cuda.cache import CudaCache, PagePool
from edge.executors.cuda.operators.tables import TREE
from edge.executors.protocol import Capabilities, SequenceStep, check_soft

Int32 = npt.NDArray[np.int32]
Run = tuple[int, int, int]
"""The first row, its place on its path, and how many follow one another from there."""


@dataclass(frozen=True, eq=False)
class CheckedStep:
    """A step that can run. tree: uint64 [n], None if it is causal. wanted: how many of its last rows have
    their logits wanted.
    """

    cache: CudaCache
    tokens: Int32
    positions: Int32
    tree: npt.NDArray[np.uint64] | None
    wanted: int
    held: bool
    hidden: bool
    layers: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Its tokens."""
        return len(self.tokens)


def checked(
    step: SequenceStep, pool: PagePool, config: ModelConfig, *, context: int, max_batch: int
) -> CheckedStep:
    """The step, or EdgeError for what is wrong with it."""
    cache = step.cache
    if not isinstance(cache, CudaCache) or not cache.is_of(pool):
        raise NativeError("This cache belongs to another executor.")
    check_soft(step, Capabilities(), "cuda")
    tokens = check_tokens(step.tokens, config, length=cache.length, context=context, max_batch=max_batch)
    n = len(tokens)
    positions = np.arange(cache.length, cache.length + n)
    if step.positions is not None:
        positions = check_positions(step.positions, n, context)
    tree = None if step.tree is None else check_tree(step.tree, n)
    if tree is not None and (tree == causal_bits(n)).all():
        tree = None
    check_layers(step.layers, config)
    return CheckedStep(
        cache,
        tokens.astype(np.int32),
        positions.astype(np.int32),
        tree,
        check_logits(step.logits, n),
        step.held,
        step.hidden,
        tuple(int(layer) for layer in step.layers),
    )


def causal_bits(n: int) -> npt.NDArray[np.uint64]:
    """The tree in which every token sees those before it; n <= 64."""
    ones = np.uint64(2**64 - 1)
    return np.array([ones >> np.uint64(63 - row) for row in range(n)], np.uint64)


@dataclass(frozen=True, eq=False)
class PassRows:
    """Rows of a pass as `StepTables` has them, int32 [rows]; those of trees stand first.

    first: row of each step, by its number. trees: how
    many rows are of trees. ancestors: [trees, 64]. caches: by row of the page table.
    """

    tokens: Int32
    positions: Int32
    sequences: Int32
    slots: Int32
    before: Int32
    path: Int32
    is_tree: Int32
    ancestors: Int32
    trees: int
    first: tuple[int, ...]
    caches: tuple[CudaCache, ...]

    @classmethod
    def of(cls, steps: Sequence[CheckedStep]) -> PassRows:
        """Of steps whose caches have room."""
        order = sorted(range(len(steps)), key=lambda index: steps[index].tree is None)
        first = [0] * len(steps)
        parts: list[tuple[Int32, ...]] = []
        ancestors: list[Int32] = []
        row = trees = 0
        for sequence, index in enumerate(order):
            step = steps[index]
            first[index] = row
            n, length = step.rows, step.cache.length
            places = np.arange(n, dtype=np.int32)
            depths = places
            if step.tree is not None:
                depths, found = _paths(step.tree)
                ancestors.append(found)
                trees += n
            filled = (np.full(n, value, np.int32) for value in (sequence, length, step.tree is not None))
            of_sequence, before, is_tree = filled
            parts.append(
                (
                    step.tokens,
                    step.positions,
                    of_sequence,
                    length + places,
                    before,
                    length + depths,
                    is_tree,
                )
            )
            row += n
        names = ("tokens", "positions", "sequences", "slots", "before", "path", "is_tree")
        columns = {
            name: np.concatenate(column).astype(np.int32)
            for name, column in zip(names, zip(*parts, strict=True), strict=True)
        }
        return cls(
            **columns,
            ancestors=np.concatenate(ancestors) if ancestors else np.empty((0, TREE), np.int32),
            trees=trees,
            first=tuple(first),
            caches=tuple(steps[index].cache for index in order),
        )

    @property
    def rows(self) -> int:
        """Of all steps."""
        return len(self.tokens)

    def runs(self, start: int, dense_len: int | None = None) -> tuple[list[Run], list[Run]]:
        """Causal rows from `start` on, as `edge.executors.cuda.operators.attention.tiles` takes them: those
        that are dense, and those behind `dense_len` positions (None: there are no others).
        """
        found: tuple[list[Run], list[Run]] = ([], [])
        for row in range(start, self.rows):
            kind = found[int(dense_len is not None and self.path[row] >= dense_len)]
            last = kind[-1] if kind else None
            if last is not None and self.sequences[row] == self.sequences[last[0]]:
                kind[-1] = (last[0], last[1], last[2] + 1)
            else:
                kind.append((row, int(self.path[row]), 1))
        return found


@dataclass(frozen=True, eq=False)
class WantedRows:
    """Rows that are normed at the end: first those whose logits are wanted, then others of hidden states.

    of_logits, of_hidden: places among them by step.
    """

    rows: list[int]
    logits: int
    of_logits: list[slice]
    of_hidden: list[list[int]]

    @classmethod
    def of(cls, steps: Sequence[CheckedStep], pass_rows: PassRows) -> WantedRows:
        """Of a pass."""
        rows: list[int] = []
        of_logits = []
        for first, step in zip(pass_rows.first, steps, strict=True):
            of_logits.append(slice(len(rows), len(rows) + step.wanted))
            rows += range(first + step.rows - step.wanted, first + step.rows)
        logits = len(rows)
        of_hidden: list[list[int]] = []
        for first, step, own in zip(pass_rows.first, steps, of_logits, strict=True):
            others = range(first, first + step.rows - step.wanted) if step.hidden else range(0)
            of_hidden.append([*range(len(rows), len(rows) + len(others)), *range(own.start, own.stop)])
            rows += others
        return cls(rows, logits, of_logits, of_hidden)

    @property
    def count(self) -> int:
        """All of them."""
        return len(self.rows)


def _paths(tree: npt.NDArray[np.uint64]) -> tuple[Int32, Int32]:
    """Of every token: its depth, int32 [n], and its ancestors by depth, itself last, int32 [n, 64]."""
    bits = (tree[:, None] >> np.arange(len(tree), dtype=np.uint64)) & np.uint64(1)
    found = np.zeros((len(tree), TREE), np.int32)
    depths = bits.sum(axis=1).astype(np.int32) - 1
    for row, seen in enumerate(bits):
        path = np.flatnonzero(seen)
        found[row, : len(path)] = path
    return depths, found
