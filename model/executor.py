"""The PyTorch network as an executor: slow, exact in float32, and written apart from the native one.

Sessions, sampling, chat and perplexity run on it as they run on the native executor, so a difference between
the two is a difference of arithmetic and of nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge.bundle.reader import Bundle
from edge.config import ModelConfig
from edge.errors import ContextError, EdgeError, NativeError, TokenizerError
from edge.executors.base import Capabilities, ForwardResult, KVCache, Logits
from edge.memory import available_memory, check_memory, memory_plan
from model.decoder import Decoder
from model.kv_cache import GrowingCache
from model.loading import reference_from_bundle

MAX_TREE = 64


def open_torch(bundle: Bundle, context: int) -> TorchExecutor:
    """An executor over a bundle's weights in float32; ContextError if the memory does not suffice."""
    plan = memory_plan(bundle, context, "float32")
    weights = 4 * sum(tensor.rows * tensor.columns for tensor in bundle.tensors.values())
    check_memory(replace(plan, weights=weights), available_memory())
    return TorchExecutor(reference_from_bundle(bundle, context))


class TorchCache:
    """The cache of one sequence on a `TorchExecutor`."""

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        self.config = config
        self.rows = GrowingCache(config)
        self.capacity = capacity

    @property
    def length(self) -> int:
        """Rows in use."""
        return self.rows.length


class TorchExecutor:
    """Runs a `Decoder`, in the context that it was made for; calls are taken one at a time."""

    def __init__(self, decoder: Decoder, max_batch: int = 256) -> None:
        """max_batch: most tokens of one forward call."""
        self._decoder: Decoder | None = decoder
        self._config, self._context = decoder.config, decoder.context
        self._max_batch = min(max_batch, self._context)
        self._lock = threading.Lock()

    @property
    def config(self) -> ModelConfig:
        """The network."""
        return self._config

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self._context

    @property
    def max_batch(self) -> int:
        """Most tokens of one forward call."""
        return self._max_batch

    @property
    def capabilities(self) -> Capabilities:
        """Trees, hidden states, and caches of float32."""
        return Capabilities(trees=True, max_tree=MAX_TREE, hidden_states=True, kv_types=("float32",))

    def new_cache(self) -> TorchCache:
        """An empty cache."""
        with self._lock:
            self._opened()
            return TorchCache(self._config, self._context)

    def forward(
        self,
        cache: KVCache,
        tokens: Sequence[int] | npt.NDArray[np.int32],
        *,
        positions: npt.NDArray[np.int32] | None = None,
        tree: npt.NDArray[np.uint64] | None = None,
        want_logits: Logits = "last",
        want_hidden: bool = False,
        taps: Sequence[int] = (),
    ) -> ForwardResult:
        """See `edge.executors.base.Executor.forward`."""
        own = self._own(cache)
        ids = self._token_ids(tokens, own)
        n = len(ids)
        places = self._positions(positions, n)
        mask = None if tree is None else _tree_mask(tree, n)
        if want_logits not in ("none", "last", "all"):
            raise EdgeError(f"Unknown choice of logits '{want_logits}'; choose one of none, last, all.")
        for layer in taps:
            if not 0 <= layer < self._config.num_hidden_layers:
                raise EdgeError(f"Tapped layer {layer} does not exist.")
        with self._lock, torch.inference_mode():
            decoder = self._opened()
            before = own.length
            try:
                trunk = decoder.trunk(ids, places, mask, own.rows)
                wanted = {"none": trunk.hidden[:0], "last": trunk.hidden[-1:], "all": trunk.hidden}[
                    want_logits
                ]
                logits = decoder.logits(wanted)
                if not (trunk.hidden.isfinite().all() and logits.isfinite().all()):
                    raise NativeError("The logits are not finite: the weights are damaged.")
            except BaseException:
                own.rows.truncate(before)
                raise
        return ForwardResult(
            None if want_logits == "none" else logits.numpy(),
            trunk.hidden.numpy() if want_hidden else None,
            tuple(trunk.stream[layer].numpy() for layer in taps),
        )

    def keep(self, cache: KVCache, n: int, rows: Sequence[int]) -> None:
        """After the first n rows keep the given ones (absolute, ascending), drop the rest."""
        own = self._own(cache)
        if not 0 <= n <= own.length:
            raise EdgeError(f"The cache has {own.length} rows, so the first {n} can't be kept.")
        order = [n - 1, *(int(row) for row in rows)]
        if any(after <= before for before, after in pairwise(order)) or order[-1] >= own.length:
            raise EdgeError(f"Rows to keep must ascend from {n}, within the {own.length} of the cache.")
        with self._lock:
            own.rows.keep(n, order[1:])

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        self.keep(cache, n, ())

    def close(self) -> None:
        """Free the weights; later calls raise NativeError."""
        with self._lock:
            self._decoder = None

    def _opened(self) -> Decoder:
        if self._decoder is None:
            raise NativeError("The model is closed; load it again.")
        return self._decoder

    def _own(self, cache: KVCache) -> TorchCache:
        if not isinstance(cache, TorchCache) or cache.config != self._config:
            raise NativeError("This cache belongs to another executor.")
        return cache

    def _token_ids(self, tokens: Sequence[int] | npt.NDArray[np.int32], cache: TorchCache) -> Tensor:
        try:
            ids = np.asarray(tokens, np.int64)
        except OverflowError:
            raise TokenizerError("A token id is far outside the vocabulary.") from None
        if ids.ndim != 1 or not 0 < ids.size <= self._max_batch:
            raise EdgeError(f"A batch has 1 to {self._max_batch} tokens in a row, got shape {ids.shape}.")
        for token in ids:
            if not 0 <= token < self._config.vocab_size:
                raise TokenizerError(
                    f"Token id {token} is outside the vocabulary of {self._config.vocab_size}."
                )
        if cache.length + ids.size > self._context:
            raise ContextError(
                f"{ids.size} more tokens after {cache.length} do not fit the context of {self._context} "
                "tokens."
            )
        return torch.from_numpy(ids)

    def _positions(self, positions: npt.NDArray[np.int32] | None, n: int) -> Tensor | None:
        if positions is None:
            return None
        places = np.asarray(positions, np.int64)
        if places.shape != (n,):
            raise EdgeError(f"positions must have one entry per token ({n}), got shape {places.shape}.")
        if places.min() < 0 or places.max() >= self._context:
            raise ContextError(
                f"Positions {places.min()} to {places.max()} reach outside the context of {self._context} "
                "tokens."
            )
        return torch.from_numpy(places)


def _tree_mask(tree: npt.NDArray[np.uint64], n: int) -> Tensor:
    """bool [n, n] from one 64-bit mask per row."""
    bits = np.asarray(tree, np.uint64)
    if n > MAX_TREE:
        raise EdgeError(f"A tree has at most {MAX_TREE} tokens, got {n}.")
    if bits.shape != (n,):
        raise EdgeError(f"tree must have one entry per token ({n}), got shape {bits.shape}.")
    for row, mask in enumerate(int(mask) for mask in bits):
        if mask >> row != 1:
            raise EdgeError(f"Tree row {row} must see itself and nothing after it.")
    return torch.from_numpy((bits[:, None] >> np.arange(n, dtype=np.uint64) & np.uint64(1)).astype(bool))
