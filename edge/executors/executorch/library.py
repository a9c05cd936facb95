"""The C++ runner of exported .pte files, as `ctypes` sees it (`kernels/adapters/executorch/runner/runner.h`).

It links the C++ libraries of the installed executorch wheel: neither torch nor a module of it is loaded.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_uint64, c_void_p
from typing import Any

from edge.errors import NativeError
from edge.executors.adapters import executorch_library, executorch_runner

_DIMENSIONS = 2


class Input(ctypes.Structure):
    """`edge_et_input`: an int64 tensor."""

    _fields_ = (("data", c_void_p), ("dimensions", c_int32), ("sizes", c_int32 * _DIMENSIONS))


class Output(ctypes.Structure):
    """`edge_et_output`: where a result goes; no data: not wanted."""

    _fields_ = (("data", c_void_p), ("room", c_uint64), ("bytes", c_uint64))


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "edge_et_error": (c_char_p, ()),
    "edge_et_threads": (c_int, ()),
    "edge_et_open": (c_int, (c_void_p, c_uint64, c_int32, POINTER(c_void_p))),
    "edge_et_close": (None, (c_void_p,)),
    "edge_et_has": (c_int, (c_void_p, c_char_p)),
    "edge_et_constant": (c_int, (c_void_p, c_char_p, POINTER(c_int64), c_int32, POINTER(c_int32))),
    "edge_et_cache_create": (c_int, (c_void_p, POINTER(c_void_p))),
    "edge_et_cache_destroy": (None, (c_void_p,)),
    "edge_et_run": (c_int, (c_void_p, c_char_p, POINTER(Input), c_int32, POINTER(Output), c_int32)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The runner; NativeError if it can't be compiled."""
    opened = ctypes.CDLL(str(executorch_runner()))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(opened, name)
        function.restype, function.argtypes = result, arguments
    return opened


@functools.cache
def load_operators() -> None:
    """Register the operators of the full flavour; NativeError if they can't be compiled."""
    ctypes.CDLL(str(executorch_library()))


def check(status: int) -> None:
    """Raise NativeError with the runner's sentence if a call failed."""
    if status != 0:
        raise NativeError(library().edge_et_error().decode())
