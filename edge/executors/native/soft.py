"""Soft prompts on the native executor."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int32, c_uint32, c_void_p
from functools import cache
from typing import Any

import numpy as np

from edge.checkpoints.bita import SoftWeights
from edge.errors import NativeError
from edge.executors.native import library as native
from edge.executors.soft import SoftPrompt
from edge.system.guards import OneCall


class SoftShape(native.Record):
    """edge_soft_config"""

    _fields_ = (
        ("size", c_uint32),
        ("embeddings", c_int32),
        ("prefix", c_int32),
        *((name, c_void_p) for name in ("embedding", "keys", "values")),
    )


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "edge_soft_create": (c_int32, (c_void_p, POINTER(SoftShape), POINTER(c_void_p))),
    "edge_soft_destroy": (None, (c_void_p,)),
}


@cache
def soft_library() -> ctypes.CDLL:
    """libedge with the types of these functions set."""
    lib = native.library()
    for name, (result, arguments) in _FUNCTIONS.items():
        setattr(lib, name, native.checked(getattr(lib, name), result, arguments))
    return lib


class NativeSoftPrompt:
    """A `SoftPrompt` in libedge's own memory."""

    def __init__(self, weights: SoftWeights, model: ctypes.c_void_p, *, lock: OneCall) -> None:
        """model: the handle of an open `edge_model` of the weights' shape, whose calls `lock` is for."""
        lib, handle = soft_library(), ctypes.c_void_p()
        arrays = [
            np.ascontiguousarray(each, np.float32)
            for each in (weights.embeddings, weights.keys, weights.values)
        ]
        shape = SoftShape(
            ctypes.sizeof(SoftShape),
            len(weights.embeddings),
            weights.keys.shape[1],
            *(each.ctypes.data for each in arrays),
        )
        native.check(lib.edge_soft_create(model, ctypes.byref(shape), ctypes.byref(handle)))
        self._handle, self._lock = handle, lock
        self._count = len(weights.embeddings)
        self._finalizer = native.finalize(self, lib.edge_soft_destroy, handle)

    @property
    def count(self) -> int:
        """Embeddings."""
        return self._count

    def close(self) -> None:
        """Free it, after the pass that is under way. Does nothing in a forked process."""
        if not self._lock.is_inherited:
            with self._lock():
                self._finalizer()

    @property
    def handle(self) -> int | None:
        """Of libedge; NativeError if it is closed."""
        if not self._finalizer.alive:
            raise NativeError("The soft prompt is closed; open it again.")
        return self._handle.value


def soft_handle(prompt: SoftPrompt) -> int | None:
    """libedge's handle of a soft prompt; NativeError for one of another executor."""
    if not isinstance(prompt, NativeSoftPrompt):
        raise NativeError("This soft prompt belongs to another executor.")
    return prompt.handle
