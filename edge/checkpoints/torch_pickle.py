"""PyTorch's zip files (`pytorch_model.bin`) read without torch and without running anything from them.

A pickle is a program. This interpreter knows only the opcodes that `torch.save` writes for a state dict and
the few names that describe tensors; everything else is refused by name. Tensor data is mapped into memory.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError
from edge.formats.model_folder import open_regular
from edge.formats.names import accept_name, shown
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


_ZIP_ERRORS = (zipfile.BadZipFile, struct.error, zlib.error, EOFError, RuntimeError, ValueError, LookupError)
_MOST_SMALL = 16 << 20  # bytes of a pickle, and of the table of contents; those of checkpoints have kilobytes
_MOST_OPERATIONS = 1 << 19  # of a pickle, some 35 for each tensor
_MOST_ARGUMENTS = {"OrderedDict": 0, "_rebuild_tensor_v2": 8, "_rebuild_parameter": 4}
_MOST_DIMENSIONS = 8
_MOST_SHARED = 4  # bytes of all tensors over those stored: tied tensors share, bombs share a thousandfold


class _Archive:
    """A file of `torch.save` in the zip format (PyTorch 1.6 and later). saved: what it holds, with `_Tensor`
    for tensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open_regular(self.path) as file:
                start = file.read(len(_OLD_FORMAT))
                if start == _OLD_FORMAT:
                    raise CheckpointError(
                        f"'{self.path}' is in PyTorch's old pickle format, which cannot be read safely; load "
                        "it with PyTorch and save it again, best as safetensors."
                    )
                if not start.startswith(b"PK"):
                    raise self.damaged("it is not a zip file")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                with zipfile.ZipFile(cast(BinaryIO, _ShortReads(file))) as archive:
                    self._entries = {entry.filename: entry for entry in archive.infolist()}
                    pickles = [name for name in self._entries if name.endswith("/data.pkl")]
                    if len(pickles) != 1:
                        raise self.damaged("it holds no data.pkl")
                    self._folder = pickles[0].removesuffix("data.pkl")
                    program = self._stored(archive, pickles[0])
                    order = f"{self._folder}byteorder"
                    order_text = self._stored(archive, order) if order in self._entries else b"little"
        except OSError as error:
            raise CheckpointError(f"Cannot read '{self.path}': {error.strerror or error}.") from None
        except _ZIP_ERRORS as error:
            raise self.damaged(f"{error!s:.80}") from None
        if order_text != b"little":
            raise CheckpointError(f"'{self.path}' was saved on a big-endian machine, which is not supported.")
        self.saved = self._run(program)

    def array_of(self, tensor: _Tensor) -> npt.NDArray[Any]:
        """A tensor that `check` let pass, zero-copy and read-only, maybe strided; BF16 as its uint16 bits."""
        storage = tensor.storage
        start = self._data_start(storage) + tensor.offset * storage.itemsize
        flat: npt.NDArray[Any] = np.frombuffer(self._map, _NUMPY[storage.dtype], tensor.span, start)
        steps = [stride * storage.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)

    def check(self, name: str, tensor: _Tensor) -> None:
        """Every index that the tensor's shape and strides can form must lie inside its storage's bytes.

        A tensor may not be larger than its storage either: a stride of 0 makes gigabytes of one number.
        """
        entry = self._entries.get(self._data_entry(tensor.storage))
        if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.header_offset < 0:
            raise self.damaged(f"the data of tensor '{name}' is missing or compressed")
        needed = (tensor.offset + tensor.span) * tensor.storage.itemsize
        if needed > entry.file_size or self._data_start(tensor.storage) + needed > len(self._map):
            raise self.damaged(f"tensor '{name}' reaches beyond its data")
        if tensor.bytes > entry.file_size:
            raise self.damaged(f"tensor '{name}' repeats its data")

    def stored_bytes(self, storage: _Storage) -> int:
        """Size of the data that a checked tensor lies in."""
        return self._entries[self._data_entry(storage)].file_size

    def _data_entry(self, storage: _Storage) -> str:
        return f"{self._folder}data/{storage.key}"

    def _data_start(self, storage: _Storage) -> int:
        """Where an entry's bytes start: after its local header, which ends in two parts of any length."""
        at = self._entries[self._data_entry(storage)].header_offset
        lengths = self._map[at + 26 : at + 30]
        return at + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")

    def _stored(self, archive: zipfile.ZipFile, name: str) -> bytes:
        """A small entry. `torch.save` compresses nothing, and what is not compressed can't grow."""
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise self.damaged("its entries are compressed")
        if entry.file_size > _MOST_SMALL:
            raise self.damaged(f"its pickle has more than {_MOST_SMALL >> 20} MiB")
        return archive.read(entry)

    def damaged(self, what: str) -> CheckpointError:
        """The error for a file of which that is wrong."""
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
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
            raise self.damaged(f"its pickle is invalid: {error!s:.80}") from None


class TorchFile(_Archive):
    """A file of `torch.save` that holds a state dict.

    tensors: name -> (dtype, shape), dtype in safetensors' spelling. Raises CheckpointError for a file that is
    damaged, of the older format, or holds anything but tensors.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        if not isinstance(self.saved, dict):
            kind = type(self.saved).__name__.removeprefix("_").lower()
            raise CheckpointError(f"'{self.path}' holds a {kind} instead of a state dict.")
        self._tensors = {
            accept_name(name, self.path, CheckpointError): value
            for name, value in self.saved.items()
            if isinstance(value, _Tensor)
        }
        self.tensors = {name: TensorEntry(t.storage.dtype, t.shape) for name, t in self._tensors.items()}
        for name, tensor in self._tensors.items():
            self.check(name, tensor)
        storages = {tensor.storage for tensor in self._tensors.values()}
        stored = sum(map(self.stored_bytes, storages))
        if sum(tensor.bytes for tensor in self._tensors.values()) > _MOST_SHARED * stored:
            raise self.damaged("its tensors share one another's data over and over")

    def array(self, name: str) -> npt.NDArray[Any]:
        """One tensor, zero-copy and read-only, maybe strided; BF16 appears as its uint16 bits."""
        if name not in self._tensors:
            raise CheckpointError(f"'{self.path}' has no tensor '{name}'.")
        return self.array_of(self._tensors[name])

    def read_float32(self, name: str) -> npt.NDArray[np.float32]:
        """One floating-point tensor as float32, a copy."""
        raw = self.array(name)
        return to_float32(raw, self.tensors[name].dtype, f"Tensor '{name}' of '{self.path}'")


def read_integers(path: str | Path) -> npt.NDArray[np.int64]:
    """The list or one-dimensional tensor of whole numbers that `torch.save` wrote into a file.

    Raises CheckpointError for a file that is damaged, of the older format, or holds anything else.
    """
    archive = _Archive(path)
    saved = archive.saved
    if isinstance(saved, _Tensor):
        archive.check("the only one", saved)
        values = archive.array_of(saved)
        if values.ndim == 1 and values.dtype.kind in "iu" and saved.storage.dtype != "BF16":
            return values.astype(np.int64)
    elif isinstance(saved, list) and all(type(each) is int and abs(each) < 1 << 63 for each in saved):
        return np.array(saved, np.int64)
    raise CheckpointError(
        f"'{archive.path}' holds no list of whole numbers; give a file with a list or a one-dimensional "
        "tensor of them."
    )


class _ShortReads:
    """A file for zipfile, which reads its table of contents at once, however large that is announced."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        """Like a file's; BadZipFile for more than any table of contents has."""
        data = self._file.read(_MOST_SMALL + 1 if size < 0 else min(size, _MOST_SMALL + 1))
        if len(data) > _MOST_SMALL:
            raise zipfile.BadZipFile("its table of contents is too long")
        return data


class _RefusedError(Exception):
    """The pickle asks for something that is not on the list."""


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return np.dtype(_NUMPY[self.dtype]).itemsize


@dataclass(frozen=True)
class _Tensor:
    """offset and strides in elements"""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the tensor by itself."""
        return math.prod(self.shape) * self.storage.itemsize

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
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise ValueError("a tensor's shape and strides differ in length")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {len(shape)} dimensions")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        raise ValueError("a tensor is not made of a storage and sizes")
    return _Tensor(storage, offset, shape, strides)


_GLOBALS = {
    "collections OrderedDict": _Global("OrderedDict", dict),
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

    for count, (opcode, value, _) in enumerate(pickletools.genops(program)):
        name, argument = opcode.name, cast(Any, value)
        if count > _MOST_OPERATIONS:
            raise ValueError(f"it has more than {_MOST_OPERATIONS} operations")
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
            length = int(name[-1])
            stack[-length:] = [tuple(stack[-length:])]
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
            if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS[function.name]:
                raise _RefusedError(f"{function.name} with other arguments than PyTorch writes")
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
    if not all(type(key) is str or (type(key) is int and abs(key) < 1 << 31) for key in items[::2]):
        raise _RefusedError("a key that is no text")  # others can be made to collide, which takes hours
    target.update(zip(items[::2], items[1::2], strict=True))


def _global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise _RefusedError(shown(name.replace(" ", ".")))
    return _GLOBALS[name]


def _storage(identity: Any) -> _Storage:
    kind, storage_type, key, _location, _count = identity
    if kind != "storage" or not isinstance(storage_type, _Global) or storage_type.dtype is None:
        raise ValueError("an unknown kind of storage")
    if not isinstance(key, str):
        raise ValueError("a storage without a key")
    return _Storage(storage_type.dtype, key)
