"""The operators of a decoder layer over numpy arrays (`kernels/include/edge_operators.h`).

For executors that keep caches of host runtimes, and for tests. Arrays are dense and float32 unless said
otherwise; caches are changed in place. A call that libedge refuses raises the EdgeError of its status.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import KVType
from edge.executors.checks import integers
from edge.executors.native import library as native

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Masks = npt.NDArray[np.uint64]


class Host(ctypes.Structure):
    """edge_host"""

    _fields_ = (
        ("parallel", POINTER(native.Parallel)),
        ("scratch", POINTER(native.Scratch)),
        ("tier", c_char_p),
    )


EXPORTED_KV: KVType = "float16"
"""What the caches of exported graphs hold: most of them go to ARM, where int16 is no faster."""


class LayerCache(native.Record):
    """edge_layer_cache, without its memory."""

    _fields_ = (
        *((name, c_int32) for name in ("kv_type", "heads", "kv_heads", "head_dim")),
        ("capacity", c_int64),
        ("sparse", native.Sparse),
        ("memory", c_void_p),
        ("bytes", c_uint64),
    )

    def size(self) -> int:
        """Bytes that it takes."""
        found = c_uint64()
        native.check(_library().edge_layer_cache_bytes(ctypes.byref(self), ctypes.byref(found)))
        return found.value

    def over(self, memory: Bytes) -> LayerCache:
        """The same with its memory."""
        held = LayerCache.from_buffer_copy(self)
        held.memory, held.bytes = memory.ctypes.data, memory.nbytes
        return held


_MATRIX = POINTER(native.Matrix)
_CACHE = POINTER(LayerCache)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "edge_embedding": (POINTER(Host), _MATRIX, c_void_p, c_int64, c_float, c_void_p),
    "edge_rope_table": (c_void_p, c_int64, c_void_p, c_int64, c_float, c_void_p),
    "edge_rms_norm_linear": (
        *(POINTER(Host), c_void_p, c_int64, c_void_p, c_float, c_float),
        *(_MATRIX, c_int32, c_int32, c_void_p),
    ),
    "edge_rms_norm_swiglu": (
        *(POINTER(Host), c_void_p, c_int64, c_void_p, c_float),
        *(_MATRIX, _MATRIX, c_int32, c_void_p),
    ),
    "edge_linear_residual": (
        *(POINTER(Host), c_void_p, c_int64, _MATRIX, c_void_p, c_float, c_int32, c_void_p),
    ),
    "edge_layer_cache_bytes": (_CACHE, POINTER(c_uint64)),
    "edge_kv_append": (*(POINTER(Host), _CACHE, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p),),
    "edge_paged_attention": (POINTER(Host), _CACHE, c_void_p, c_int64, c_int64, c_void_p, c_void_p),
    "edge_kv_keep": (POINTER(Host), _CACHE, c_void_p, c_int64, c_int64),
}


@cache
def _library() -> ctypes.CDLL:
    lib = native.library()
    for name, arguments in _FUNCTIONS.items():
        setattr(lib, name, native.checked(getattr(lib, name), c_int32, arguments))
    return lib


class LayerOperators:
    """Runs the operators on the threads of `parallel`, in the memory of `scratch`.

    tier: None for the best kernels of this CPU.
    """

    def __init__(self, parallel: native.Parallel, scratch: native.Scratch, tier: str | None = None) -> None:
        self._host = Host(
            ctypes.pointer(parallel), ctypes.pointer(scratch), None if tier is None else tier.encode()
        )

    def embedding(self, w: native.Matrix, tokens: Sequence[int], scale: float) -> Floats:
        """Rows of w, times `scale` -> [n, columns]."""
        ids = integers(tokens, "tokens", np.int64)
        out = np.empty((ids.size, w.columns), np.float32)
        self._call("embedding", ctypes.byref(w), ids.ctypes.data, ids.size, scale, out.ctypes.data)
        return out

    def rope_table(self, positions: Sequence[int], inverse_frequency: Floats, scale: float) -> Floats:
        """Cosines and sines -> [n, 2, half]."""
        at = integers(positions, "positions", np.int64)
        out = np.empty((at.size, 2, inverse_frequency.size), np.float32)
        native.check(
            _library().edge_rope_table(
                *(at.ctypes.data, at.size, inverse_frequency.ctypes.data, inverse_frequency.size, scale),
                out.ctypes.data,
            )
        )
        return out

    def rms_norm(self, x: Floats, norm: Floats, eps: float, scale: float) -> Floats:
        """x [n, columns] -> the same shape."""
        rows = np.ascontiguousarray(x, np.float32)
        out = np.empty_like(rows)
        native.check(
            native.library().edge_rms_norm(
                *(self._host.parallel, self._host.scratch, self._host.tier, rows.ctypes.data),
                *(norm.ctypes.data, eps, scale, *rows.shape, out.ctypes.data),
            )
        )
        return out

    def rms_norm_linear(
        self,
        x: Floats,
        norm: Floats,
        eps: float,
        scale: float,
        weights: Sequence[native.Matrix],
        activations: str,
    ) -> Floats:
        """x [n, columns] -> [n, sum of rows]."""
        rows = np.ascontiguousarray(x, np.float32)
        out = np.empty((len(rows), sum(w.rows for w in weights)), np.float32)
        matrices = (native.Matrix * len(weights))(*weights)
        self._call(
            "rms_norm_linear",
            *(rows.ctypes.data, len(rows), norm.ctypes.data, eps, scale),
            *(matrices, len(weights), native.ACTIVATIONS[activations], out.ctypes.data),
        )
        return out

    def rms_norm_swiglu(
        self, x: Floats, norm: Floats, eps: float, gate: native.Matrix, up: native.Matrix, activations: str
    ) -> Floats:
        """x [n, columns] -> [n, rows]."""
        rows = np.ascontiguousarray(x, np.float32)
        out = np.empty((len(rows), gate.rows), np.float32)
        self._call(
            "rms_norm_swiglu",
            *(rows.ctypes.data, len(rows), norm.ctypes.data, eps),
            *(ctypes.byref(gate), ctypes.byref(up), native.ACTIVATIONS[activations], out.ctypes.data),
        )
        return out

    def linear(
        self,
        x: Floats,
        w: native.Matrix,
        activations: str,
        residual: Floats | None = None,
        scale: float = 1.0,
    ) -> Floats:
        """x [n, columns] -> [n, rows], added to the residual."""
        rows = np.ascontiguousarray(x, np.float32)
        out = np.empty((len(rows), w.rows), np.float32)
        base = None if residual is None else residual.ctypes.data
        self._call(
            "linear_residual",
            *(rows.ctypes.data, len(rows), ctypes.byref(w), base, scale),
            *(native.ACTIVATIONS[activations], out.ctypes.data),
        )
        return out

    def kv_append(
        self,
        cache: LayerCache,
        memory: Bytes,
        qkv: Floats,
        rope: Floats,
        start: int,
        tree: Masks | None = None,
    ) -> Floats:
        """qkv [n, (heads + 2 KV heads) head_dim], rope [n, 2, half] -> queries [n, heads head_dim]."""
        rows = np.ascontiguousarray(qkv, np.float32)
        out = np.empty((len(rows), cache.heads * cache.head_dim), np.float32)
        held = cache.over(memory)
        self._call(
            "kv_append",
            *(ctypes.byref(held), rows.ctypes.data, rope.ctypes.data, len(rows), start),
            *(None if tree is None else tree.ctypes.data, out.ctypes.data),
        )
        return out

    def paged_attention(
        self, cache: LayerCache, memory: Bytes, queries: Floats, start: int, tree: Masks | None = None
    ) -> Floats:
        """queries [n, heads x head_dim] of rows start .. start + n -> the same shape."""
        rows = np.ascontiguousarray(queries, np.float32)
        out = np.empty_like(rows)
        held = cache.over(memory)
        self._call(
            "paged_attention",
            *(ctypes.byref(held), rows.ctypes.data, len(rows), start),
            *(None if tree is None else tree.ctypes.data, out.ctypes.data),
        )
        return out

    def kv_keep(self, cache: LayerCache, memory: Bytes, rows: Sequence[int], start: int) -> None:
        """After the first `start` rows keep the given ones (absolute, ascending)."""
        kept = integers(rows, "rows", np.int64)
        held = cache.over(memory)
        self._call("kv_keep", ctypes.byref(held), kept.ctypes.data, kept.size, start)

    def _call(self, name: str, *arguments: Any) -> None:
        native.check(getattr(_library(), f"edge_{name}")(ctypes.byref(self._host), *arguments))
