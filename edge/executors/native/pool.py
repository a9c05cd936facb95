"""What operators of libedge take from their caller: threads, and scratch memory."""

from __future__ import annotations

import ctypes

import numpy as np

from edge.executors.native import library as native

_ALIGNMENT = 64


class ThreadPool:
    """Threads of libedge, shared by every model that is given this pool."""

    def __init__(self, threads: int | None = None) -> None:
        lib, handle = native.library(), ctypes.c_void_p()
        native.check(lib.edge_pool_create(threads or 0, ctypes.byref(handle)))
        self.parallel = lib.edge_pool_parallel(handle)
        self.handle = handle
        self._finalizer = native.finalize(self, lib.edge_pool_destroy, handle)

    def join(self) -> None:
        """Wait for the searches of drafts that one of the threads makes."""
        native.library().edge_pool_join(self.handle)

    @property
    def threads(self) -> int:
        """Number of threads that work, the caller's included."""
        return int(self.parallel.workers)


class ScratchBuffer:
    """Scratch memory for single operators, grown as they ask; one call at a time."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self.scratch = native.Scratch(None, type(native.Scratch().allocate)(self._allocate))

    def _allocate(self, _context: int | None, size: int) -> int:
        if self._memory.nbytes < size + _ALIGNMENT:
            self._memory = np.empty(size + _ALIGNMENT, np.uint8)
        address = int(self._memory.ctypes.data)
        return address + -address % _ALIGNMENT
