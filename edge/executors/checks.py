"""What a step and a compaction refuse, for executors that are written in Python.

Every function returns the argument in the form that it has been checked for, or raises EdgeError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.config.fields import listed
from edge.errors import ContextError, EdgeError, NativeError, TokenizerError, WrongTypeError

MAX_TREE = 64
"""Most tokens of a tree: the mask of each is 64 bits."""


def integers(values: Any, what: str, kind: type[np.integer] = np.int32) -> npt.NDArray[Any]:
    """`kind` [n] of a list, range or array of whole numbers; NumPy would cut and wrap what is none.

    what: their name in a message. Raises WrongTypeError for anything else (booleans too), and EdgeError for a
    number that `kind` does not hold.
    """
    if isinstance(values, np.ndarray) and values.dtype == kind and values.ndim == 1:
        return np.ascontiguousarray(values)
    if isinstance(values, (str, bytes, bytearray, Mapping, Set)):
        raise WrongTypeError(f"{what} must be a list of whole numbers, not {type(values).__name__}.")
    array: Any
    if isinstance(values, np.ndarray) or hasattr(values, "__array__"):
        array = np.asarray(values)
        if array.dtype.kind not in "iu" and array.size:
            raise WrongTypeError(f"{what} must be whole numbers, not an array of {array.dtype}.")
        if array.ndim != 1:
            raise WrongTypeError(f"{what} must stand in a row, got an array of shape {array.shape}.")
        least, most = (int(array.min()), int(array.max())) if array.size else (0, 0)
    else:
        try:
            numbers = list(values)
        except TypeError:
            raise WrongTypeError(f"{what} must be a list of whole numbers, got {values!r}.") from None
        for value in numbers:
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
                raise WrongTypeError(f"{what} must be whole numbers, got {value!r}.")
        array, least, most = numbers, min(numbers, default=0), max(numbers, default=0)
    limits = np.iinfo(kind)
    if least < limits.min or most > limits.max:
        raise EdgeError(f"{what} must lie from {limits.min} to {limits.max}, got {least} to {most}.")
    return np.ascontiguousarray(array, kind)


def whole_number(value: Any, what: str) -> int:
    """One such number."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return value  # the rest takes as long as a small kernel
    (found,) = integers([value], what, np.int64)
    return int(found)


def token_ids(tokens: Any) -> npt.NDArray[np.int32]:
    """int32 [n] as `integers`; TokenizerError for an id that is far outside every vocabulary."""
    try:
        return integers(tokens, "Token ids")
    except WrongTypeError:
        raise
    except EdgeError:
        raise TokenizerError(
            "A token id is far outside the vocabulary: it does not even fit 32 bits."
        ) from None


def check_tokens(
    tokens: Sequence[int] | npt.NDArray[Any],
    config: ModelConfig,
    *,
    length: int,
    context: int,
    max_batch: int,
) -> npt.NDArray[np.int64]:
    """int64 [n]: 1 to max_batch ids within the vocabulary that fit into `context` rows after `length`."""
    ids = token_ids(tokens).astype(np.int64)
    if not 0 < ids.size <= max_batch:
        raise EdgeError(f"A batch has 1 to {max_batch} tokens, got {ids.size}.")
    for token in ids[(ids < 0) | (ids >= config.vocab_size)]:
        raise TokenizerError(f"Token id {token} is outside the vocabulary of {config.vocab_size}.")
    if length + ids.size > context:
        raise ContextError(
            f"{ids.size} more tokens after {length} do not fit the context of {context} tokens."
        )
    return ids


def check_positions(positions: npt.NDArray[Any], n: int, context: int) -> npt.NDArray[np.int64]:
    """int64 [n], each within the context."""
    places = integers(positions, "positions", np.int64)
    if places.shape != (n,):
        raise EdgeError(f"positions must have one entry per token ({n}), got shape {places.shape}.")
    if places.min() < 0 or places.max() >= context:
        raise ContextError(
            f"Positions {places.min()} to {places.max()} reach outside the context of {context} tokens."
        )
    return places


def check_tree(tree: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """uint64 [n]: every token sees itself and nothing after it."""
    bits = integers(tree, "tree", np.uint64)
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
    for layer in integers(layers, "layers"):
        if not 0 <= layer < config.num_hidden_layers:
            raise EdgeError(f"The model has {config.num_hidden_layers} layers: there is no layer {layer}.")


def check_parts(config: ModelConfig, executor: str, parts: Sequence[str]) -> None:
    """Raise NativeError for a network with parts, in words, that an executor's kernels do not compute."""
    if parts:
        raise NativeError(
            f"The {executor} executor does not compute {listed(parts)}, which this {config.model_type} "
            "network has; run it with --executor torch."
        )


def check_kept_rows(rows: Sequence[int], n: int, length: int) -> list[int]:
    """Rows that ascend from n, within the `length` of a cache."""
    first = whole_number(n, "the number of rows to keep")
    if not 0 <= first <= length:
        raise EdgeError(f"The cache has {length} rows, so the first {n} can't be kept.")
    order = [first - 1, *integers(rows, "rows to keep", np.int64).tolist()]
    if any(after <= before for before, after in pairwise(order)) or order[-1] >= length:
        raise EdgeError(f"Rows to keep must ascend from {n}, within the {length} of the cache.")
    return order[1:]
