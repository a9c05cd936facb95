"""Draft networks on the native executor: all steps of a tree in one call of libedge."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache
from math import inf, log
from typing import Any, Protocol, cast

import numpy as np

from edge.config import ModelConfig
from edge.config.draft import (
    CONFIDENCE,
    CONFIDENCE_BIAS,
    EMBEDDING_NORM,
    FC,
    FC_BIAS,
    HIDDEN_NORM,
    MARKOV_AFTER,
    MARKOV_BEFORE,
    DraftConfig,
    draft_tensors,
)
from edge.config.rope import rope_parameters
from edge.config.rope_regime import follow_regime
from edge.errors import NativeError
from edge.executors.checks import MAX_TREE, whole_number
from edge.executors.drafts import DraftPlan, DraftRows, RowsMemory, Tried
from edge.executors.native import library as native
from edge.executors.native.cache import NativeCache, handle_of
from edge.executors.native.next_token import NativeNextToken
from edge.executors.native.searches import Searches
from edge.executors.protocol import ExecutorInfo, KVCache, NextToken
from edge.executors.weights import WeightMemory, open_weights
from edge.formats.draft.files import DraftFiles
from edge.system.guards import OneCall

ROLES = {
    **{FC: 12, FC_BIAS: 13, EMBEDDING_NORM: 14, HIDDEN_NORM: 15},
    **{MARKOV_BEFORE: 21, MARKOV_AFTER: 22, CONFIDENCE: 23, CONFIDENCE_BIAS: 24},
}
"""edge_draft_role"""


class DraftShape(native.Record):
    """edge_draft_config"""

    _fields_ = (
        ("size", c_uint32),
        *((name, c_int32) for name in ("intermediate_size", "layers", "heads", "kv_heads", "head_dim")),
        *((name, c_int32) for name in ("window", "kv_type", "head_rows")),
        *((name, c_float) for name in ("rms_norm_eps", "residual_scale", "rope_scale")),
        ("inverse_frequency", c_void_p),
        ("head_tokens", c_void_p),
        ("taps", c_int32),
        ("logit_scale", c_float),
        *((name, c_int32) for name in ("block_size", "mask_token", "anchor_tells", "markov_rank")),
        ("confidence", c_int32),
    )


class DraftStep(native.Record):
    """edge_draft_step"""

    _fields_ = (
        ("size", c_uint32),
        ("n", c_int32),
        ("cache", c_void_p),
        ("position", c_int64),
        ("tokens", c_void_p),
        ("hidden", c_void_p),
        *((name, c_int32) for name in ("steps", "branches", "rows")),
        ("least_logprob", c_float),
        ("least_gains", c_void_p),
        *((name, c_int32) for name in ("node_room", "node_count")),
        *((name, c_void_p) for name in ("node_tokens", "node_parents", "node_logprobs")),
        ("steps_run", c_int32),
        ("seconds", c_void_p),
    )


_STATUS = c_int32
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "edge_draft_create": (
        _STATUS,
        (c_void_p, POINTER(DraftShape), POINTER(native.Weight), c_int64, POINTER(c_void_p)),
    ),
    "edge_draft_destroy": (None, (c_void_p,)),
    "edge_draft_workspace_bytes": (c_uint64, (c_void_p,)),
    "edge_draft_cache_bytes": (c_uint64, (c_void_p,)),
    "edge_draft_cache_create": (_STATUS, (c_void_p, POINTER(c_void_p))),
    "edge_draft_run": (_STATUS, (c_void_p, POINTER(DraftStep))),
}


@cache
def draft_library() -> ctypes.CDLL:
    """libedge with the types of these functions set."""
    lib = native.library()
    for name, (result, arguments) in _FUNCTIONS.items():
        setattr(lib, name, native.checked(getattr(lib, name), result, arguments))
    return lib


class _Places:
    """What libedge reads of a search, and where it writes to: the same memory every time."""

    def __init__(self, room: int) -> None:
        """room: most tokens that are tried."""
        self.room = room
        self.gains = (c_float * MAX_TREE)()
        self._seconds = (c_float * MAX_TREE)()
        self._tokens, self._parents = (c_int32 * room)(), (c_int32 * room)()
        self._logprobs = (c_float * room)()
        self.step = DraftStep(
            size=ctypes.sizeof(DraftStep),
            least_gains=ctypes.addressof(self.gains),
            node_room=room,
            node_tokens=ctypes.addressof(self._tokens),
            node_parents=ctypes.addressof(self._parents),
            node_logprobs=ctypes.addressof(self._logprobs),
            seconds=ctypes.addressof(self._seconds),
        )

    def put(self, plan: DraftPlan) -> None:
        """What is tried by the search that comes; there is room for it."""
        step = self.step
        step.steps, step.branches, step.rows = plan.steps, plan.branches, plan.rows
        step.least_logprob = log(plan.least_chance) if plan.least_chance > 0 else -inf
        for at, gain in enumerate(plan.all_gains):
            self.gains[at] = gain

    @property
    def seconds(self) -> float:
        """That the last search took."""
        return sum(self._seconds[: self.step.steps_run])

    def tried(self) -> Tried:
        """What the last search left there."""
        n, steps = self.step.node_count, self.step.steps_run
        return Tried(self._tokens[:n], self._parents[:n], self._logprobs[:n], self._seconds[:steps])


class _Handle:
    """An `edge_draft` and its weights. It leads to no model, so that it outlives that while it is in use."""

    def __init__(self, handle: ctypes.c_void_p, weights: WeightMemory) -> None:
        self.draft, self.weights = handle, weights
        self.free = native.finalize(self, draft_library().edge_draft_destroy, handle)


class NativeAhead:
    """See `edge.executors.drafts.DraftAhead`."""

    def __init__(self, own: _Handle, searches: Searches, cache: KVCache) -> None:
        self._own, self._searches, self._cache = own, searches, cache
        self._places = _Places(0)
        self._drawn: native.Drawn | None = None
        self.held: tuple[object, ...] = ()
        """What owns all that the search reads and writes, beside the model."""

    def behind(self, step: NextToken, position: int, memory: RowsMemory, plan: DraftPlan) -> None:
        """See `DraftAhead`."""
        native.check_integer(plan.rows, c_int32, "the number of tokens of any use")
        places = self._places
        if places.room < plan.room:
            places = self._places = _Places(plan.room)
        places.put(plan)
        record = places.step
        record.cache, record.position = handle_of(self._cache), position
        record.n = record.steps_run = 0
        own = cast(NativeNextToken, step)
        own.search, self._drawn = self, own.drawn
        self.held = places, self._cache, memory.owners, self._own
        decoding = own.decoding
        decoding.draft, decoding.draft_step = self._own.draft.value, ctypes.addressof(record)
        decoding.draft_tokens, decoding.draft_hidden = memory.tokens, memory.hidden

    def is_open(self) -> bool:
        """Whether the draft was not closed yet; for who holds the lock."""
        return self._own.free.alive

    @property
    def rows(self) -> int:
        """See `DraftAhead`."""
        return int(self._places.step.n)

    @property
    def root(self) -> int:
        """See `DraftAhead`."""
        assert self._drawn is not None
        return int(self._drawn.tokens[self._drawn.count - 1])

    @property
    def seconds(self) -> float:
        """See `DraftAhead`."""
        return self._places.seconds if self._searches.handle is None else 0.0

    def wait(self) -> None:
        """See `DraftAhead`."""
        self._searches.wait()

    def tried(self) -> Tried | None:
        """See `DraftAhead`."""
        self._searches.wait()
        return self._places.tried() if self._places.step.steps_run else None


class Target(Protocol):
    """What is used of the native executor. handle: an `edge_model`."""

    handle: ctypes.c_void_p

    @property
    def config(self) -> ModelConfig:
        """Its network."""

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""

    @property
    def info(self) -> ExecutorInfo:
        """How it was opened."""


class NativeDraft:
    """A `DraftNetwork`; its keys and values are float16, or float32 if the target's are. weights: where they
    lie.
    """

    def __init__(self, files: DraftFiles, target: Target, *, lock: OneCall, searches: Searches) -> None:
        """files: of the draft. target: lives as long as the draft. lock: entered for every call, as calls of
        the target are. searches: behind its passes. Raises ConfigError for a draft of another shape than the
        target's.
        """
        config, context = files.config, target.context
        config.check_target(target.config, f"'{files.path}'")
        self._config, self._target, self._lock, self._searches = config, target, lock, searches
        self.weights = open_weights(files)
        frequency, rope_scale = None, 1.0
        if config.rope is not None:
            rope = follow_regime(config.rope, target.config.rope)
            frequency, rope_scale = rope_parameters(
                rope, config.head_dim, context, config.max_position_embeddings
            )
            frequency = np.ascontiguousarray(frequency, np.float32)
        ids = None if files.token_ids is None else np.ascontiguousarray(files.token_ids, np.int32)
        shape = DraftShape(
            size=ctypes.sizeof(DraftShape),
            intermediate_size=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            window=config.window or 0,
            kv_type=native.KV_TYPE["float32" if target.info.kv_type == "float32" else "float16"],
            head_rows=config.head_rows or 0,
            rms_norm_eps=config.rms_norm_eps,
            residual_scale=config.residual_scale,
            rope_scale=rope_scale,
            inverse_frequency=None if frequency is None else frequency.ctypes.data,
            head_tokens=None if ids is None else ids.ctypes.data,
            taps=0 if config.kind == "mtp" else len(config.taps),
            logit_scale=config.logit_scale,
            block_size=config.block_size,
            mask_token=config.mask_token,
            anchor_tells=config.anchor_tells,
            markov_rank=config.markov_rank,
            confidence=config.confidence,
        )
        weights = [
            native.Weight(
                role=ROLES[name] if tensor.native is None else tensor.native,
                layer=tensor.layer or 0,
                matrix=native.matrix(
                    files.tensors[name].scheme.packing,
                    files.tensors[name].rows,
                    files.tensors[name].columns,
                    self.weights.address(name),
                ),
            )
            for name, tensor in draft_tensors(config).items()
        ]
        lib, handle = draft_library(), ctypes.c_void_p()
        native.check(
            lib.edge_draft_create(
                target.handle,
                ctypes.byref(shape),
                (native.Weight * len(weights))(*weights),
                len(weights),
                ctypes.byref(handle),
            )
        )
        self._own = _Handle(handle, self.weights)
        self.handle = handle
        self._places = _Places(0)

    @property
    def config(self) -> DraftConfig:
        """The network."""
        return self._config

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory beside weights and caches."""
        with self._lock():
            self._settle()
            return int(draft_library().edge_draft_workspace_bytes(self.handle))

    @property
    def cache_bytes(self) -> int:
        """Memory of all its caches."""
        with self._lock():
            self._settle()
            return int(draft_library().edge_draft_cache_bytes(self.handle))

    def new_cache(self) -> NativeCache:
        """An empty cache; memory is committed as it fills."""
        with self._lock():
            self._settle()
            return NativeCache(self.handle, self._target.context, draft_library().edge_draft_cache_create)

    def ahead(self, cache: KVCache) -> NativeAhead:
        """See `DraftsAhead`."""
        return NativeAhead(self._own, self._searches, cache)

    def append(self, cache: KVCache, rows: DraftRows) -> None:
        """See `DraftNetwork.append`."""
        rows = rows.checked(self._config)  # which live as long as the call
        step = DraftStep(
            size=ctypes.sizeof(DraftStep),
            n=rows.tokens.size,
            cache=handle_of(cache),
            position=whole_number(rows.position, "the position of the first row"),
            tokens=rows.tokens.ctypes.data,
            hidden=rows.hidden.ctypes.data,
        )
        with self._lock():
            self._settle()
            native.check(draft_library().edge_draft_run(self.handle, step))

    def run(self, cache: KVCache, rows: DraftRows, plan: DraftPlan) -> Tried:
        """See `DraftNetwork.run`."""
        rows = rows.checked(self._config)
        whole_number(rows.position, "the position of the first row")
        native.check_integer(plan.rows, c_int32, "the number of tokens of any use")
        with self._lock():
            self._settle()
            places = self._places
            if places.room < plan.room:
                places = self._places = _Places(plan.room)
            step = places.step
            step.n, step.cache, step.position = rows.tokens.size, handle_of(cache), rows.position
            step.tokens, step.hidden = rows.tokens.ctypes.data, rows.hidden.ctypes.data
            places.put(plan)
            native.check(draft_library().edge_draft_run(self.handle, step))
            return places.tried()

    def truncate(self, cache: KVCache, n: int) -> None:
        """Drop all rows of the cache after the first n."""
        rows = whole_number(n, "the number of rows to keep")
        with self._lock():
            self._searches.join()
            native.check(native.library().edge_cache_truncate(handle_of(cache), rows))

    def close(self) -> None:
        """Free it, after the call that is under way; later calls raise NativeError. Does nothing in a forked
        process.
        """
        if not self._lock.is_inherited:
            with self._lock():
                self.free()

    def free(self) -> None:
        """The same for who holds the lock."""
        self._searches.join()
        self._own.free()

    def _settle(self) -> None:
        """For who holds the lock: raises NativeError if it is closed, and waits for its searches."""
        if not self._own.free.alive:
            raise NativeError("The draft or its model is closed; load them again.")
        self._searches.join()
