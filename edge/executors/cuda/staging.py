"""Pinned memory through which arrays go to the device and back, so that copies run behind the queued work."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_void_p

from edge.executors.cuda.device import Address
from edge.executors.cuda.libcuda import EVENT_WITHOUT_TIMING, LibCuda

_HALF = 4 << 20  # bytes; large copies keep both halves busy
_PLACE = 256


class Staging:
    """Two halves of pinned memory, filled one after the other; a half is used again when its copies are done.

    stream: the queue that copies go to.
    """

    def __init__(self, cuda: LibCuda, stream: c_void_p) -> None:
        self._cuda = cuda
        self._stream = stream
        self._memory = c_void_p()
        self._events = (c_void_p(), c_void_p())  # each recorded when the other half's turn comes
        self._turn = 0
        self._used = 0
        try:
            cuda.call("cuMemHostAlloc", byref(self._memory), 2 * _HALF, 0)
            for event in self._events:
                cuda.call("cuEventCreate", byref(event), EVENT_WITHOUT_TIMING)
        except BaseException:
            self.close()
            raise

    def upload(self, to: Address, source: int, size: int) -> None:
        """Queue a copy of `size` bytes at an address of this process, which may change afterwards."""
        for start in range(0, size, _HALF):
            count = min(_HALF, size - start)
            place = self._room(count)
            ctypes.memmove(place, source + start, count)
            self._cuda.call("cuMemcpyHtoDAsync_v2", to + start, place, count, self._stream)

    def download(self, source: Address, into: int, size: int) -> None:
        """Wait for all that was queued, and copy `size` bytes to the address `into` of this process."""
        if not size:
            self._cuda.call("cuStreamSynchronize", self._stream)
        for start in range(0, size, _HALF):
            count = min(_HALF, size - start)
            place = self._room(count)
            self._cuda.call("cuMemcpyDtoHAsync_v2", place, source + start, count, self._stream)
            self._cuda.call("cuStreamSynchronize", self._stream)
            ctypes.memmove(into + start, place, count)

    def close(self) -> None:
        """Free it; all copies must have ended. What can't be freed is left to the driver."""
        for event in self._events:
            if event:
                self._cuda.functions["cuEventDestroy_v2"](event)
        if self._memory:
            self._cuda.functions["cuMemFreeHost"](self._memory)

    def _room(self, size: int) -> int:
        """The address of `size` bytes, at most a half, that no queued copy uses."""
        if self._used + size > _HALF:
            self._cuda.call("cuEventRecord", self._events[self._turn], self._stream)
            self._turn, self._used = 1 - self._turn, 0
            self._cuda.call("cuEventSynchronize", self._events[self._turn])
        assert self._memory.value is not None
        place = self._memory.value + self._turn * _HALF + self._used
        self._used += -(-size // _PLACE) * _PLACE
        return place
