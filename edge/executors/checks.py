"""What a step and a compaction refuse, for executors that are written in Python.

Every function returns the argument in the form that it has been checked for, or raises EdgeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.errors import ContextError, EdgeError, TokenizerError

MAX_TREE = 64
"""Most tokens of a tree: the mask of each is 64 bits."""


def check_tokens(
    tokens: Sequence[int] | npt.NDArray[Any],
    config: ModelConfig,
    *,
    length: int,
    context: int,
    max_batch: int,
) -> npt.NDArray[np.int64]:
    """int64 [n]: 1 to max_batch ids within the vocabulary that fit into `context` rows after `length`."""
    try:
        ids = np.asarray(tokens, np.int64)
    except OverflowError:
        raise TokenizerError("A token id is far outside the vocabulary.") from None
    if ids.ndim != 1 or not 0 < ids.size <= max_batch:
        raise EdgeError(f"A batch has 1 to {max_batch} tokens in a row, got shape {ids.shape}.")
    for token in ids[(ids < 0) | (ids >= config.vocab_size)]:
        raise TokenizerError(f"Token id {token} is outside the vocabulary of {config.vocab_size}.")
    if length + ids.size > context:
        raise ContextError(
            f"{ids.size} more tokens after {length} do not fit the context of {context} tokens."
        )
    return ids


def check_positions(positions: npt.NDArray[Any], n: int, context: int) -> npt.NDArray[np.int64]:
    """int64 [n], each within the context."""
    places = np.asarray(positions, np.int64)
    if places.shape != (n,):
        raise EdgeError(f"positions must have one entry per token ({n}), got shape {places.shape}.")
    if places.min() < 0 or places.max() >= context:
        raise ContextError(
            f"Positions {places.min()} to {places.max()} reach outside the context of {context} tokens."
        )
    return places


def check_tree(tree: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """uint64 [n]: every token sees itself and nothing after it."""
    bits = np.asarray(tree, np.uint64)
    if n > MAX_TREE:
        raise EdgeError(f"A tree has at most {MAX_TREE} tokens, got {n}.")
    if bits.shape != (n,):
        raise EdgeError(f"tree must have one entry per token ({n}), got shape {bits.shape}.")
    for token, mask in enumerate(int(mask) for mask in bits):
        if mask >> token != 1:
            raise EdgeError(f"Token {token} of the tree must see itself and nothing after it.")
    return bits


def check_logits(want: str, n: int) -> int:
    """How many of the last tokens have their logits wanted."""
    counts = {"none": 0, "last": 1, "all": n}
    if want not in counts:
        raise EdgeError(f"Unknown choice of logits '{want}'; choose one of {', '.join(counts)}.")
    return counts[want]


def check_layers(layers: Sequence[int], config: ModelConfig) -> None:
    """Layers that exist."""
    for layer in layers:
        if not 0 <= layer < config.num_hidden_layers:
            raise EdgeError(f"The model has {config.num_hidden_layers} layers: there is no layer {layer}.")


def check_kept_rows(rows: Sequence[int], n: int, length: int) -> list[int]:
    """Rows that ascend from n, within the `length` of a cache."""
    if not 0 <= n <= length:
        raise EdgeError(f"The cache has {length} rows, so the first {n} can't be kept.")
    order = [n - 1, *(int(row) for row in rows)]
    if any(after <= before for before, after in pairwise(order)) or order[-1] >= length:
        raise EdgeError(f"Rows to keep must ascend from {n}, within the {length} of the cache.")
    return order[1:]
