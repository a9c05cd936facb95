"""The GPU, or Triton's interpreter in its place; watched, so that launches and allocations can be counted."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

from edge.errors import NativeError
from edge.executors.cuda.cubins import Cubins
from edge.executors.cuda.device import Address, Device, DeviceFacts, Graph, Grid
from edge.executors.cuda.driver import CudaDevice
from edge.executors.cuda.manifest import MANIFEST, Manifest
from edge.formats.atomic import write_file

Launch: TypeAlias = tuple[str, Grid, tuple[int | float, ...]]


def open_device(rehearse: bool) -> Watched:
    """The first GPU that the driver names; NativeError if there is none."""
    if rehearse:
        from edge.kernels.simulated import SimulatedDevice

        return Watched(SimulatedDevice())
    return Watched(CudaDevice())


def only_ptx(into: Path) -> Path:
    """A folder with the built kernels as PTX alone, which EDGE_CUBINS can name."""
    built = Cubins.open()
    names = [name for name, variant in built.manifest.variants.items() if variant.is_ptx]
    if not names:
        raise NativeError(f"There is no PTX in '{built.folder}'; run `make cubins`.")
    kernels = {
        id: replace(kernel, images={name: kernel.images[name] for name in names if name in kernel.images})
        for id, kernel in built.manifest.kernels.items()
    }
    manifest = Manifest({name: built.manifest.variants[name] for name in names}, kernels)
    into.mkdir(parents=True, exist_ok=True)
    for variant in manifest.variants.values():
        shutil.copyfile(built.folder / variant.file, into / variant.file)
    write_file(into / MANIFEST, json.dumps(manifest.to_json()).encode())
    return into


class Watched:
    """See `edge.executors.cuda.device.Device`. device: what does the work. allocations: how many there were.
    plain: whether graphs are launched as single kernels. last: the graph that was recorded or
    launched last.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.allocations = 0
        self.plain = False
        self.last: WatchedGraph | None = None
        self._log: list[Launch] | None = None

    @property
    def facts(self) -> DeviceFacts:
        """See `Device`."""
        return self.device.facts

    @property
    def free_memory(self) -> int:
        """See `Device`."""
        return self.device.free_memory

    def allocate(self, size: int) -> Address:
        """See `Device`."""
        self.allocations += 1
        return self.device.allocate(size)

    def free(self, address: Address) -> None:
        """See `Device`."""
        self.device.free(address)

    def upload(self, to: Address, values: npt.NDArray[Any]) -> None:
        """See `Device`."""
        self.device.upload(to, values)

    def download(self, source: Address, into: npt.NDArray[Any]) -> None:
        """See `Device`."""
        self.device.download(source, into)

    def copy(self, to: Address, source: Address, size: int) -> None:
        """See `Device`."""
        self.device.copy(to, source, size)

    def launch(self, kernel: str, grid: Grid, arguments: Sequence[int | float]) -> None:
        """See `Device`."""
        if self._log is not None:
            self._log.append((kernel, grid, tuple(arguments)))
        self.device.launch(kernel, grid, arguments)

    def record(self, work: Callable[[], None]) -> WatchedGraph:
        """See `Device`."""
        self.last = WatchedGraph(self, self.device.record(work), work)
        return self.last

    def synchronize(self) -> None:
        """See `Device`."""
        self.device.synchronize()

    def close(self) -> None:
        """See `Device`."""
        self.device.close()

    def launches_of(self, work: Callable[[], None]) -> list[Launch]:
        """What `work` launches; it is done."""
        self._log = []
        try:
            work()
            return self._log
        finally:
            self._log = None

    def time_of(self, work: Callable[[], None], repeats: int, rounds: int = 5) -> float:
        """Seconds of `work` on the GPU, once: the median of some rounds of `repeats`, after a first one."""

        def again() -> None:
            for _ in range(repeats):
                work()

        if not isinstance(self.device, CudaDevice):  # which measures nothing: once will do
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        work()
        self.synchronize()
        return statistics.median(self.device.timed(again) for _ in range(rounds)) / repeats


class Kept(Watched):
    """The same device for an executor, which may close it."""

    def __init__(self, device: Watched) -> None:
        super().__init__(device.device)
        self._addresses: set[Address] = set()

    def allocate(self, size: int) -> Address:
        """See `Device`."""
        address = super().allocate(size)
        self._addresses.add(address)
        return address

    def free(self, address: Address) -> None:
        """See `Device`."""
        self._addresses.discard(address)
        super().free(address)

    def close(self) -> None:
        """Free everything; the device stays open."""
        for address in list(self._addresses):
            self.free(address)


class WatchedGraph:
    """See `edge.executors.cuda.device.Graph`. work: what it was recorded from."""

    def __init__(self, device: Watched, graph: Graph, work: Callable[[], None]) -> None:
        self.graph = graph
        self.work = work
        self._device = device

    def launch(self) -> None:
        """Queue it, or its kernels one by one."""
        self._device.last = self
        if self._device.plain:
            self.work()
        else:
            self.graph.launch()

    def close(self) -> None:
        """See `Graph`."""
        self.graph.close()
