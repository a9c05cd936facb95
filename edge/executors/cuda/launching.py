"""A loaded kernel and its arguments, as `cuLaunchKernel` takes them."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from ctypes import addressof, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from typing import Any

from edge.errors import NativeError
from edge.executors.cuda.device import Grid
from edge.executors.cuda.libcuda import (
    ERROR_LOG,
    ERROR_LOG_SIZE,
    JIT_COMPILER_NOT_FOUND,
    MAX_DYNAMIC_SHARED,
    LibCuda,
)
from edge.executors.cuda.manifest import Kernel, Variant

THREADS = 32  # of a warp
_MOST_X, _MOST_YZ = 2**31 - 1, 2**16 - 1
_ALIGNMENT = 16
_UNASKED_SHARED = 48 << 10
_LOG = 2000  # bytes
_SCALARS: dict[str, Any] = {"i32": c_int32, "i64": c_int64, "fp32": c_float}
_RANGES = {"i32": (-(2**31), 2**31 - 1), "i64": (-(2**63), 2**63 - 1)}
_ADDRESSES = (0, 2**64 - 1)


class LoadedKernel:
    """A kernel in the memory of the device.

    image: a cubin or PTX. stream: the queue of its launches. limit: bytes of shared memory that a block can
    have. NativeError if the device does not take it.
    """

    def __init__(
        self, cuda: LibCuda, kernel: Kernel, variant: Variant, image: bytes, stream: c_void_p, limit: int
    ) -> None:
        if kernel.shared > limit:
            raise NativeError(
                f"The kernel {kernel.id} needs {kernel.shared} bytes of shared memory, and a block can have "
                f"{limit} on this GPU; use another device."
            )
        self._cuda = cuda
        self._kernel = kernel
        self._stream = stream
        self._threads, self._shared = THREADS * kernel.warps, kernel.shared
        self._start = cuda.functions["cuLaunchKernel"]
        self._module = self._load(variant, image)
        self._function = c_void_p()
        try:
            cuda.call("cuModuleGetFunction", byref(self._function), self._module, kernel.symbol.encode())
            if kernel.shared > _UNASKED_SHARED:
                cuda.call("cuFuncSetAttribute", self._function, MAX_DYNAMIC_SHARED, kernel.shared)
        except NativeError as error:
            self.unload()
            raise NativeError(f"The kernel {kernel.id} can't be used: {error}") from None
        kinds = [_SCALARS.get(kind, c_uint64) for kind in kernel.signature.values()]
        self._values = [kind() for kind in kinds]
        self._scratch = [c_void_p() for _ in range(kernel.scratch)]
        every = [*self._values, *self._scratch]
        self._pointers = (c_void_p * len(every))(*(addressof(value) for value in every))
        # By position: name, least and largest value of whole numbers (None: any float), what divides it.
        self._rules = [
            (
                name,
                None if kind == "fp32" else _RANGES.get(kind, _ADDRESSES),
                _ALIGNMENT if kind.startswith("*") or name in kernel.aligned else 1,
            )
            for name, kind in kernel.signature.items()
        ]

    def launch(self, grid: Grid, arguments: Sequence[int | float]) -> None:
        """Queue it; NativeError, which names it, for arguments that it does not take and if that fails."""
        self._set(arguments)
        x, y, z = map(operator.index, grid)
        if not (0 < x <= _MOST_X and 0 < y <= _MOST_YZ and 0 < z <= _MOST_YZ):
            raise NativeError(f"{self._kernel.id} can't be launched as {grid} programs.")
        code = self._start(
            self._function, x, y, z, self._threads, 1, 1, self._shared, self._stream, self._pointers, None
        )
        if code:
            raise self._cuda.error(code, f"Launching the kernel {self._kernel.id}")

    def unload(self) -> None:
        """Free it; a failure is left to the driver."""
        self._cuda.functions["cuModuleUnload"](self._module)

    def _set(self, arguments: Sequence[Any]) -> None:
        if len(arguments) != len(self._rules):
            raise NativeError(
                f"{self._kernel.id} takes {len(self._rules)} arguments "
                f"({', '.join(self._kernel.signature)}), got {len(arguments)}."
            )
        for place, value, (name, limits, divisor) in zip(self._values, arguments, self._rules, strict=True):
            if limits is None:
                place.value = float(value)
                continue
            try:
                whole = operator.index(value)
            except TypeError:
                raise self._refusal(name, value, "a whole number") from None
            if not limits[0] <= whole <= limits[1]:
                raise self._refusal(name, value, f"a number from {limits[0]} to {limits[1]}")
            if whole % divisor:
                raise self._refusal(name, value, f"a multiple of {divisor}")
            place.value = whole

    def _refusal(self, name: str, value: object, wanted: str) -> NativeError:
        return NativeError(f"{self._kernel.id} takes {wanted} as {name}, got {value!r}.")

    def _load(self, variant: Variant, image: bytes) -> c_void_p:
        module = c_void_p()
        log = ctypes.create_string_buffer(_LOG)
        options = (c_int * 2)(ERROR_LOG, ERROR_LOG_SIZE)
        values = (c_void_p * 2)(addressof(log), _LOG)
        code = self._cuda.functions["cuModuleLoadDataEx"](
            byref(module), c_char_p(image), 2 if variant.is_ptx else 0, options, values
        )
        if code:
            said = log.value.decode(errors="replace").strip()
            more = f": {said}" if said else ""
            if code == JIT_COMPILER_NOT_FOUND:
                more = "; libnvidia-ptxjitcompiler.so.1 comes with the driver, install it whole"
            raise self._cuda.error(code, f"Loading the kernel {self._kernel.id} as {variant.name}", more)
        return module
