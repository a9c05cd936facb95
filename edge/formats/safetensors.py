"""Reads and writes safetensors files: memory-mapped on the way in, streamed and hashed on the way out.

The format: 8 bytes with the header's length, a JSON header, then the tensors' bytes without holes. Written
here rather than taken from a package because the reader must be zero-copy for types that numpy lacks, and the
writer must not hold the file in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError
from edge.formats.atomic import Partial
from edge.formats.guarded_json import parse_object
from edge.formats.model_folder import open_regular
from edge.formats.names import accept_name, shown

ALIGNMENT = 64
"""The data starts at a multiple of this many bytes; tensors whose sizes are multiples of it stay aligned."""

_DTYPES: dict[str, str] = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "F8_E4M3": "|u1",
    "F8_E5M2": "|u1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
_ADVICE = "copy or download the file again"
_MOST = 1 << 48  # of a size or an offset
_MOST_DIMENSIONS = 8
_WRITE_BYTES = (
    16 << 20
)  # a multiple of the huge page: file systems that can then cache the file in huge pages


class TensorEntry(NamedTuple):
    """What the header says of one tensor; dtype in safetensors' spelling."""

    dtype: str
    shape: tuple[int, ...]


def to_float32(raw: npt.NDArray[Any], dtype: str, where: str) -> npt.NDArray[np.float32]:
    """A contiguous float32 copy of an array of such a dtype.

    Raises CheckpointError, beginning with `where`, if it holds no floats.
    """
    if dtype == "BF16":
        return (raw.astype(np.uint32, order="C") << 16).view(np.float32)
    if dtype in ("F16", "F32", "F64"):
        return raw.astype(np.float32, order="C")
    raise CheckpointError(
        f"{where} has type {dtype}, but a floating-point type was expected; the file is probably quantized "
        "in a format that is not supported."
    )


class SafetensorsFile:
    """A memory-mapped safetensors file; the header is checked in full when it is opened.

    tensors: name -> (dtype, shape). metadata: the file's free text entries. Raises CheckpointError for a file
    that is missing, truncated or malformed. Arrays stay valid as long as somebody holds them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                if size < 8:
                    raise self._damaged(f"it has only {size} bytes")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                _ask_for_huge_pages(self._map)
        except OSError as error:
            raise CheckpointError(f"Cannot read '{self.path}': {error.strerror or error}.") from None
        length = int.from_bytes(self._map[:8], "little")
        if 8 + length > size:
            raise self._damaged("its header is longer than the file")
        header = parse_object(
            self._map[8 : 8 + length], f"The header of '{self.path}'", CheckpointError, _ADVICE
        )
        try:
            self.metadata: dict[str, str] = _metadata(header.pop("__metadata__", None))
            entries = {
                accept_name(name, self.path, CheckpointError): self._entry(name, entry)
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError):
            raise self._damaged("its header is not valid") from None
        self.data_start = 8 + length
        self._offsets = {name: offset for name, (_, offset) in entries.items()}
        self.tensors: dict[str, TensorEntry] = {name: entry for name, (entry, _) in entries.items()}
        end = 0
        for name in sorted(self._offsets, key=lambda name: (self._offsets[name], self.nbytes(name))):
            if self._offsets[name] != end:  # the format has neither holes nor overlaps
                raise self._damaged(f"its header places tensor '{name}' at {self._offsets[name]}, not {end}")
            end += self.nbytes(name)
        if self.data_start + end != size:
            raise self._damaged(f"it has {size} bytes, but its header asks for {self.data_start + end}")

    def nbytes(self, name: str) -> int:
        """Size of one tensor's data."""
        return _nbytes(*self.tensors[name])

    def offset(self, name: str) -> int:
        """Where one tensor's data starts in the file, in bytes."""
        return self.data_start + self._offsets[name]

    def array(self, name: str) -> npt.NDArray[Any]:
        """One tensor, zero-copy and read-only; BF16 appears as its uint16 bits, F8 as uint8."""
        if name not in self.tensors:
            raise CheckpointError(f"'{self.path}' has no tensor '{name}'.")
        dtype, shape = self.tensors[name]
        start = self.offset(name)
        flat: npt.NDArray[Any] = np.frombuffer(self._map, _DTYPES[dtype], math.prod(shape), start)
        return flat.reshape(shape)

    def read_float32(self, name: str) -> npt.NDArray[np.float32]:
        """One floating-point tensor converted to float32, a copy; its pages are given back to the system."""
        raw = self.array(name)
        values = to_float32(raw, self.tensors[name].dtype, f"Tensor '{name}' of '{self.path}'")
        self._release(name)
        return values

    def _release(self, name: str) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            start = self.offset(name)
            aligned = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, aligned, start + self.nbytes(name) - aligned)

    def _entry(self, name: str, entry: dict[str, Any]) -> tuple[TensorEntry, int]:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise CheckpointError(f"Tensor '{name}' of '{self.path}' has the unknown type {shown(dtype)}.")
        if not all(type(number) is int and 0 <= number < _MOST for number in (*shape, start, stop)):
            raise ValueError(name)
        if len(shape) > _MOST_DIMENSIONS:
            raise ValueError(name)
        if stop - start != _nbytes(dtype, shape):
            raise ValueError(name)
        return TensorEntry(dtype, shape), start

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"'{self.path}' is truncated or not a safetensors file ({what}); copy or download it again."
        )


def _metadata(entry: Any) -> dict[str, str]:
    if entry is None:
        return {}
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise ValueError("__metadata__")
    return entry


def _ask_for_huge_pages(mapping: mmap.mmap) -> None:
    """Before the first byte is touched: what is read in small pages stays in them."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)


def safetensors_layout(
    specs: Sequence[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """What stands before the data of a file with these tensors (see `SafetensorsWriter`), and offsets.

    The offsets are those of the tensors' data in the file, in bytes.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    starts, offset = {}, 0
    for name, dtype, shape in specs:
        start, offset = offset, offset + _nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, offset]}
        starts[name] = start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, {
        name: 8 + len(text) + start for name, start in starts.items()
    }


def _nbytes(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize


class SafetensorsWriter:
    """Writes a safetensors file piece by piece; use it as a context manager.

    specs: (name, dtype, shape) of every tensor, in the order in which the data will come. The file appears
    under its name, complete and synced, when the block ends without an error, and not at all otherwise.
    Afterwards `sha256` and `bytes` describe it.
    """

    def __init__(
        self,
        path: str | Path,
        specs: Sequence[tuple[str, str, tuple[int, ...]]],
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.sha256 = ""
        self.bytes = 0
        self._header, _ = safetensors_layout(specs, metadata)
        self._pending = [(name, _nbytes(dtype, shape)) for name, dtype, shape in reversed(specs)]
        self._hash = hashlib.sha256()

    def __enter__(self) -> SafetensorsWriter:
        self._partial = Partial(self.path)
        self._file = io.FileIO(self._partial.descriptor, "r+", closefd=False)
        self._buffer, self._filled = memoryview(bytearray(_WRITE_BYTES)), 0
        self._append(self._header)
        return self

    def write(self, name: str, data: npt.NDArray[Any]) -> None:
        """Append the bytes of `data` to tensor `name`; a tensor may come in several pieces."""
        if not data.nbytes:
            return
        while self._pending and not self._pending[-1][1]:
            self._pending.pop()
        if not self._pending or self._pending[-1][0] != name or data.nbytes > self._pending[-1][1]:
            raise ValueError(f"{data.nbytes} bytes of '{name}' do not belong here, {self._pending[-1:]} do")
        self._append(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        self._pending[-1] = (name, self._pending[-1][1] - data.nbytes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                return
            missing = [name for name, size in self._pending if size]
            if missing:
                raise ValueError(f"tensor '{missing[-1]}' was not written")
            self._flush()
            self._partial.keep()
            self.sha256 = self._hash.hexdigest()
        finally:
            self._partial.__exit__(kind, error, trace)

    def _append(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self.bytes += len(data)
        view = memoryview(data)
        while len(view):
            taken = min(len(view), _WRITE_BYTES - self._filled)
            self._buffer[self._filled : self._filled + taken] = view[:taken]
            self._filled += taken
            view = view[taken:]
            if self._filled == _WRITE_BYTES:
                self._flush()

    def _flush(self) -> None:
        rest = self._buffer[: self._filled]
        while len(rest):
            rest = rest[self._file.write(rest) :]
        self._filled = 0
