"""The machine's limits, measured by libedge: read bandwidth from huge pages and the arithmetic peaks."""

from __future__ import annotations

import ctypes
import os
import weakref

from edge.executors.native import library as native
from edge.executors.native.executor import TIER_VARIABLE
from edge.executors.native.pool import ThreadPool
from edge.measure.profile.cost import Roofline
from edge.system.memory import available_memory

MOST_BYTES = 1 << 30
_LEAST_BYTES = 64 << 20


class Region:
    """Memory in huge pages, filled once; pointer: its address."""

    def __init__(self, size: int) -> None:
        self.size, self.pointer = size, ctypes.c_void_p()
        native.check(native.library().edge_region_create(size, ctypes.byref(self.pointer)))
        ctypes.memset(self.pointer, 0x24, size)
        self._finalizer = weakref.finalize(self, native.library().edge_region_destroy, self.pointer, size)

    def close(self) -> None:
        """Give the memory back."""
        self._finalizer()


class RooflineProbe:
    """Measures the limits again and again over one region: 1 GB, or an eighth of the free memory if that is
    less.
    """

    def __init__(self, region: Region | None = None) -> None:
        free = available_memory() or MOST_BYTES
        self._region = region or Region(max(_LEAST_BYTES, min(MOST_BYTES, free // 8)))
        self._pools: dict[int, ThreadPool] = {}

    def measure(self, threads: int, tier: str | None = None) -> Roofline:
        """The limits with so many threads and the kernels of a tier (by default $EDGE_CPU or the best); some
        80 ms.
        """
        if threads not in self._pools:
            self._pools[threads] = ThreadPool(threads)
        out = native.Roofline()
        chosen = tier or os.environ.get(TIER_VARIABLE) or None
        native.check(
            native.library().edge_measure_roofline(
                ctypes.byref(self._pools[threads].parallel),
                chosen.encode() if chosen else None,
                self._region.pointer,
                min(self._region.size, MOST_BYTES),
                ctypes.byref(out),
            )
        )
        return Roofline(
            out.read_bytes_per_second, out.int8_per_second, out.float_per_second, out.region_seconds
        )

    def close(self) -> None:
        """Give the memory back."""
        self._region.close()
