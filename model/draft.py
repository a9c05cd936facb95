"""The PyTorch draft as executors offer it: slow, and written apart from the native one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge.config.draft import DraftConfig
from edge.errors import ContextError, NativeError, TokenizerError
from edge.executors.checks import MAX_TREE
from edge.executors.drafts import DraftPlan, DraftRows, Tried
from edge.executors.protocol import KVCache
from edge.formats.draft.files import DraftFiles
from edge.model.network.decoder import Decoder
from edge.model.network.draft import Draft
from edge.model.network.kv_cache import GrowingCache
from edge.quant.packing import dequantize


def draft_from_files(files: DraftFiles, decoder: Decoder) -> Draft:
    """The network over exactly the weights that the native executor uses."""
    files.config.check_target(decoder.config, f"'{files.path}'")
    tensors = {}
    for name, tensor in files.tensors.items():
        weights = dequantize(files.data(name), tensor.scheme, tensor.rows, tensor.columns)
        tensors[name] = torch.from_numpy(weights).reshape(tensor.shape)
    return Draft.from_tensors(files.config, decoder, tensors)


class TorchDraftCache:
    """The cache of one sequence on a `TorchDraft`."""

    def __init__(self, draft: Draft, capacity: int) -> None:
        self.draft = draft
        self.rows = GrowingCache(draft.shape)
        self.capacity = capacity

    @property
    def length(self) -> int:
        """Rows in use."""
        return self.rows.length


class TorchDraft:
    """A `DraftNetwork` over a `Draft`."""

    def __init__(
        self, files: DraftFiles, decoder: Decoder, lock: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """lock: entered for every call."""
        self._draft: Draft | None = draft_from_files(files, decoder)
        self._decoder, self._lock = decoder, lock
        self._config = files.config
        ids = files.token_ids
        self._ids = np.arange(self._config.vocab_size, dtype=np.int32) if ids is None else ids

    @property
    def config(self) -> DraftConfig:
        """The network."""
        return self._config

    @property
    def cache_bytes(self) -> int:
        """0: PyTorch does not tell."""
        return 0

    def new_cache(self) -> TorchDraftCache:
        """An empty cache."""
        with self._lock():
            return TorchDraftCache(self._opened(), self._decoder.context)

    def append(self, cache: KVCache, rows: DraftRows) -> None:
        """See `DraftNetwork.append`."""
        with self._lock(), torch.inference_mode():
            self._append(self._own(cache), rows)

    def run(self, cache: KVCache, rows: DraftRows, plan: DraftPlan) -> Tried:
        """See `DraftNetwork.run`."""
        with self._lock(), torch.inference_mode():
            started = perf_counter()
            own = self._own(cache)
            before = own.length
            states = self._append(own, rows)
            kept = own.length
            try:
                search = _Search(self._opened(), plan, self._ids, own.rows, rows.position + len(rows.tokens))
                search.add([-1], states[-1:])
                seconds = [perf_counter() - started]
                while len(seconds) < plan.steps and search.choose_leaves(len(seconds)):
                    started = perf_counter()
                    search.step(kept, len(seconds))
                    seconds.append(perf_counter() - started)
            except BaseException:
                own.rows.truncate(before)
                raise
            own.rows.truncate(kept)
        return search.tried(tuple(seconds))

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        own = self._own(cache)
        if not 0 <= n <= own.length:
            raise NativeError(f"Cannot truncate a cache of {own.length} rows to {n}.")
        with self._lock():
            own.rows.truncate(n)

    def close(self) -> None:
        """Free the weights; later calls raise NativeError."""
        self._draft = None

    def _append(self, own: TorchDraftCache, rows: DraftRows) -> Tensor:
        """The states of the rows, [n, hidden]."""
        rows = rows.checked(self._config)
        n, context = len(rows.tokens), self._decoder.context
        if not own.length <= rows.position <= context - n:
            raise ContextError(
                f"{n} rows after {own.length} from position {rows.position} on do not fit the context of "
                f"{context} tokens."
            )
        for place, token in enumerate(rows.tokens.tolist()):
            if not 0 <= token < self._config.vocab_size:
                raise TokenizerError(
                    f"Token id {token} at place {place} is outside the vocabulary of "
                    f"{self._config.vocab_size}."
                )
        if not np.isfinite(rows.hidden).all():
            raise NativeError("A hidden state for the draft is not finite.")
        positions = torch.arange(rows.position, rows.position + n)
        draft = self._opened()
        features = draft.features(torch.from_numpy(rows.hidden))
        states: Tensor = draft(torch.from_numpy(rows.tokens), features, positions, cache=own.rows)
        return states

    def _opened(self) -> Draft:
        if self._draft is None:
            raise NativeError("The draft or its model is closed; load them again.")
        return self._draft

    def _own(self, cache: KVCache) -> TorchDraftCache:
        if not isinstance(cache, TorchDraftCache) or cache.draft is not self._opened():
            raise NativeError("The cache belongs to another draft or model.")
        return cache


class _Search:
    """The tokens that were tried so far; see `DraftPlan`."""

    def __init__(
        self, draft: Draft, plan: DraftPlan, ids: np.ndarray[Any, Any], cache: GrowingCache, position: int
    ) -> None:
        """ids: tokens of the head's rows. position: of the root's children as rows."""
        self._draft, self._plan, self._ids, self._cache, self._position = draft, plan, ids, cache, position
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._logprobs: list[float] = []
        self._states: list[Tensor] = []  # from which each token was told
        self._paths: list[list[int]] = []  # rows in the tree of a token's ancestors
        self._last_step = range(0)
        self._leaves: list[int] = []
        self._rows = 0

    def add(self, parents: list[int], states: Tensor) -> None:
        """The likeliest children of some tokens, -1 for the root, whose states are [len(parents), hidden]."""
        logprobs = self._draft.logits(states).log_softmax(-1)
        if not logprobs.isfinite().all():
            raise NativeError("The logits of the draft are not finite: its weights are damaged.")
        start = len(self._tokens)
        for parent, state, row in zip(parents, states, logprobs, strict=True):
            best = row.sort(descending=True, stable=True)
            for index, logprob in zip(best.indices[: self._plan.branches], best.values, strict=False):
                self._tokens.append(int(self._ids[int(index)]))
                self._parents.append(parent)
                self._logprobs.append(float(logprob) + (self._logprobs[parent] if parent >= 0 else 0.0))
                self._states.append(state)
                self._paths.append(self._paths[parent] if parent >= 0 else [])
        self._last_step = range(start, len(self._tokens))

    def choose_leaves(self, step: int) -> bool:
        """Of the last step's tokens those that step number `step` goes on from; False for no such step."""
        plan = self._plan
        least = float(np.log(plan.least_chance)) if plan.least_chance > 0 else -np.inf
        ranked = sorted(self._logprobs, reverse=True)
        bar = ranked[plan.rows - 1] if 0 < plan.rows <= len(ranked) else -np.inf
        leaves = [node for node in self._last_step if bar < self._logprobs[node] >= least]
        leaves.sort(key=lambda node: -self._logprobs[node])
        self._leaves = leaves[: min(plan.branches, MAX_TREE - self._rows)]
        promised = sum(np.exp(self._logprobs[node]) for node in self._leaves)
        return bool(self._leaves) and promised >= plan.all_gains[step]

    def step(self, kept: int, number: int) -> None:
        """Rows for the leaves behind the `kept` true ones, and their children."""
        n = len(self._leaves)
        mask = torch.zeros(n, self._cache.length + n, dtype=torch.bool)
        mask[:, :kept] = True
        for at, leaf in enumerate(self._leaves):
            self._paths[leaf] = [*self._paths[leaf], self._rows + at]
            mask[at, [kept + row for row in self._paths[leaf]]] = True
        self._rows += n
        states = self._draft(
            torch.tensor([self._tokens[leaf] for leaf in self._leaves]),
            torch.stack([self._states[leaf] for leaf in self._leaves]),
            torch.full((n,), self._position + number - 1),
            mask,
            self._cache,
        )
        self.add(self._leaves, states)

    def tried(self, seconds: tuple[float, ...]) -> Tried:
        """Everything."""
        return Tried(
            np.array(self._tokens, np.int32),
            np.array(self._parents, np.int32),
            np.array(self._logprobs, np.float32),
            seconds,
        )
