"""Tokens drawn in the call that runs their pass: what libedge reads of such a step stands there before."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_uint32, c_void_p
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.executors.native import library as native
from edge.executors.native.cache import handle_of
from edge.executors.protocol import FloatArray, KVCache
from edge.executors.sampling import DrawOptions


class Decoding(native.Record):
    """edge_decoding"""

    _fields_ = (
        ("size", c_uint32),
        *((name, c_void_p) for name in ("sampling", "draw", "drawn")),
        *((name, c_void_p) for name in ("draft", "draft_step", "draft_tokens", "draft_hidden")),
    )


class Search(Protocol):
    """What is used of a search behind the pass. held: what owns all that it uses, the model apart."""

    held: tuple[object, ...]

    def is_open(self) -> bool:
        """Whether its draft was not closed yet."""


class NativeNextToken:
    """See `edge.executors.protocol.NextToken`.

    A pass drives Python's objects out of the processor's caches: each one that is not asked after it counts.
    """

    def __init__(self, cache: KVCache, options: DrawOptions, config: ModelConfig) -> None:
        self.cache = cache
        self.rows = 1
        """Of the pass that comes."""
        self._width = config.hidden_size
        self._tokens = (ctypes.c_int32 * native.MAX_TREE)()
        self._positions = np.empty(native.MAX_TREE, np.int32)
        self._masks = np.empty(native.MAX_TREE, np.uint64)
        self._tree = self._positions.ctypes.data, self._masks.ctypes.data
        self._wanted: tuple[int, ...] = ()  # layers, and the same as libedge reads them
        self._layers = np.empty(0, np.int32)
        self._states: FloatArray | None = None  # one after the other: of all rows, of each layer
        self._memory = np.empty(0, np.float32)  # for them
        self.sampling, self.draw, _ = replace(options).native  # places of its own
        self.draw.vocab_size = config.vocab_size
        self.drawn = native.Drawn()
        """What was drawn."""
        self.records = (native.Step * 1)()
        """Its step, for a pass that has no other."""
        self.record = record = self.records[0]
        record.size, record.n, record.logits_count = ctypes.sizeof(native.Step), 1, 1
        record.cache, record.tokens = handle_of(cache), ctypes.addressof(self._tokens)
        self.decodings = (Decoding * 1)()
        """What is done with it behind the pass, likewise."""
        self.decoding = self.decodings[0]
        self.decoding.size = ctypes.sizeof(Decoding)
        self.decoding.sampling = ctypes.addressof(self.sampling)
        self.decoding.draw, self.decoding.drawn = ctypes.addressof(self.draw), ctypes.addressof(self.drawn)
        self.search: Search | None = None
        """By the draft of `decoding`; None if there is none."""

    def put(self, token: int, index: int) -> None:
        """See `NextToken`."""
        self._tokens[0] = token
        self.draw.index = index
        if self.rows > 1:
            self._set_rows(1)
            self.record.positions = self.record.tree = None
        if self.search is not None:
            self.search = self.decoding.draft = None

    def guess(
        self,
        tokens: Sequence[int],
        positions: npt.NDArray[np.int32] | None = None,
        tree: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        """See `NextToken`."""
        rows = 1 + len(tokens)
        for row, token in enumerate(tokens, 1):
            self._tokens[row] = token
        self._set_rows(rows)
        if tree is not None:
            assert positions is not None
            self._positions[:rows], self._masks[:rows] = positions, tree
            self.record.positions, self.record.tree = self._tree

    def want(self, hidden: bool, layers: Sequence[int] = ()) -> None:
        """See `NextToken`."""
        record, self._states = self.record, None
        record.hidden = record.layer_outputs = None
        if tuple(layers) != self._wanted:
            self._wanted, self._layers = tuple(layers), np.array(layers, np.int32)
            record.layer_count, record.layer_indices = len(layers), self._layers.ctypes.data
        if hidden or layers:
            shape = max(1, len(layers)), self.rows, self._width
            size = shape[0] * shape[1] * shape[2]
            if size > len(self._memory):
                self._memory = np.empty(size, np.float32)
                self._address = self._memory.ctypes.data
            self._states = self._memory[:size].reshape(shape)
            record.hidden, record.layer_outputs = (None, self._address) if layers else (self._address, None)

    @property
    def states(self) -> FloatArray | None:
        """See `NextToken`."""
        if self._states is None:
            return None
        return self._states[0] if len(self._states) == 1 else np.concatenate(self._states, axis=1)

    @property
    def right(self) -> list[int]:
        """See `NextToken`."""
        return self.drawn.rows[: self.drawn.count - 1]

    def _set_rows(self, rows: int) -> None:
        self.rows = self.record.n = self.record.logits_count = rows


def records_of(steps: Sequence[NativeNextToken]) -> ctypes.Array[native.Step]:
    """The steps of a pass, as libedge takes them."""
    if len(steps) == 1:
        return steps[0].records
    return (native.Step * len(steps))(*(step.record for step in steps))


def decodings_of(steps: Sequence[NativeNextToken]) -> ctypes.Array[Decoding]:
    """What is done with them behind the pass."""
    if len(steps) == 1:
        return steps[0].decodings
    return (Decoding * len(steps))(*(step.decoding for step in steps))
