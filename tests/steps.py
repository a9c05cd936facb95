"""Steps as tests run them, one sequence at a time, and the token trees that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.executors.protocol import (
    Executor,
    KVCache,
    SequenceStep,
    StepResult,
    StoresCaches,
    run_step,
)

TREE = (-1, 0, 0, 1, 1, 3, 2, 6)
"""A small tree: the parent of each node, -1 for the root."""


def forward(executor: Executor, cache: KVCache, tokens: Any, **wanted: Any) -> StepResult:
    """A pass of one step; `wanted`: the other fields of `SequenceStep`."""
    return run_step(executor, SequenceStep(cache, tokens, **wanted))


def memory_of(executor: StoresCaches, cache: KVCache) -> npt.NDArray[np.uint8]:
    """A copy of all pages of a cache, as a file holds them."""
    return np.concatenate([*executor.cache_pages(cache), np.empty(0, np.uint8)])


def paths(parents: Sequence[int]) -> list[list[int]]:
    """For every node of a tree, the nodes from the root to it."""
    found: list[list[int]] = []
    for node, parent in enumerate(parents):
        found.append([*(found[parent] if parent >= 0 else []), node])
    return found


def tree_masks(parents: Sequence[int]) -> npt.NDArray[np.uint64]:
    """`SequenceStep.tree` of a tree."""
    return np.array([sum(1 << node for node in path) for path in paths(parents)], np.uint64)
