"""Where the native executor's weights lie: mapped from their file, or copied into huge pages.

Streaming reads from huge pages are faster than from the usual 4 KB pages. Recent Linux kernels can keep files
in huge pages themselves: then it is enough to map the file, which takes no time and no memory of its own.
Elsewhere the file is copied.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from edge.errors import BundleError
from edge.executors.native import library as native
from edge.formats.model_files import PackedFiles
from edge.system.huge_pages import huge_page_bytes

_PIECE = 8 << 20  # bytes that one thread reads at a time, whole huge pages
_READERS = 4  # a page cache is read fastest by a few threads
_PROBE = 64 << 20  # what is tried before the whole file is read to be mapped
_ENOUGH = 0.9  # of a file in huge pages; one that is half in them reads like one that is not


class WeightMemory(Protocol):
    """The packed bytes of a bundle's tensors in memory, for as long as this object lives.

    mapped: whether they are the file's own pages. bytes: their size.
    """

    mapped: bool
    bytes: int

    def address(self, name: str) -> int:
        """Address of a tensor's first byte."""

    @property
    def huge_bytes(self) -> int | None:
        """How many of the bytes lie in huge pages now; None where the system does not tell."""


def open_weights(files: PackedFiles, mmap: bool | None = None) -> WeightMemory:
    """The weights of `files` in fast memory: mapped if their file lies in huge pages, else copied into some.

    mmap: True maps the file and reads it when it is used, False copies it in any case.
    """
    if mmap is False:
        return CopiedWeights(files)
    mapped = MappedWeights(files)
    return mapped if mmap or mapped.read_in_huge_pages() else CopiedWeights(files)


class MappedWeights:
    """The bundle's own mapping of its file; who shortens the file in use ends the process (SIGBUS)."""

    mapped = True

    def __init__(self, files: PackedFiles) -> None:
        self._arrays = {name: files.data(name) for name in files.tensors}
        first, array = next(iter(self._arrays.items()))
        self._start = int(array.ctypes.data) - files.offset(first)  # of the file: the system aligns it well
        self.bytes = _size(files)
        self._where = files.weights_file

    def address(self, name: str) -> int:
        """Address of a tensor's first byte."""
        return int(self._arrays[name].ctypes.data)

    @property
    def huge_bytes(self) -> int | None:
        """Of what was read so far."""
        return huge_page_bytes(self._start, self.bytes)

    def read_in_huge_pages(self) -> bool:
        """Read the file now; False if it is not in huge pages, which some of its middle tells."""
        whole, probe = (0, self.bytes), (self.bytes // 2, min(_PROBE, self.bytes // 2))
        for start, count in (probe, whole):
            # One reader: several at a time would make the system read in smaller pieces.
            status = native.library().edge_mapping_prefault(self._start + start, count)
            if status not in (0, native.UNSUPPORTED):
                raise BundleError(f"'{self._where}' became shorter while it was read; convert it again.")
            huge = self.huge_bytes
            if status == native.UNSUPPORTED or huge is None or huge < _ENOUGH * count:
                return False
        return True


class Region:
    """Zeroed memory in huge pages (in ordinary ones where the system has no others); start: its address."""

    def __init__(self, size: int) -> None:
        lib, region = native.library(), ctypes.c_void_p()
        native.check(lib.edge_region_create(size, ctypes.byref(region)))
        self._finalizer = native.finalize(self, lib.edge_region_destroy, region, size)
        self.start, self.bytes = region.value or 0, size

    def move_to(self, other: Region) -> None:
        """Become the memory of another one of the same size, at its address; this one is gone then."""
        native.check(native.library().edge_region_move(self.start, other.start, self.bytes))
        self._finalizer.detach()


class HugePageFile:
    """A private copy of a file's first bytes in huge pages.

    start: address of the first byte, aligned to 64. rests: the copy has been given back, and the file itself
    is read in its place.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Raises BundleError if the file is shorter or can't be read."""
        self.rests = False
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise BundleError(f"Cannot read '{path}': {error.strerror or error}.") from None
        weakref.finalize(self, os.close, self._file)
        self._written = self._state()
        self._region = self._copy(size)
        self.start, self.bytes = self._region.start, size

    def rest(self) -> None:
        """Give the copy back. Nobody may read it meanwhile.

        Nothing happens where the system can't do that, or if the file was written to since it was read.
        """
        if not self.rests and self._state() == self._written:
            lib = native.library()
            self.rests = lib.edge_region_rest(self.start, self.bytes, self._file) == 0

    def copied(self) -> Region:
        """A new copy, for `wake`; others may read the file in its place meanwhile.

        Raises BundleError if the file has become shorter, NativeError if there is no memory.
        """
        return self._copy(self.bytes)

    def wake(self, copy: Region) -> None:
        """Put a new copy in its old place. Nobody may read meanwhile."""
        copy.move_to(self._region)
        self.rests = False

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns

    def _copy(self, size: int) -> Region:
        region = Region(size)
        memory = memoryview((ctypes.c_char * size).from_address(region.start)).cast("B")

        def read(start: int) -> None:
            stop = min(start + _PIECE, size)
            while start < stop:
                count = os.preadv(self._file, [memory[start:stop]], start)
                if count == 0:
                    raise BundleError(f"'{self._path}' became shorter while it was read; convert it again.")
                start += count

        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(read, range(0, size, _PIECE)))
        return region


class CopiedWeights:
    """A private copy of the weights file in huge pages."""

    mapped = False

    def __init__(self, files: PackedFiles) -> None:
        self._offsets = {name: files.offset(name) for name in files.tensors}
        self.bytes = _size(files)
        self.copy = HugePageFile(files.weights_file, self.bytes)

    def address(self, name: str) -> int:
        """Address of a tensor's first byte."""
        return self.copy.start + self._offsets[name]

    @property
    def huge_bytes(self) -> int | None:
        """The system may have had too few huge pages for all of it."""
        return huge_page_bytes(self.copy.start, self.bytes)


def _size(files: PackedFiles) -> int:
    """What the tensors need, not what the file has now: it may have been replaced since it was checked."""
    return max(files.offset(name) + info.bytes for name, info in files.tensors.items())
