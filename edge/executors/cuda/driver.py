"""A real GPU, asked through the driver's own library: see `edge.executors.cuda.device.Device`.

Everything goes to one queue. The context is the primary one of this process, which other libraries may use
beside this. One thread at a time; a process that was forked from this one can't use it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from ctypes import byref, c_float, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import ContextError, NativeError
from edge.executors.cuda.cubins import Cubins
from edge.executors.cuda.device import Address, DeviceFacts, Graph, Grid
from edge.executors.cuda.launching import LoadedKernel
from edge.executors.cuda.libcuda import (
    CAPTURE_RELAXED,
    COMPUTE_CAPABILITY,
    INTEGRATED,
    INVALID_DEVICE,
    MULTIPROCESSORS,
    NO_DEVICE,
    NON_BLOCKING,
    OUT_OF_MEMORY,
    SHARED_MEMORY,
    STUB_LIBRARY,
    CudaError,
    LibCuda,
)
from edge.executors.cuda.staging import Staging
from edge.system.memory import available_memory
from edge.system.units import format_bytes

_NAMED = 8  # kernels that a message about failed work names


class CudaDevice:
    """One GPU. Close it: what it holds is otherwise kept until the process ends.

    cubins: the built kernels; found at the first launch if None. ordinal: which GPU, among those that
    CUDA_VISIBLE_DEVICES leaves. Raises NativeError if there is no driver or no such GPU.
    driver_version: what the driver gives, 1000 * major + 10 * minor of the newest CUDA that it knows.
    """

    def __init__(self, cubins: Cubins | None = None, *, ordinal: int = 0) -> None:
        self._cuda = LibCuda()
        self._cubins = cubins
        self._process = os.getpid()
        self._device = _opened(self._cuda, ordinal)
        number = c_int()
        self._cuda.call("cuDriverGetVersion", byref(number))
        self.driver_version = number.value
        self._facts = _facts(self._cuda, self._device)
        self._blocks: set[Address] = set()
        self._kernels: dict[str, LoadedKernel] = {}
        self._graphs: set[CudaGraph] = set()
        self._queued: dict[str, None] = {}  # kernels since the last wait, for messages
        self._recording: dict[str, None] | None = None
        self._stream = c_void_p()
        self._staging: Staging | None = None
        self._context: c_void_p | None = c_void_p()
        self._cuda.call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        try:
            self._cuda.call("cuCtxSetCurrent", self._context)
            self._cuda.call("cuStreamCreate", byref(self._stream), NON_BLOCKING)
            self._staging = Staging(self._cuda, self._stream)
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> DeviceFacts:
        """See `Device`."""
        return self._facts

    @property
    def cubins(self) -> Cubins:
        """The built kernels; NativeError if they are nowhere."""
        if self._cubins is None:
            self._cubins = Cubins.open()
        return self._cubins

    @property
    def free_memory(self) -> int:
        """See `Device`. Where the memory is the system's own, the driver counts what the system would give up
        (caches of files) as taken; the system knows better.
        """
        self._enter()
        free, total = c_size_t(), c_size_t()
        self._cuda.call("cuMemGetInfo_v2", byref(free), byref(total))
        system = available_memory() if self._facts.integrated else None
        return free.value if system is None else min(max(free.value, system), total.value)

    def allocate(self, size: int) -> Address:
        """See `Device`."""
        self._enter("allocated")
        address = c_uint64()
        try:
            self._cuda.call("cuMemAlloc_v2", byref(address), max(size, 1))
        except CudaError as error:
            if error.code != OUT_OF_MEMORY:
                raise
            raise ContextError(
                f"The GPU has no room for {format_bytes(size)}: {format_bytes(self.free_memory)} of "
                f"{format_bytes(self._facts.memory)} are free; choose a shorter context or a smaller model."
            ) from None
        self._blocks.add(address.value)
        self._cuda.call("cuMemsetD8Async", address, 0, max(size, 1), self._stream)
        return address.value

    def free(self, address: Address) -> None:
        """See `Device`."""
        if not address:
            return
        self._enter("freed")
        self._blocks.remove(address)
        self._cuda.call("cuMemFree_v2", address)

    def upload(self, to: Address, values: npt.NDArray[Any]) -> None:
        """See `Device`."""
        staging = self._enter("written")
        plain = np.ascontiguousarray(values)
        self._queue(lambda: staging.upload(to, plain.ctypes.data, plain.nbytes))

    def download(self, source: Address, into: npt.NDArray[Any]) -> None:
        """See `Device`."""
        staging = self._enter("read")
        assert into.flags.c_contiguous and into.flags.writeable
        self._wait(lambda: staging.download(source, into.ctypes.data, into.nbytes))

    def copy(self, to: Address, source: Address, size: int) -> None:
        """See `Device`."""
        self._enter()
        self._queue(lambda: self._cuda.call("cuMemcpyDtoDAsync_v2", to, source, size, self._stream))

    def launch(self, kernel: str, grid: Grid, arguments: Sequence[int | float]) -> None:
        """See `Device`."""
        self._enter()
        loaded = self._kernels.get(kernel)
        if loaded is None:
            loaded = self._kernels[kernel] = self._load(kernel)
        self._queue(lambda: loaded.launch(grid, arguments))
        (self._queued if self._recording is None else self._recording)[kernel] = None

    def record(self, work: Callable[[], None]) -> Graph:
        """See `Device`. Kernels that were never launched are loaded meanwhile."""
        self._enter("recorded")
        self._recording = {}
        graph = c_void_p()
        try:
            # Relaxed: else loading a kernel would spoil the recording.
            self._cuda.call("cuStreamBeginCapture_v2", self._stream, CAPTURE_RELAXED)
            try:
                work()
            except BaseException:
                if self._cuda.functions["cuStreamEndCapture"](self._stream, byref(graph)) == 0:
                    self._cuda.functions["cuGraphDestroy"](graph)
                raise
            self._cuda.call("cuStreamEndCapture", self._stream, byref(graph))
            made = CudaGraph(self, self._cuda, self._stream, graph, self._recording)
        finally:
            self._recording = None
        self._graphs.add(made)
        return made

    def synchronize(self) -> None:
        """See `Device`."""
        self._enter("waited for")
        self._wait(lambda: self._cuda.call("cuStreamSynchronize", self._stream))

    def timed(self, work: Callable[[], None]) -> float:
        """Seconds that the GPU takes for what `work` queues, between two events around it."""
        self._enter("timed")
        events = (c_void_p(), c_void_p())
        milliseconds = c_float()
        try:
            for event in events:
                self._cuda.call("cuEventCreate", byref(event), 0)
            self._cuda.call("cuEventRecord", events[0], self._stream)
            work()
            self._cuda.call("cuEventRecord", events[1], self._stream)
            self._wait(lambda: self._cuda.call("cuEventSynchronize", events[1]))
            self._cuda.call("cuEventElapsedTime", byref(milliseconds), *events)
        finally:
            for event in events:
                if event:
                    self._cuda.functions["cuEventDestroy_v2"](event)
        return milliseconds.value / 1000

    def close(self) -> None:
        """See `Device`. In a forked process, where nothing can be freed, nothing happens."""
        context, self._context = self._context, None
        if context is None or os.getpid() != self._process:
            return
        functions = self._cuda.functions  # failures are ignored: after a failed kernel every call fails
        functions["cuCtxSetCurrent"](context)
        if self._stream:
            functions["cuStreamSynchronize"](self._stream)
        for graph in self._graphs:
            graph.destroy()
        for kernel in self._kernels.values():
            kernel.unload()
        for address in self._blocks:
            functions["cuMemFree_v2"](address)
        if self._staging is not None:
            self._staging.close()
        if self._stream:
            functions["cuStreamDestroy_v2"](self._stream)
        functions["cuDevicePrimaryCtxRelease_v2"](self._device)

    def replay(self, graph: CudaGraph, launch: Callable[[], None], kernels: Iterable[str]) -> None:
        """What `CudaGraph.launch` does here: queue it, if it is still there."""
        self._enter("launched as graphs")
        if graph not in self._graphs:
            raise NativeError("The graph of launches is closed.")
        self._queue(launch)
        self._queued.update(dict.fromkeys(kernels))

    def forget(self, graph: CudaGraph) -> None:
        """What `CudaGraph.close` does here: free it, once."""
        if graph in self._graphs and self._context is not None and os.getpid() == self._process:
            self._enter("freed")
            self._graphs.remove(graph)
            graph.destroy()

    def _load(self, id: str) -> LoadedKernel:
        kernel = self.cubins.kernel(id)
        variant = self.cubins.choose(kernel, self._facts, self.driver_version)
        image = self.cubins.image(kernel, variant)
        return LoadedKernel(self._cuda, kernel, variant, image, self._stream, self._facts.shared_memory)

    def _enter(self, forbidden: str = "") -> Staging:
        """Make the context this thread's own. forbidden: what can't be done while launches are recorded."""
        if os.getpid() != self._process:
            raise NativeError(
                "This process was forked from the one that opened the GPU, and can't use it; start processes "
                "with `spawn`, and open it there."
            )
        if self._context is None or self._staging is None:
            raise NativeError("The GPU is closed.")
        if forbidden and self._recording is not None:
            raise NativeError(f"Nothing can be {forbidden} on the GPU while launches are recorded.")
        self._cuda.call("cuCtxSetCurrent", self._context)
        return self._staging

    def _wait(self, waiting: Callable[[], None]) -> None:
        """Wait for the queued work; if it failed, say which kernels it was."""
        try:
            waiting()
        except CudaError as error:
            raise self._failure(error) from None
        self._queued.clear()

    def _queue(self, work: Callable[[], None]) -> None:
        """Queue something; a failure of what was queued before is reported as such."""
        try:
            work()
        except CudaError as error:
            raise (self._failure(error) if error.late else error) from None

    def _failure(self, error: CudaError) -> NativeError:
        names = list(self._queued)
        listed = ", ".join(names[-_NAMED:]) + (" and others before" if len(names) > _NAMED else "")
        return NativeError(
            f"Work on the GPU failed, {self._cuda.reason(error.code)}, in one of the kernels since the last "
            f"wait ({listed or 'none'}); start again with CUDA_LAUNCH_BLOCKING=1 to see which one."
        )


class CudaGraph:
    """See `edge.executors.cuda.device.Graph`. kernels: the ids of what it launches."""

    def __init__(
        self, device: CudaDevice, cuda: LibCuda, stream: c_void_p, graph: c_void_p, kernels: Iterable[str]
    ) -> None:
        self._device = device
        self._cuda = cuda
        self._stream = stream
        self._kernels = tuple(kernels)
        self._executable = c_void_p()
        try:
            cuda.call("cuGraphInstantiateWithFlags", byref(self._executable), graph, 0)
        finally:
            cuda.functions["cuGraphDestroy"](graph)

    def launch(self) -> None:
        """See `Graph`."""
        queue = self._cuda.call
        self._device.replay(
            self, lambda: queue("cuGraphLaunch", self._executable, self._stream), self._kernels
        )

    def close(self) -> None:
        """See `Graph`."""
        self._device.forget(self)

    def destroy(self) -> None:
        """Free it; a failure is left to the driver."""
        self._cuda.functions["cuGraphExecDestroy"](self._executable)


def _opened(cuda: LibCuda, ordinal: int) -> int:
    """The CUdevice; NativeError, in a sentence of our own, where the reason is a common one."""
    device = c_int()
    try:
        cuda.call("cuInit", 0)
        cuda.call("cuDeviceGet", byref(device), ordinal)
    except CudaError as error:
        if error.code in (NO_DEVICE, INVALID_DEVICE):
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
            why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is '{hidden}')"
            raise NativeError(
                f"The NVIDIA driver finds no GPU {ordinal}{why}; choose one that it lists."
            ) from None
        if error.code == STUB_LIBRARY:
            raise NativeError(
                "The libcuda.so.1 that the loader finds is a stand-in for compiling and no driver; remove "
                "its folder from LD_LIBRARY_PATH."
            ) from None
        raise
    return device.value


def _facts(cuda: LibCuda, device: int) -> DeviceFacts:
    name = ctypes.create_string_buffer(256)
    cuda.call("cuDeviceGetName", name, len(name), device)
    memory = c_size_t()
    cuda.call("cuDeviceTotalMem_v2", byref(memory), device)

    def attribute(which: int) -> int:
        value = c_int()
        cuda.call("cuDeviceGetAttribute", byref(value), which, device)
        return value.value

    major, minor = (attribute(which) for which in COMPUTE_CAPABILITY)
    return DeviceFacts(
        name=name.value.decode(errors="replace"),
        architecture=10 * major + minor,
        memory=memory.value,
        multiprocessors=attribute(MULTIPROCESSORS),
        shared_memory=attribute(SHARED_MEMORY),
        integrated=bool(attribute(INTEGRATED)),
    )
