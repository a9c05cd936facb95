"""The container of a GGUF file (versions 2 and 3): metadata, and tensors mapped into memory.

Read here and not by the `gguf` package, which believes every announced length (an array of 2^40 entries in a
file of 49 bytes keeps it busy until the memory is full) and makes two objects of every token. Here nothing is
read before its announced size is known to lie inside the file. What the tensors mean is `edge.checkpoints`'.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge.errors import CheckpointError
from edge.formats.model_folder import open_regular
from edge.formats.names import accept_name, shown

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LETTERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))  # struct's, by type
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # ggml's
_MOST_ENTRIES = 1 << 22  # of all arrays together; Gemma's vocabulary of 262,144 tokens has a quarter of that
_MOST_TEXT = 128 << 20  # bytes of the whole header
_FLOATS_AND_INTEGERS = {
    "F32": "<f4",
    "F16": "<f2",
    "F64": "<f8",
    "I8": "|i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
}


class GGUFTensor(NamedTuple):
    """shape: as the file has it, the row's length first. tensor_type: gguf.GGMLQuantizationType. data: mapped
    and read-only; numbers [rows, columns], or uint8 [rows, bytes of a row] for types that numpy lacks.
    """

    name: str
    shape: tuple[int, ...]
    tensor_type: Any
    data: npt.NDArray[Any]


class GGUFFile:
    """metadata: key -> bool, int, float, str or a list of them. tensors: in the file's order.

    Raises CheckpointError for a file that is missing, big-endian, truncated, or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                self._size = os.fstat(file.fileno()).st_size
                if file.read(4) != MAGIC:
                    raise CheckpointError(f"'{path}' is not a GGUF file (it does not start with 'GGUF').")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"Cannot read '{path}': {error.strerror or error}.") from None
        self._at = 4
        self._entries = 0
        version = self._number("I")
        if version & 0xFFFF == 0:
            raise CheckpointError(
                f"'{path}' is a big-endian GGUF file, which is not supported; get the usual one."
            )
        if version not in _VERSIONS:
            raise CheckpointError(f"'{path}' is a GGUF file of version {version}; versions 2 and 3 are read.")
        tensors, fields = self._count(24, "tensors"), self._count(13, "fields")
        self.metadata: dict[str, Any] = {}
        for _ in range(fields):
            key = accept_name(self._text(), path, CheckpointError)
            if key in self.metadata:
                raise self._damaged(f"its field {shown(key)} is there twice")
            self.metadata[key] = self._value(key)
        self.tensors = self._tensors([self._description() for _ in range(tensors)])

    def _value(self, key: str) -> Any:
        kind = self._number("I")
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._number(self._letter(kind, key))
        kind = self._number("I")
        if kind == _STRING:
            return [self._text() for _ in range(self._array(8, key))]
        letter = self._letter(kind, key)
        size = struct.calcsize(letter)
        count = self._array(size, key)
        start, self._at = self._at, self._at + count * size
        return list(struct.unpack(f"<{count}{letter}", self._map[start : self._at]))

    def _letter(self, kind: int, key: str) -> str:
        if kind not in _LETTERS:  # an array of arrays among them, which llama.cpp refuses too
            raise self._damaged(f"its field {shown(key)} is of the unknown type {kind}")
        return _LETTERS[kind]

    def _description(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type's number, and where the data starts behind the header."""
        name = accept_name(self._text(), self.path, CheckpointError)
        dimensions = self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise self._damaged(f"its tensor {shown(name)} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        return name, shape, self._number("I"), self._number("Q")

    def _tensors(self, descriptions: list[tuple[str, tuple[int, ...], int, int]]) -> list[GGUFTensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"its alignment {alignment!r:.40} is not a power of 2")
        start = self._at + -self._at % alignment
        tensors: dict[str, GGUFTensor] = {}
        places = []
        for name, shape, kind, offset in descriptions:
            if name in tensors:
                raise self._damaged(f"its tensor {shown(name)} is there twice")
            if offset % alignment:
                raise self._damaged(f"its tensor {shown(name)} is not aligned to {alignment} bytes")
            tensors[name], size = self._mapped(name, shape, kind, start + offset)
            places.append((offset, offset + size, name))
        places.sort()
        for (_, end, one), (begin, _, other) in itertools.pairwise(places):
            if begin < end:
                raise self._damaged(f"its tensors {shown(one)} and {shown(other)} overlap")
        return list(tensors.values())

    def _mapped(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> tuple[GGUFTensor, int]:
        """A tensor and its size in bytes."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            tensor_type = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[tensor_type]
        except (ValueError, KeyError):
            raise CheckpointError(
                f"Tensor {shown(name)} of '{self.path}' is of the type number {kind}, which is not supported."
            ) from None
        if 0 in shape:  # whose other sizes nothing would bound
            raise self._damaged(f"its tensor {shown(name)} is empty")
        columns = shape[0] if shape else 1
        if columns % block:
            raise self._damaged(f"a row of its tensor {shown(name)} is no whole number of blocks")
        size = math.prod(shape) // block * block_bytes
        if start + size > self._size:
            raise self._damaged(f"its tensor {shown(name)} reaches beyond its end")
        dtype = np.dtype(_FLOATS_AND_INTEGERS.get(tensor_type.name, "|u1"))
        rows = shape[:0:-1]
        last = columns if tensor_type.name in _FLOATS_AND_INTEGERS else columns // block * block_bytes
        data: npt.NDArray[Any] = np.frombuffer(self._map, dtype, size // dtype.itemsize, start)
        return GGUFTensor(name, shape, tensor_type, data.reshape(*rows, last)), size

    def _number(self, letter: str) -> Any:
        size = struct.calcsize(letter)
        self._need(size, 1, "its end")
        self._at += size
        return struct.unpack_from(f"<{letter}", self._map, self._at - size)[0]

    def _count(self, smallest: int, what: str) -> int:
        count: int = self._number("Q")
        self._need(smallest, count, f"{count} {what}")
        return count

    def _array(self, smallest: int, key: str) -> int:
        """The announced length of an array whose entries have at least so many bytes."""
        count = self._count(smallest, f"entries of {shown(key)}")
        self._entries += count
        if self._entries > _MOST_ENTRIES:
            raise self._damaged(f"its arrays have more than {_MOST_ENTRIES} entries")
        return count

    def _text(self) -> str:
        length = self._count(1, "bytes of text")
        self._at += length
        try:
            return self._map[self._at - length : self._at].decode()
        except UnicodeDecodeError:
            raise self._damaged("it has a text that is not UTF-8") from None

    def _need(self, size: int, count: int, what: str) -> None:
        if size * count > self._size - self._at:
            raise self._damaged(f"{what} can't be there")
        if self._at + size * count > _MOST_TEXT:
            raise self._damaged(f"its header has more than {_MOST_TEXT >> 20} MiB")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"'{self.path}' is truncated or damaged: its {self._size} bytes do not hold what its header "
            f"announces ({what}); download it again."
        )
