"""The steps of a pass as libedge takes them."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.errors import EdgeError, NativeError
from edge.executors.checks import integers, token_ids
from edge.executors.native import library as native
from edge.executors.native.cache import handle_of
from edge.executors.native.soft import soft_handle
from edge.executors.protocol import SequenceStep, StepResult


class StepMemory:
    """What libedge reads and writes of one step, checked as far as it can't be there."""

    def __init__(self, step: SequenceStep, config: ModelConfig, max_batch: int) -> None:
        self.cache = step.cache
        self._tokens = token_ids(step.tokens)
        self._own = tokens = self._tokens.size
        self._soft = step.soft
        if step.soft is not None:
            numbers = integers(step.soft.numbers, "numbers of embeddings")
            self._tokens = np.concatenate([self._tokens, numbers])
        self.n = self._tokens.size
        if not 0 < self.n <= max_batch:
            raise NativeError(f"A batch has 1 to {max_batch} tokens, got {self.n}.")
        self._positions = _per_token(step.positions, np.int32, self.n, "positions")
        self._tree = _per_token(step.tree, np.uint64, self.n, "tree")
        counts = {"none": 0, "last": 1, "all": tokens}
        self._logits = _choice(counts, step.logits, "choice of logits")
        self.logits_count = self._logits + self.n - tokens
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
        if self._soft is not None:
            record.soft = soft_handle(self._soft.prompt)
            record.soft_count = self.n - self._own

    def result(self, logits: npt.NDArray[np.float32]) -> StepResult:
        """What the step asked for, after the pass."""
        layers = () if self._layers is None else tuple(self._layers)
        if self._soft is None:
            return StepResult(logits if self.logits_count else None, self._hidden, layers)
        return StepResult(
            logits[: self._logits] if self._logits else None,
            None if self._hidden is None else self._hidden[: self._own],
            tuple(each[: self._own] for each in layers),
            logits[self._logits :],
        )


def error_of(record: native.Step) -> EdgeError | None:
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
