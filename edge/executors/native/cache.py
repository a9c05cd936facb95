"""The KV cache of the native decoder, as Python holds it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from edge.errors import NativeError
from edge.executors.native import library as native
from edge.executors.protocol import KVCache


class NativeCache:
    """A KV cache of the native decoder; memory is committed as it fills."""

    def __init__(
        self, model: ctypes.c_void_p, capacity: int, create: Callable[..., int] | None = None
    ) -> None:
        """model: the handle of an `edge_model`, or of what `create` makes caches for. capacity: rows it can
        grow to.
        """
        lib, handle = native.library(), ctypes.c_void_p()
        native.check((create or lib.edge_cache_create)(model, ctypes.byref(handle)))
        self.handle = handle
        self._capacity = capacity
        self._finalizer = native.finalize(self, lib.edge_cache_destroy, handle)

    @property
    def length(self) -> int:
        """Rows in use."""
        return int(native.library().edge_cache_length(self.handle))

    @property
    def capacity(self) -> int:
        """Rows it can grow to."""
        return self._capacity


def handle_of(cache: KVCache) -> ctypes.c_void_p:
    """libedge's handle of a cache; NativeError for one of another executor."""
    if not isinstance(cache, NativeCache):
        raise NativeError("This cache belongs to another executor.")
    return cache.handle
