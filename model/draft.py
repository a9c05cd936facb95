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
from edge.executors.drafts import DraftPlan, DraftRows, Tried
from edge.executors.protocol import KVCache
from edge.formats.draft.files import DraftFiles
from edge.model.draft_search import BlockSearch, RowSearch, Search
from edge.model.network.block_draft import BlockDraft
from edge.model.network.decoder import Decoder
from edge.model.network.draft import Draft
from edge.model.network.kv_cache import GrowingCache
from edge.quant.packing import dequantize


def draft_from_files(files: DraftFiles, decoder: Decoder) -> Draft:
    """The network over exactly the weights that the native executor uses."""
    return Draft.from_tensors(files.config, decoder, _tensors(files, decoder))


def block_draft_from_files(files: DraftFiles, decoder: Decoder) -> BlockDraft:
    """The same for a block draft."""
    return BlockDraft.from_tensors(files.config, decoder, _tensors(files, decoder))


def _tensors(files: DraftFiles, decoder: Decoder) -> dict[str, Tensor]:
    files.config.check_target(decoder.config, f"'{files.path}'")
    tensors = {}
    for name, tensor in files.tensors.items():
        weights = dequantize(files.data(name), tensor.scheme, tensor.rows, tensor.columns)
        tensors[name] = torch.from_numpy(weights).reshape(tensor.shape)
    return tensors


class TorchDraftCache:
    """The cache of one sequence on a `TorchDraft`."""

    def __init__(self, draft: Draft | BlockDraft, capacity: int) -> None:
        self.draft = draft
        self.rows = GrowingCache(draft.shape)
        self.capacity = capacity

    @property
    def length(self) -> int:
        """Rows in use."""
        return self.rows.length


class TorchDraft:
    """A `DraftNetwork` over a `Draft` or a `BlockDraft`."""

    def __init__(
        self, files: DraftFiles, decoder: Decoder, lock: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """lock: entered for every call."""
        make = block_draft_from_files if files.config.is_block else draft_from_files
        self._draft: Draft | BlockDraft | None = make(files, decoder)
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
                search = self._search(own, rows, plan, states)
                seconds = [perf_counter() - started]
                while len(seconds) < search.most_steps and search.choose_leaves(len(seconds)):
                    started = perf_counter()
                    search.step(len(seconds))
                    seconds.append(perf_counter() - started)
            except BaseException:
                own.rows.truncate(before)
                raise
            own.rows.truncate(kept)
        return search.tried(seconds)

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

    def _search(self, own: TorchDraftCache, rows: DraftRows, plan: DraftPlan, states: Tensor) -> Search:
        """A tree with the children of its root. states: of the rows, see `_append`."""
        draft, position = self._opened(), rows.position + len(rows.tokens)
        if isinstance(draft, BlockDraft):
            tokens = draft.block(torch.tensor(int(rows.tokens[-1])))
            found = draft(tokens, torch.arange(position, position + len(tokens)), own.rows)
            return BlockSearch(draft, plan, self._ids, found, int(rows.tokens[-1]))
        return RowSearch(draft, plan, self._ids, own.rows, position, states[-1:])

    def _append(self, own: TorchDraftCache, rows: DraftRows) -> Tensor:
        """The states of the rows, [n, hidden]; none of a block draft."""
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
        if isinstance(draft, BlockDraft):
            draft.remember(torch.from_numpy(rows.hidden), positions, own.rows)
            return torch.empty(0)
        features = draft.features(torch.from_numpy(rows.hidden))
        states: Tensor = draft(torch.from_numpy(rows.tokens), features, positions, cache=own.rows)
        return states

    def _opened(self) -> Draft | BlockDraft:
        if self._draft is None:
            raise NativeError("The draft or its model is closed; load them again.")
        return self._draft

    def _own(self, cache: KVCache) -> TorchDraftCache:
        if not isinstance(cache, TorchDraftCache) or cache.draft is not self._opened():
            raise NativeError("The cache belongs to another draft or model.")
        return cache
