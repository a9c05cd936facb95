"""Where the native executor's weights lie: read into huge pages, or mapped from the file.

Streaming reads from huge pages are much faster than from the 4 KB pages of a mapped file. A mapping starts
without reading anything and is shared between processes; it suits machines short of memory.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from edge.bundle.reader import Bundle
from edge.errors import BundleError
from edge.native import library as native

_PIECE = 8 << 20  # bytes that one thread reads at a time
_READERS = 4  # a page cache is read fastest by a few threads


class WeightMemory(Protocol):
    """The packed bytes of a bundle's tensors in memory, for as long as this object lives."""

    def address(self, name: str) -> int:
        """Address of a tensor's first byte."""


class MappedWeights:
    """The bundle's own mapping of its file; who shortens the file in use ends the process (SIGBUS)."""

    def __init__(self, bundle: Bundle) -> None:
        self._arrays = {name: bundle.data(name) for name in bundle.tensors}

    def address(self, name: str) -> int:
        """Address of a tensor's first byte."""
        return int(self._arrays[name].ctypes.data)


class HugePageWeights:
    """A private copy of the weights file in huge pages (in ordinary ones where the system has no others)."""

    def __init__(self, bundle: Bundle) -> None:
        path = bundle.weights_file
        self._offsets = {name: bundle.offset(name) for name in bundle.tensors}
        # What the tensors need, not what the file has now: it may have been replaced since it was checked.
        size = max(bundle.offset(name) + info.bytes for name, info in bundle.tensors.items())
        lib, region = native.library(), ctypes.c_void_p()
        native.check(lib.edge_region_create(size, ctypes.byref(region)))
        self._finalizer = weakref.finalize(self, lib.edge_region_destroy, region, size)
        self._finalizer.atexit = False  # another thread may still be reading them
        self._base = region.value or 0
        memory = memoryview((ctypes.c_char * size).from_address(self._base)).cast("B")
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise BundleError(f"Cannot read '{path}': {error.strerror or error}.") from None
        try:

            def read(start: int) -> None:
                stop = min(start + _PIECE, size)
                while start < stop:
                    count = os.preadv(descriptor, [memory[start:stop]], start)
                    if count == 0:
                        raise BundleError(f"'{path}' became shorter while it was read; convert it again.")
                    start += count

            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(read, range(0, size, _PIECE)))
        finally:
            os.close(descriptor)

    def address(self, name: str) -> int:
        """Address of a tensor's first byte."""
        return self._base + self._offsets[name]
