"""Opens libedge and types its C interface (`kernels/include/edge.h`), once for all callers."""

from __future__ import annotations

import ctypes
import hashlib
import operator
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from pathlib import Path
from typing import Any

import edge
from edge.errors import ContextError, EdgeError, NativeError, TokenizerError
from edge.quant.layout import MatrixLayout

ABI_VERSION = 2
CACHE_LAYOUT = 2
CACHE_PAGE = 256
MAX_TREE = 64
MAX_LOGPROBS = 64
LIBRARY_VARIABLE = "EDGE_LIBRARY"
"""Environment variable with the path of another build of the library, for example a sanitized one."""

_FILE_NAME = "libedge.dylib" if sys.platform == "darwin" else "libedge.so"

_CONTEXT, _VOCABULARY = 3, 5
UNSUPPORTED = 6
"""The status of a call that this CPU, build or system lacks."""

ACTIVATIONS = {"int8": 0, "float32": 1, "int16": 2}
KV_TYPE = {"float16": 0, "float32": 1, "int8": 2, "int16": 3, "int4": 4}

_INTEGERS: dict[Any, tuple[int, int]] = {
    c_int32: (-(2**31), 2**31 - 1),
    c_uint32: (0, 2**32 - 1),
    c_int64: (-(2**63), 2**63 - 1),
    c_uint64: (0, 2**64 - 1),
}
"""Least and largest value of C's integer types."""


def check_integer(value: Any, kind: Any, name: str) -> None:
    """NativeError for what an integer type of C does not hold: ctypes would keep its low bits."""
    least, most = _INTEGERS[kind]
    try:
        fits = least <= operator.index(value) <= most
    except TypeError:
        fits = False
    if not fits:
        raise NativeError(f"{name} must be a whole number from {least} to {most}, got {value!r}.")


class Record(ctypes.Structure):
    """A structure whose integers are checked when it is made."""

    def __init__(self, *values: Any, **named: Any) -> None:
        kinds = dict(self._fields_)  # type: ignore[arg-type]
        for name, value in {**dict(zip(kinds, values, strict=False)), **named}.items():
            if kinds[name] in _INTEGERS:
                check_integer(value, kinds[name], f"{type(self).__name__}.{name}")
        super().__init__(*values, **named)


def checked(function: Any, result: Any, arguments: Sequence[Any]) -> Callable[..., Any]:
    """A function of the library with its types set, which refuses integers that do not fit them."""
    function.restype, function.argtypes = result, arguments
    integers = [(at, kind) for at, kind in enumerate(arguments) if kind in _INTEGERS]
    if not integers:
        return function

    def call(*given: Any) -> Any:
        for at, kind in integers:
            check_integer(given[at], kind, f"{function.__name__}'s argument {at + 1}")
        return function(*given)

    return call


_task = ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_int64, c_int32)


class Parallel(ctypes.Structure):
    """edge_parallel"""

    _fields_ = (
        ("context", c_void_p),
        ("workers", c_int32),
        ("run", ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_int64, _task, c_void_p)),
    )


class Scratch(ctypes.Structure):
    """edge_scratch"""

    _fields_ = (("context", c_void_p), ("allocate", ctypes.CFUNCTYPE(c_void_p, c_void_p, c_uint64)))


class Matrix(Record):
    """edge_matrix"""

    _fields_ = (
        ("kind", c_int32),
        ("group", c_int32),
        ("minimum", c_int32),
        ("reserved", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("data", c_void_p),
        ("bytes", c_uint64),
    )


def matrix(packing: MatrixLayout, rows: int, columns: int, address: int) -> Matrix:
    """A packed matrix at an address; NativeError for a layout that libedge has no kernels for."""
    kernel = packing.layout.kernel
    if kernel is None:
        raise NativeError(
            f"The native kernels can't compute on the layout {packing.id}; choose another quantization, or "
            "the executor that the layout was made for."
        )
    return Matrix(
        kind=kernel,
        group=packing.group,
        minimum=int(packing.minimum),
        rows=rows,
        columns=columns,
        data=address,
        bytes=packing.packed_bytes(rows, columns),
    )


class Roofline(ctypes.Structure):
    """edge_roofline"""

    _fields_ = tuple(
        (name, c_double)
        for name in ("read_bytes_per_second", "int8_per_second", "float_per_second", "region_seconds")
    )


class Sparse(Record):
    """edge_sparse"""

    _fields_ = tuple(
        (name, c_int32)
        for name in (
            *("enabled", "kernel_size", "kernel_stride", "block_size"),
            *("init_blocks", "window_size", "topk", "dense_len", "exact_lse"),
        )
    )


class Config(Record):
    """edge_config"""

    _fields_ = (
        ("size", c_uint32),
        *(
            (name, c_int32)
            for name in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "layers",
                "heads",
                "kv_heads",
                "head_dim",
            )
        ),
        *((name, c_int32) for name in ("context", "max_batch", "activations", "kv_type")),
        *(
            (name, c_float)
            for name in ("rms_norm_eps", "embedding_scale", "residual_scale", "logit_scale", "rope_scale")
        ),
        ("inverse_frequency", POINTER(c_float)),
        ("sparse", Sparse),
        ("layers_without_rope", POINTER(c_uint8)),
    )


class Weight(Record):
    """edge_weight"""

    _fields_ = (("role", c_int32), ("layer", c_int32), ("matrix", Matrix))


class Step(Record):
    """edge_step"""

    _fields_ = (
        ("size", c_uint32),
        ("n", c_int32),
        ("cache", c_void_p),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("tree", c_void_p),
        ("logits_count", c_int32),
        ("layer_count", c_int32),
        ("layer_indices", c_void_p),
        ("hidden", c_void_p),
        ("layer_outputs", c_void_p),
        ("status", c_int32),
        ("error", ctypes.c_char * 244),
        ("soft", c_void_p),
        ("soft_count", c_int32),
    )


class Event(ctypes.Structure):
    """edge_event"""

    _fields_ = (
        ("operation", c_char_p),
        ("kernel", c_char_p),
        ("layer", c_int32),
        ("reserved", c_int32),
        ("start_ns", c_int64),
        ("nanoseconds", c_int64),
        ("bytes", c_uint64),
        ("operations", c_uint64),
        ("output", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("stride", c_int64),
    )


Observer = ctypes.CFUNCTYPE(None, c_void_p, POINTER(Event))
"""edge_observer"""


class Sampling(Record):
    """edge_sampling"""

    _fields_ = (
        ("size", c_uint32),
        ("temperature", c_float),
        ("top_k", c_int32),
        *((name, c_float) for name in ("top_p", "min_p", "typical_p")),
        *((name, c_float) for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")),
        ("logprobs", c_int32),
    )


class Draw(Record):
    """edge_draw"""

    _fields_ = (
        ("size", c_uint32),
        ("vocab_size", c_int32),
        ("logits", c_void_p),
        ("allowed", c_void_p),
        ("history", c_void_p),
        ("bias_tokens", c_void_p),
        ("bias_values", c_void_p),
        ("history_length", c_int32),
        ("bias_count", c_int32),
        ("seed", c_uint64),
        ("index", c_uint64),
        ("choice", c_uint64),
        ("want_logprob", c_int32),
    )


class SampleResult(ctypes.Structure):
    """edge_sample_result"""

    _fields_ = (
        ("token", c_int32),
        ("logprob", c_float),
        ("top_tokens", c_int32 * MAX_LOGPROBS),
        ("top_logprobs", c_float * MAX_LOGPROBS),
    )


class Drawn(ctypes.Structure):
    """edge_drawn"""

    _fields_ = (("count", c_int32), ("tokens", c_int32 * MAX_TREE), ("rows", c_int32 * MAX_TREE))


_STATUS = c_int32
_FUNCTIONS = {
    "edge_abi_version": (c_int32, ()),
    "edge_last_error": (c_char_p, ()),
    "edge_pool_create": (_STATUS, (c_int32, POINTER(c_void_p))),
    "edge_pool_destroy": (None, (c_void_p,)),
    "edge_pool_parallel": (Parallel, (c_void_p,)),
    "edge_pool_join": (None, (c_void_p,)),
    "edge_default_threads": (c_int32, ()),
    "edge_cpu_tiers": (c_char_p, ()),
    "edge_self_test": (_STATUS, (c_char_p,)),
    "edge_measure_roofline": (
        _STATUS,
        (POINTER(Parallel), c_char_p, c_void_p, c_uint64, POINTER(Roofline)),
    ),
    "edge_region_create": (_STATUS, (c_uint64, POINTER(c_void_p))),
    "edge_region_destroy": (None, (c_void_p, c_uint64)),
    "edge_region_rest": (_STATUS, (c_void_p, c_uint64, c_int32)),
    "edge_region_move": (_STATUS, (c_void_p, c_void_p, c_uint64)),
    "edge_mapping_prefault": (_STATUS, (c_void_p, c_uint64)),
    "edge_linear": (
        _STATUS,
        (
            *(POINTER(Parallel), POINTER(Scratch), c_char_p),
            *(POINTER(Matrix), c_int32, c_void_p, c_int64, c_void_p),
        ),
    ),
    "edge_linear_kernel": (c_char_p, (POINTER(Matrix), c_int32)),
    "edge_dequantize_row": (_STATUS, (POINTER(Matrix), c_int64, c_void_p)),
    "edge_rms_norm": (
        _STATUS,
        (
            *(POINTER(Parallel), POINTER(Scratch), c_char_p),
            *(c_void_p, c_void_p, c_float, c_float, c_int64, c_int64, c_void_p),
        ),
    ),
    "edge_attention": (
        _STATUS,
        (
            *(POINTER(Parallel), c_char_p, c_int32, c_int32, c_int32, c_int32, POINTER(Sparse)),
            *(c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p),
        ),
    ),
    "edge_model_create": (
        _STATUS,
        (POINTER(Config), POINTER(Weight), c_int64, POINTER(Parallel), c_char_p, POINTER(c_void_p)),
    ),
    "edge_model_replace": (_STATUS, (c_void_p, POINTER(Weight), c_int64)),
    "edge_model_destroy": (None, (c_void_p,)),
    "edge_model_tier": (c_char_p, (c_void_p,)),
    "edge_model_workspace_bytes": (c_uint64, (c_void_p,)),
    "edge_model_observe": (_STATUS, (c_void_p, Observer, c_void_p)),
    "edge_cache_create": (_STATUS, (c_void_p, POINTER(c_void_p))),
    "edge_model_cache_bytes": (c_uint64, (c_void_p,)),
    "edge_cache_destroy": (None, (c_void_p,)),
    "edge_cache_length": (c_int64, (c_void_p,)),
    "edge_cache_truncate": (_STATUS, (c_void_p, c_int64)),
    "edge_cache_keep": (_STATUS, (c_void_p, c_int64, c_void_p, c_int64)),
    "edge_cache_repeat": (_STATUS, (c_void_p, c_int64)),
    "edge_cache_fork": (_STATUS, (c_void_p, c_int64, c_void_p)),
    "edge_cache_page": (_STATUS, (c_void_p, c_int64, POINTER(c_void_p), POINTER(c_uint64))),
    "edge_cache_restore": (_STATUS, (c_void_p, c_int64, c_void_p, c_uint64)),
    "edge_forward": (_STATUS, (c_void_p, POINTER(Step), c_int32, c_void_p)),
    "edge_decode": (_STATUS, (c_void_p, POINTER(Step), c_void_p, c_int32, c_void_p, c_void_p)),
    "edge_sample": (_STATUS, (POINTER(Sampling), POINTER(Draw), POINTER(SampleResult))),
    "edge_draw_along": (_STATUS, (POINTER(Sampling), POINTER(Draw), POINTER(Step), POINTER(Drawn))),
    "edge_philox": (None, (POINTER(c_uint32), POINTER(c_uint32), POINTER(c_uint32))),
}
_INSTANT = ("edge_cache_length",)
"""Functions during which no other Python thread is let in: to get back in after it would take far longer."""


def path() -> Path:
    """Where libedge is; NativeError if it is missing."""
    override = os.environ.get(LIBRARY_VARIABLE)
    if override:
        return Path(override)
    for folder in edge.__path__:  # an editable install has two: sources and built files
        candidate = Path(folder) / "executors" / "native" / _FILE_NAME
        if candidate.is_file():
            return candidate
    raise NativeError(
        f"The native library {_FILE_NAME} is missing; build it with `pip install .` (or `make chat`)."
    )


@cache
def library() -> ctypes.CDLL:
    """The opened library with its types set; NativeError if it is missing or of another version."""
    where = path()
    try:
        lib = ctypes.CDLL(str(where))
    except OSError as error:
        raise NativeError(f"The native library '{where}' can't be opened: {error}.") from None
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(lib, name, None)
        if function is None:
            raise NativeError(
                f"The native library '{where}' lacks {name}; build it again with `pip install .`."
            )
        if name in _INSTANT:
            function = getattr(ctypes.PyDLL(str(where)), name)
        setattr(lib, name, checked(function, result, arguments))
    if lib.edge_abi_version() != ABI_VERSION:
        raise NativeError(
            f"The native library '{where}' has interface {lib.edge_abi_version()}, "
            f"this package needs {ABI_VERSION}; rebuild it with `pip install .`."
        )
    return lib


def check(status: int) -> None:
    """Raise the EdgeError that belongs to a status of libedge; nothing for EDGE_OK."""
    if status != 0:
        raise error_of(status, library().edge_last_error())


def error_of(status: int, sentence: bytes) -> EdgeError:
    """The error that belongs to a status other than EDGE_OK."""
    kind = {_CONTEXT: ContextError, _VOCABULARY: TokenizerError}.get(status, NativeError)
    return kind(sentence.decode(errors="replace"))


@cache
def content_hash() -> str:
    """SHA-256 of the library's file, so that files of what it computed name it."""
    return hashlib.sha256(path().read_bytes()).hexdigest()


def cpu_tiers() -> tuple[str, ...]:
    """Kernel tiers that this CPU can run, best first."""
    return tuple(library().edge_cpu_tiers().decode().split(","))


def default_threads() -> int:
    """Performance cores within this process's affinity mask and cgroup quota."""
    return int(library().edge_default_threads())


def finalize(owner: object, destroy: Any, *handle: Any) -> weakref.finalize[Any, Any]:
    """Destroy with the owner, but not at exit: another thread may still be inside the library then.

    Nor in a forked process, where the threads that it would wait for do not exist.
    """
    process = os.getpid()

    def destroy_here() -> None:
        if os.getpid() == process:
            destroy(*handle)

    finalizer = weakref.finalize(owner, destroy_here)
    finalizer.atexit = False
    return finalizer
