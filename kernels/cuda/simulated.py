"""A device without a GPU: launches run in Triton's interpreter, on memory of this process.

Import it before any other module of `edge.kernels`: it turns the interpreter on. Slow, some milliseconds for
a program, but the same kernels, arguments and order of work as on a GPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import numpy.typing as npt
import torch
import triton.runtime.interpreter as interpreter
from triton.runtime.jit import JITFunction

from edge.errors import ContextError, NativeError
from edge.executors.cuda.device import Address, DeviceFacts, Grid
from edge.kernels.catalogue import ENTRIES
from edge.kernels.entry import Entry

_ALIGNMENT = 256
_DEPTH = 16
"""Columns that an instruction of the tensor cores sums up, of float16."""
_DTYPES = {
    "*fp16": torch.float16,
    "*bf16": torch.bfloat16,
    "*fp32": torch.float32,
    "*i32": torch.int32,
    "*i16": torch.int16,
    "*i8": torch.int8,
    "*u8": torch.uint8,
    "*u16": torch.uint16,
    "*u64": torch.uint64,
}
_SIMULATED = DeviceFacts(
    "Triton's interpreter", 87, memory=2**30, multiprocessors=4, shared_memory=99 << 10, integrated=True
)


def _exact_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    """Products and sums in float64, rounded after every 16 columns as they are in tensor cores: the
    interpreter's own take the order of a BLAS, which differs by shape, so that nothing could be compared bit
    by bit; and it takes bfloat16 for whole numbers.
    """

    def wide(handle: Any) -> npt.NDArray[np.float64]:
        if handle.dtype.scalar == interpreter.tl.bfloat16:
            return (handle.data.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return np.asarray(handle.data, np.float64)

    left, right, total = wide(a), wide(b), d.data
    for start in range(0, left.shape[-1], _DEPTH):
        part = np.matmul(left[..., start : start + _DEPTH], right[..., start : start + _DEPTH, :])
        total = (total.astype(np.float64) + part).astype(d.data.dtype)
    return interpreter.TensorHandle(total, d.dtype.scalar)


_patched: set[str] = set()  # modules whose view of the language is the interpreter's, in this launch


def _call_of_kernel(self: Any, *arguments: Any, **named: Any) -> Any:
    """A function that a kernel calls. The interpreter patches the language at each call, 2 ms; we once."""
    if self.fn.__module__ not in _patched:
        _patched.add(self.fn.__module__)
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*arguments, **named)


@cache
def _interpreted(function: Callable[..., Any]) -> Any:
    return interpreter.InterpretedFunction(function)


def _call_of_language(self: Any, *arguments: Any, **named: Any) -> Any:
    """A function of the language, where torch's compiler imported it before the interpreter was on."""
    return _interpreted(self.fn)(*arguments, **named)


interpreter.InterpreterBuilder.create_dot = _exact_dot
interpreter.InterpretedFunction.__call__ = _call_of_kernel
JITFunction.__call__ = _call_of_language
# A check of every sum, a third of the time, whose result is read in debug mode only.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


class SimulatedGraph:
    """Launches to be made again."""

    def __init__(self, launches: Sequence[Callable[[], None]]) -> None:
        self._launches = launches

    def launch(self) -> None:
        """Make all of them."""
        for launch in self._launches:
            launch()

    def close(self) -> None:
        """Nothing to free."""


class SimulatedDevice:
    """See `edge.executors.cuda.device.Device`; memory: bytes that it lets be allocated."""

    def __init__(self, memory: int = 2**30) -> None:
        self._memory = memory
        self._blocks: dict[Address, npt.NDArray[np.uint8]] = {}
        self._recorded: list[Callable[[], None]] | None = None
        self.launches = 0

    @property
    def facts(self) -> DeviceFacts:
        """Of no real device."""
        return _SIMULATED

    @property
    def free_memory(self) -> int:
        """What is left of `memory`."""
        return self._memory - sum(block.nbytes for block in self._blocks.values())

    def allocate(self, size: int) -> Address:
        """See `Device`."""
        if size + _ALIGNMENT > self.free_memory:
            raise ContextError(f"The device has no room for {size} bytes.")
        block = np.zeros(size + _ALIGNMENT, np.uint8)
        address = -(-block.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        self._blocks[address] = block
        return address

    def free(self, address: Address) -> None:
        """See `Device`."""
        if address:
            del self._blocks[address]

    def upload(self, to: Address, values: npt.NDArray[Any]) -> None:
        """See `Device`."""
        self._check_idle()
        plain = np.ascontiguousarray(values)
        ctypes.memmove(to, plain.ctypes.data, plain.nbytes)

    def download(self, source: Address, into: npt.NDArray[Any]) -> None:
        """See `Device`."""
        self._check_idle()
        assert into.flags.c_contiguous
        ctypes.memmove(into.ctypes.data, source, into.nbytes)

    def copy(self, to: Address, source: Address, size: int) -> None:
        """See `Device`."""
        self._queue(lambda: ctypes.memmove(to, source, size))

    def launch(self, kernel: str, grid: Grid, arguments: Sequence[int | float]) -> None:
        """See `Device`."""
        entry = ENTRIES[kernel]
        if len(arguments) != len(entry.signature):
            raise NativeError(f"{kernel} takes {len(entry.signature)} arguments, got {len(arguments)}.")
        given = [
            _argument(value, kind) for value, kind in zip(arguments, entry.signature.values(), strict=True)
        ]
        _check_aligned(entry, arguments)
        self._queue(lambda: self._run(entry, grid, given))

    def record(self, work: Callable[[], None]) -> SimulatedGraph:
        """See `Device`."""
        self._recorded = []
        try:
            work()
            return SimulatedGraph(self._recorded)
        finally:
            self._recorded = None

    def synchronize(self) -> None:
        """Everything has happened already."""

    def close(self) -> None:
        """See `Device`."""
        self._blocks.clear()

    def _run(self, entry: Entry, grid: Grid, given: Sequence[Any]) -> None:
        self.launches += 1
        _patched.clear()
        entry.function[grid](*given, **entry.constants)

    def _queue(self, work: Callable[[], Any]) -> None:
        if self._recorded is None:
            work()
        else:
            self._recorded.append(work)

    def _check_idle(self) -> None:
        if self._recorded is not None:
            raise NativeError("Memory can't be read or written while launches are recorded.")


def _argument(value: int | float, kind: str) -> Any:
    """A pointer as a tensor of one element, as the interpreter takes it."""
    if not kind.startswith("*"):
        return float(value) if kind == "fp32" else int(value)
    dtype = _DTYPES[kind]
    address = int(value)
    if address % 16:
        raise NativeError(f"The address {address} is no multiple of 16.")
    if not address:
        return torch.empty(1, dtype=dtype)
    memory = (ctypes.c_uint8 * dtype.itemsize).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)


def _check_aligned(entry: Entry, arguments: Sequence[int | float]) -> None:
    values = dict(zip(entry.signature, arguments, strict=True))
    for name in entry.aligned:
        if int(values[name]) % 16:
            raise NativeError(f"{entry.id} takes multiples of 16 as {name}, got {values[name]}.")
