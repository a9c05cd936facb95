"""Soft prompts of random weights, and steps with soft rows, for tests of what runs them."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.checkpoints.bita import SoftWeights
from edge.config import ModelConfig
from edge.executors.protocol import KVCache, SequenceStep
from edge.executors.soft import SoftPrompt, SoftRows


def soft_weights(config: ModelConfig, count: int = 2, prefix: int = 5, seed: int = 0) -> SoftWeights:
    """Large enough that their part in attention shows."""
    rng = np.random.default_rng(seed)
    rows = (config.num_hidden_layers, prefix, config.num_key_value_heads, config.head_dim)
    return SoftWeights(
        rng.standard_normal((count, config.hidden_size)).astype(np.float32),
        rng.standard_normal(rows).astype(np.float32),
        2 * rng.standard_normal(rows).astype(np.float32),
    )


def grouped_step(
    cache: KVCache, nodes: Any, parents: Any, prompt: SoftPrompt, count: int, **wanted: Any
) -> SequenceStep:
    """A tree, whose first node is its root, with a group of `count` soft rows behind every node."""
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    n = len(paths)
    for node in range(n):
        for at in range(count):
            first = n + node * count
            paths.append([*paths[node], *range(first, first + at + 1)])
    return SequenceStep(
        cache,
        nodes,
        positions=np.array([cache.length + len(path) - 1 for path in paths], np.int32),
        tree=np.array([sum(1 << row for row in path) for path in paths], np.uint64),
        soft=SoftRows(prompt, np.tile(np.arange(count, dtype=np.int32), n)),
        **{"logits": "all", **wanted},
    )
