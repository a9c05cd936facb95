"""What a tensor of a draft is read from: a tensor of a file, a packed matrix, or two halves of one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo
from edge.checkpoints.int4_linear import Int4Linear
from edge.checkpoints.opened import Stored
from edge.errors import CheckpointError
from edge.quant.layout import PAD_COLUMNS
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme

Floats = npt.NDArray[np.float32]


class Matrix(Protocol):
    """One tensor of a checkpoint. info: what is known of it without reading it."""

    @property
    def info(self) -> TensorInfo: ...

    def read(self) -> Floats | QuantizedMatrix:
        """In the scheme that `info` names."""

    def read_float32(self) -> Floats:
        """Exactly as the file means it."""


class Plain:
    """A tensor of floats, or of ternary values saved as such.

    where: its folder in quotes. CheckpointError for another type.
    """

    def __init__(self, name: str, stored: Stored, where: str) -> None:
        self._stored = stored
        self.info = stored.describe(name, where)

    def read(self) -> Floats | QuantizedMatrix:
        """See `Matrix`."""
        values = self.read_float32()
        return values if self.info.scheme.is_float else quantize(values, self.info.scheme, self.info.name)

    def read_float32(self) -> Floats:
        """See `Matrix`."""
        return self._stored.read_float32()


class Flat:
    """A matrix of one row as a vector. where: its folder in quotes; CheckpointError for another shape."""

    def __init__(self, name: str, stored: Stored, where: str) -> None:
        row = stored.describe(name, where)
        if len(row.shape) != 2 or row.shape[0] != 1:
            raise CheckpointError(
                f"Tensor '{name}' of {where} has shape {shape_text(row.shape)}, but one row was expected; "
                "weights and configuration belong to different drafts."
            )
        self._stored = stored
        self.info = TensorInfo(name, row.shape[1:], row.source_type, QuantScheme("f32"))

    def read(self) -> Floats:
        """See `Matrix`."""
        return self.read_float32()

    def read_float32(self) -> Floats:
        """See `Matrix`."""
        return self._stored.read_float32().reshape(-1)


class Packed:
    """A matrix that came in 4 bits."""

    def __init__(self, name: str, linear: Int4Linear) -> None:
        self._linear = linear
        self.info = TensorInfo(name, linear.shape, linear.source_type, linear.scheme, linear.exact)

    def read(self) -> QuantizedMatrix:
        """See `Matrix`."""
        return self._linear.read()

    def read_float32(self) -> Floats:
        """See `Matrix`."""
        return self._linear.read_float32()


class SideBySide:
    """A matrix that came in two halves: the first has the first columns.

    The scheme is that of the halves where they have one in common, else float16. where: their folder in
    quotes. CheckpointError for halves of different shapes.
    """

    def __init__(self, name: str, first: Matrix, second: Matrix, where: str) -> None:
        one, other = first.info, second.info
        if len(one.shape) != 2 or one.shape != other.shape:
            raise CheckpointError(
                f"'{one.name}' and '{other.name}' of {where}, two halves of a matrix, have the shapes "
                f"{shape_text(one.shape)} and {shape_text(other.shape)}; they belong to different drafts."
            )
        self._halves = (first, second)
        rows, columns = one.shape
        scheme = _common(one.scheme, other.scheme, columns)
        self.info = TensorInfo(
            name,
            (rows, 2 * columns),
            one.source_type,
            scheme or QuantScheme("f16"),
            scheme is not None and one.exact and other.exact,
        )

    def read(self) -> Floats | QuantizedMatrix:
        """See `Matrix`."""
        if self.info.scheme.is_float:
            return self.read_float32()
        halves = [half.read() for half in self._halves]
        parts = [half for half in halves if isinstance(half, QuantizedMatrix)]
        minimums = [part.minimums for part in parts if part.minimums is not None]
        return QuantizedMatrix(
            self.info.scheme,
            np.concatenate([part.codes for part in parts], axis=1),
            np.concatenate([part.scales for part in parts], axis=1),
            np.concatenate(minimums, axis=1) if minimums else None,
        )

    def read_float32(self) -> Floats:
        """See `Matrix`."""
        return np.concatenate([half.read_float32() for half in self._halves], axis=1)


def _common(first: QuantScheme, second: QuantScheme, columns: int) -> QuantScheme | None:
    """The scheme of two matrices of so many columns side by side; None if they have none in common."""
    if first != second:
        return None
    group = first.group or columns
    if first.is_float:
        return first
    return None if columns % group or group % PAD_COLUMNS else QuantScheme(first.kind, group, first.minimum)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape in a message."""
    return "x".join(map(str, shape)) or "scalar"
