"""PyTorch's zip files (`pytorch_model.bin`) read without torch and without running anything from them.

A pickle is a program. This interpreter knows only the opcodes that `torch.save` writes for a state dict and
the few names that describe tensors; everything else is refused by name. Tensor data is mapped into memory.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError
from edge.formats.safetensors import TensorEntry, to_float32

_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_NUMPY |= {"I8": "|i1", "U8": "|u1", "BOOL": "|b1"}
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


class TorchFile:
    """A file of `torch.save` in the zip format (PyTorch 1.6 and later) that holds a state dict.

    tensors: name -> (dtype, shape), dtype in safetensors' spelling. Raises CheckpointError for a file that is
    damaged, of the older format, or holds anything but tensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                start = file.read(len(_OLD_FORMAT))
                if start == _OLD_FORMAT:
                    raise CheckpointError(
                        f"'{self.path}' is in PyTorch's old pickle format, which cannot be read safely; load "
                        "it with PyTorch and save it again, best as safetensors."
                    )
                if not start.startswith(b"PK"):
                    raise self._damaged("it is not a zip file")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with zipfile.ZipFile(self.path) as archive:
                self._entries = {entry.filename: entry for entry in archive.infolist()}
                pickles = [name for name in self._entries if name.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise self._damaged("it holds no data.pkl")
                self._folder = pickles[0].removesuffix("data.pkl")
                program = archive.read(pickles[0])
                order = archive.read(f"{self._folder}byteorder") if self._has("byteorder") else b"little"
        except OSError as error:
            raise CheckpointError(f"Cannot read '{self.path}': {error.strerror or error}.") from None
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise self._damaged(str(error)) from None
        if order != b"little":
            raise CheckpointError(f"'{self.path}' was saved on a big-endian machine, which is not supported.")
        state = self._run(program)
        if not isinstance(state, dict):
            raise CheckpointError(f"'{self.path}' holds a {type(state).__name__} instead of a state dict.")
        self._tensors = {
            name: value
            for name, value in state.items()
            if isinstance(value, _Tensor) and isinstance(name, str)
        }
        self.tensors = {name: TensorEntry(t.storage.dtype, t.shape) for name, t in self._tensors.items()}
        for name in self._tensors:
            self._check(name)

    def array(self, name: str) -> npt.NDArray[Any]:
        """One tensor, zero-copy and read-only, maybe strided; BF16 appears as its uint16 bits."""
        if name not in self._tensors:
            raise CheckpointError(f"'{self.path}' has no tensor '{name}'.")
        tensor = self._tensors[name]
        dtype, size = tensor.storage.dtype, np.dtype(_NUMPY[tensor.storage.dtype]).itemsize
        start = self._data_start(tensor.storage.key) + tensor.offset * size
        flat: npt.NDArray[Any] = np.frombuffer(self._map, _NUMPY[dtype], tensor.span, start)
        steps = [stride * size for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)

    def read_float32(self, name: str) -> npt.NDArray[np.float32]:
        """One floating-point tensor as float32, a copy."""
        raw = self.array(name)
        return to_float32(raw, self.tensors[name].dtype, f"Tensor '{name}' of '{self.path}'")

    def _check(self, name: str) -> None:
        """Every index that the tensor's shape and strides can form must lie inside its storage's bytes."""
        tensor = self._tensors[name]
        entry = self._entries.get(f"{self._folder}data/{tensor.storage.key}")
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise self._damaged(f"the data of tensor '{name}' is missing or compressed")
        needed = (tensor.offset + tensor.span) * np.dtype(_NUMPY[tensor.storage.dtype]).itemsize
        if needed > entry.file_size or self._data_start(tensor.storage.key) + needed > len(self._map):
            raise self._damaged(f"tensor '{name}' reaches beyond its data")

    def _data_start(self, key: str) -> int:
        """Where an entry's bytes start: after its local header, which ends in two parts of any length."""
        at = self._entries[f"{self._folder}data/{key}"].header_offset
        lengths = self._map[at + 26 : at + 30]
        return at + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")

    def _has(self, name: str) -> bool:
        return f"{self._folder}{name}" in self._entries

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"'{self.path}' is truncated or not a PyTorch checkpoint ({what}); copy or download it again."
        )

    def _run(self, program: bytes) -> Any:
        try:
            return _interpret(program)
        except _RefusedError as refused:
            raise CheckpointError(
                f"'{self.path}' asks for {refused}, which is more than tensors; it was not run. Use a "
                "safetensors file, or one you trust saved again as a plain state dict."
            ) from None
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise self._damaged(f"its pickle is invalid: {error}") from None


class _RefusedError(Exception):
    """The pickle asks for something that is not on the list."""


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    """offset and strides in elements"""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the first to the last that the strides reach."""
        if not math.prod(self.shape):
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True)
class _Global:
    """A name in the pickle: something to call, or the type of a storage."""

    name: str
    call: Callable[..., Any] | None = None
    dtype: str | None = None


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """torch._utils._rebuild_tensor_v2; what follows (gradient flag, hooks) does not matter here"""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor is not made of a storage and sizes")
    if len(shape) != len(strides):
        raise ValueError("a tensor's shape and strides differ in length")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_GLOBALS = {
    "collections OrderedDict": _Global("OrderedDict", lambda items=(): dict(items)),
    "torch._utils _rebuild_tensor_v2": _Global("_rebuild_tensor_v2", _rebuild_tensor),
    "torch._utils _rebuild_parameter": _Global("_rebuild_parameter", lambda tensor, *_: tensor),
    **{f"torch {name}": _Global(name, dtype=dtype) for name, dtype in _STORAGES.items()},
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)


def _interpret(program: bytes) -> Any:
    """Run the pickle; nothing outside this file is ever imported or called."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def popped() -> list[Any]:
        """Everything above the last mark."""
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for opcode, value, _ in pickletools.genops(program):
        name, argument = opcode.name, cast(Any, value)
        if name in ("PROTO", "FRAME"):
            continue
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(popped()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_global(f"{module} {attribute}"))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Global) or function.call is None:
                raise _RefusedError(f"a call of {getattr(function, 'name', type(function).__name__)}")
            stack.append(function.call(*arguments))
        elif name == "SETITEM":
            items = [stack.pop(-2), stack.pop()]
            _fill(stack[-1], items)
        elif name == "SETITEMS":
            items = popped()
            _fill(stack[-1], items)
        elif name in ("APPEND", "APPENDS"):
            values = popped() if name == "APPENDS" else [stack.pop()]
            if type(stack[-1]) is not list:
                raise _RefusedError("an append to something that is not a list")
            stack[-1].extend(values)
        elif name == "BUILD":  # a state dict's `_metadata`, which nothing here needs
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise _RefusedError("the state of an object")
        elif name == "STOP":
            return stack.pop()
        else:
            raise _RefusedError(f"the pickle operation {name}")
    raise ValueError("no end")


def _fill(target: Any, items: list[Any]) -> None:
    if type(target) is not dict:
        raise _RefusedError("items in something that is not a dict")
    target.update(zip(items[::2], items[1::2], strict=True))


def _global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise _RefusedError(f"'{name.replace(' ', '.')}'")
    return _GLOBALS[name]


def _storage(identity: Any) -> _Storage:
    kind, storage_type, key, _location, _count = identity
    if kind != "storage" or not isinstance(storage_type, _Global) or storage_type.dtype is None:
        raise ValueError("an unknown kind of storage")
    if not isinstance(key, str):
        raise ValueError("a storage without a key")
    return _Storage(storage_type.dtype, key)
