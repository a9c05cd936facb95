"""What the executor asks of a GPU. The driver answers it (`driver.py`); where there is none, Triton's
interpreter does (`edge.kernels.simulated`), so that everything above runs and is tested anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

Address = int
"""Of device memory, in bytes; 0 is none."""

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class DeviceFacts:
    """name: as the driver says it. architecture: compute capability, for example 87. memory: bytes in all.
    multiprocessors: their number. shared_memory: bytes that one block can have. integrated: whether its
    memory is the system's own, as on Jetson.
    """

    name: str
    architecture: int
    memory: int
    multiprocessors: int
    shared_memory: int
    integrated: bool


class Graph(Protocol):
    """Launches that were recorded, to be made again in one call; arguments stay as they were."""

    def launch(self) -> None:
        """Queue all of them."""

    def close(self) -> None:
        """Free it."""


class Device(Protocol):
    """One GPU with one queue, in which everything happens in the order of the calls."""

    @property
    def facts(self) -> DeviceFacts:
        """What it is."""

    @property
    def free_memory(self) -> int:
        """Bytes that can be allocated now."""

    def allocate(self, size: int) -> Address:
        """`size` bytes of zeros, at a multiple of 256. Raises ContextError if there is no room."""

    def free(self, address: Address) -> None:
        """Give back what `allocate` gave; 0 is ignored."""

    def upload(self, to: Address, values: npt.NDArray[Any]) -> None:
        """Copy an array to the device; it may change as soon as this returns."""

    def download(self, source: Address, into: npt.NDArray[Any]) -> None:
        """Wait for all that was queued, then copy into a C-contiguous array."""

    def copy(self, to: Address, source: Address, size: int) -> None:
        """Queue a copy of bytes within the device; the two may not overlap."""

    def launch(self, kernel: str, grid: Grid, arguments: Sequence[int | float]) -> None:
        """Queue a kernel. kernel: id of an entry, see `edge.kernels.entry.Entry`. arguments: values and
        addresses in the order of its signature.
        """

    def record(self, work: Callable[[], None]) -> Graph:
        """The launches that `work` makes, which are not run now. It may not allocate, upload or download."""

    def synchronize(self) -> None:
        """Wait for all that was queued; raises NativeError if some of it failed."""

    def close(self) -> None:
        """Free everything; the device can't be used afterwards."""
