"""Tokens drawn one after another: what libedge reads of such a step stands there before the pass."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

from edge.executors.native import library as native
from edge.executors.native.cache import handle_of
from edge.executors.protocol import KVCache
from edge.executors.sampling import DrawOptions


class NativeNextToken:
    """See `edge.executors.protocol.NextToken`.

    A pass drives Python's objects out of the processor's caches: each one that is not asked after it counts.
    """

    def __init__(self, cache: KVCache, options: DrawOptions, vocab_size: int) -> None:
        self.cache = cache
        self._token = ctypes.c_int32()
        self.drawing = replace(options).native  # places of its own
        """What its token is drawn from, and its place."""
        self._draw = self.drawing[1]
        self._draw.vocab_size = vocab_size
        self.records = (native.Step * 1)()
        """Its step, for a pass that has no other."""
        record = self.records[0]
        record.size, record.n, record.logits_count = ctypes.sizeof(native.Step), 1, 1
        record.cache, record.tokens = handle_of(cache), ctypes.addressof(self._token)

    def put(self, token: int, index: int) -> None:
        """See `NextToken`."""
        self._token.value = token
        self._draw.index = index

    def read(self, logits: int) -> None:
        """Draw from the logits at an address, once they are there."""
        self._draw.logits = logits


def records_of(steps: Sequence[NativeNextToken]) -> ctypes.Array[native.Step]:
    """The steps of a pass, as libedge takes them."""
    if len(steps) == 1:
        return steps[0].records
    return (native.Step * len(steps))(*(step.records[0] for step in steps))
