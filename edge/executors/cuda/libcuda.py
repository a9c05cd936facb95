"""The CUDA driver's C interface (`cuda.h`) through ctypes: what is used of it, and what failures mean.

Only `libcuda.so.1` is opened, which comes with the driver; functions have the suffixes (`_v2`) that the
header gives them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any

from edge.errors import NativeError

LIBRARY_VARIABLE = "EDGE_LIBCUDA"
"""Environment variable with the path of the driver's library, where the loader does not find it."""

OUT_OF_MEMORY, STUB_LIBRARY, NO_DEVICE, INVALID_DEVICE = 2, 34, 100, 101
JIT_COMPILER_NOT_FOUND, LAUNCH_OUT_OF_RESOURCES = 221, 701
COMPUTE_CAPABILITY = (75, 76)  # of CUdevice_attribute: major, minor
MULTIPROCESSORS, INTEGRATED, SHARED_MEMORY = 16, 18, 97
NON_BLOCKING = 1
CAPTURE_RELAXED = 2
MAX_DYNAMIC_SHARED = 8
ERROR_LOG, ERROR_LOG_SIZE = 5, 6
EVENT_WITHOUT_TIMING = 2

_Address = c_uint64  # CUdeviceptr
_FUNCTIONS: dict[str, tuple[str, Sequence[Any]]] = {
    "cuGetErrorName": ("Asking for an error's name", (c_int, POINTER(c_char_p))),
    "cuGetErrorString": ("Asking for an error's meaning", (c_int, POINTER(c_char_p))),
    "cuInit": ("Starting CUDA", (c_uint,)),
    "cuDriverGetVersion": ("Asking the driver's version", (POINTER(c_int),)),
    "cuDeviceGet": ("Choosing the GPU", (POINTER(c_int), c_int)),
    "cuDeviceGetName": ("Asking the GPU's name", (c_char_p, c_int, c_int)),
    "cuDeviceTotalMem_v2": ("Asking the GPU's memory", (POINTER(c_size_t), c_int)),
    "cuDeviceGetAttribute": ("Asking what the GPU can do", (POINTER(c_int), c_int, c_int)),
    "cuDevicePrimaryCtxRetain": ("Opening the GPU", (POINTER(c_void_p), c_int)),
    "cuDevicePrimaryCtxRelease_v2": ("Closing the GPU", (c_int,)),
    "cuCtxSetCurrent": ("Using the GPU", (c_void_p,)),
    "cuMemGetInfo_v2": ("Asking for free memory", (POINTER(c_size_t), POINTER(c_size_t))),
    "cuMemAlloc_v2": ("Allocating memory of the GPU", (POINTER(_Address), c_size_t)),
    "cuMemFree_v2": ("Freeing memory of the GPU", (_Address,)),
    "cuMemHostAlloc": ("Allocating pinned memory", (POINTER(c_void_p), c_size_t, c_uint)),
    "cuMemFreeHost": ("Freeing pinned memory", (c_void_p,)),
    "cuMemsetD8Async": ("Clearing memory of the GPU", (_Address, c_ubyte, c_size_t, c_void_p)),
    "cuMemcpyHtoDAsync_v2": ("Copying to the GPU", (_Address, c_void_p, c_size_t, c_void_p)),
    "cuMemcpyDtoHAsync_v2": ("Copying from the GPU", (c_void_p, _Address, c_size_t, c_void_p)),
    "cuMemcpyDtoDAsync_v2": ("Copying within the GPU", (_Address, _Address, c_size_t, c_void_p)),
    "cuStreamCreate": ("Making a queue", (POINTER(c_void_p), c_uint)),
    "cuStreamDestroy_v2": ("Freeing a queue", (c_void_p,)),
    "cuStreamSynchronize": ("Waiting for the GPU", (c_void_p,)),
    "cuStreamBeginCapture_v2": ("Recording launches", (c_void_p, c_int)),
    "cuStreamEndCapture": ("Recording launches", (c_void_p, POINTER(c_void_p))),
    "cuGraphInstantiateWithFlags": ("Making a graph of launches", (POINTER(c_void_p), c_void_p, c_uint64)),
    "cuGraphLaunch": ("Launching a graph", (c_void_p, c_void_p)),
    "cuGraphExecDestroy": ("Freeing a graph", (c_void_p,)),
    "cuGraphDestroy": ("Freeing a graph", (c_void_p,)),
    "cuEventCreate": ("Making an event", (POINTER(c_void_p), c_uint)),
    "cuEventRecord": ("Recording an event", (c_void_p, c_void_p)),
    "cuEventSynchronize": ("Waiting for the GPU", (c_void_p,)),
    "cuEventElapsedTime": ("Reading the time between events", (POINTER(c_float), c_void_p, c_void_p)),
    "cuEventDestroy_v2": ("Freeing an event", (c_void_p,)),
    "cuModuleLoadDataEx": (
        "Loading a kernel",
        (POINTER(c_void_p), c_char_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
    ),
    "cuModuleUnload": ("Unloading a kernel", (c_void_p,)),
    "cuModuleGetFunction": ("Finding a kernel", (POINTER(c_void_p), c_void_p, c_char_p)),
    "cuFuncSetAttribute": ("Giving a kernel its shared memory", (c_void_p, c_int, c_int)),
    "cuLaunchKernel": (
        "Launching a kernel",
        (c_void_p, *(c_uint,) * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
    ),
}


class CudaError(NativeError):
    """A call of the driver failed. code: its CUresult. late: work that was queued before is at fault."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code
        self.late = 700 <= code < 800 and code != LAUNCH_OUT_OF_RESOURCES


class MissingDriverError(NativeError):
    """There is no CUDA driver on this machine."""


class LibCuda:
    """The driver's library; NativeError if it is missing or too old to have every function.

    functions: by name, typed; they return a CUresult. `call` is the same with failures raised.
    """

    def __init__(self) -> None:
        path = os.environ.get(LIBRARY_VARIABLE) or "libcuda.so.1"
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            raise MissingDriverError(
                f"There is no NVIDIA driver here ({error}); install the driver, which on Jetson comes with "
                "JetPack."
            ) from None
        self.functions: dict[str, Any] = {}
        for name, (_, arguments) in _FUNCTIONS.items():
            function = getattr(library, name, None)
            if function is None:
                raise NativeError(f"The NVIDIA driver is too old: it lacks {name}; update it.")
            function.restype, function.argtypes = c_int, arguments
            self.functions[name] = function

    def call(self, function: str, *arguments: Any) -> None:
        """Call it; CudaError if it fails."""
        code = self.functions[function](*arguments)
        if code:
            raise self.error(code, _FUNCTIONS[function][0])

    def error(self, code: int, doing: str, more: str = "") -> CudaError:
        """The error of a failed call, as one sentence: what failed, and why in the driver's words."""
        return CudaError(f"{doing} failed: {self.reason(code)}{more}.", code)

    def reason(self, code: int) -> str:
        """What a CUresult means, and its name."""
        found = []
        for function in ("cuGetErrorString", "cuGetErrorName"):
            text = c_char_p()
            known = self.functions[function](code, ctypes.byref(text)) == 0
            found.append(text.value.decode(errors="replace") if known and text.value else f"error {code}")
        return f"{found[0]} ({found[1]})"
