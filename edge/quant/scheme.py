"""How a weight matrix is quantized: one description for quantizers, bundles and kernels.

The byte layout that belongs to a scheme is written down in `edge.quant.packing`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError

Kind = Literal["f32", "f16", "int8", "int4", "ternary"]

TILE_ROWS = 16
"""Rows that are interleaved in a tile of the canonical layout."""
PAD_COLUMNS = 32
"""Every group is padded with zeros to a multiple of this many columns."""
LAYOUT_ALIGNMENT = 64
"""The packed size of a matrix is rounded up to this many bytes."""

_DEFAULT_GROUP: dict[Kind, int] = {"int4": 32, "int8": 32, "ternary": 128}
_BITS = {"f32": 32, "f16": 16, "int8": 8, "int4": 4, "ternary": 2}
_LAYOUT = {"f32": "f32.row", "f16": "f16.n16", "int8": "i8.n16k4", "int4": "i4.n16k8", "ternary": "t2.n16k16"}


@dataclass(frozen=True)
class QuantScheme:
    """Bits, groups and offsets of one matrix.

    kind: `f32` (plain rows, only for norms), `f16`, `int8` and `int4` (weight = scale * code, codes centred
    on zero unless `minimum`), `ternary` (-1, 0 or 1 times the scale).
    group: columns that share a scale, a multiple of 32; 0 means one scale per row; the last group may be
    ragged. Floats have no groups.
    minimum: int4 only: weight = scale * code + minimum with code in 0..15 (as GGUF's Q4_1).
    """

    kind: Kind
    group: int = 0
    minimum: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise BundleError(f"Unknown quantization kind '{self.kind}'; known: {', '.join(get_args(Kind))}.")
        if self.group < 0 or self.group % PAD_COLUMNS:
            raise BundleError(
                f"Quantization group {self.group} must be 0 (per row) or a multiple of {PAD_COLUMNS}."
            )
        if self.minimum and self.kind != "int4":
            raise BundleError(f"Only int4 weights can have a per-group minimum, not {self.kind}.")
        if self.group and self.kind in ("f32", "f16"):
            raise BundleError(f"{self.kind} weights have no quantization group, got {self.group}.")

    @classmethod
    def from_name(cls, name: str, group: int | None = None) -> QuantScheme:
        """The scheme that a command-line name stands for: `int4`, `int8` and `ternary`, symmetric, or `f16`.

        group: columns per scale, 0 = one per row; by default 32 for int4 and int8, 128 for ternary.
        """
        if name == "f16" or (group is None and "-" in name):
            return cls.parse(name)
        for kind, default in _DEFAULT_GROUP.items():
            if name == kind:
                return cls(kind, default if group is None else group)
        if name == "none":
            raise BundleError("The quantization 'none' is called 'source' now; give that.")
        raise BundleError(f"Unknown quantization '{name}'; choose one of {', '.join(_DEFAULT_GROUP)}, f16.")

    @classmethod
    def parse(cls, text: str) -> QuantScheme:
        """Inverse of `str`: `int4-g32-min`, `ternary-row`, `f16`."""
        kind, _, rest = text.partition("-")
        group, _, minimum = rest.partition("-")
        scheme = cls(cast(Kind, kind), int(group[1:]) if group[1:].isdigit() else 0, minimum == "min")
        if str(scheme) != text:
            raise BundleError(f"Unknown quantization '{text}'.")
        return scheme

    @property
    def is_float(self) -> bool:
        """True for f32 and f16, which have neither scales nor groups."""
        return self.kind in ("f32", "f16")

    @property
    def bits(self) -> int:
        """Bits per code, scales not counted."""
        return _BITS[self.kind]

    @property
    def layout(self) -> str:
        """Identifier of the byte layout, for example `i4.n16k8.g32.min.v1`."""
        if self.is_float:
            return f"{_LAYOUT[self.kind]}.v1"
        group = f"g{self.group}" if self.group else "row"
        return f"{_LAYOUT[self.kind]}.{group}{'.min' if self.minimum else ''}.v1"

    @property
    def compact_layout(self) -> str | None:
        """Identifier of the smaller byte layout of `edge.quant.base3`, which ternary matrices have."""
        return self.layout.replace("t2.", "t3.", 1) if self.kind == "ternary" else None

    def __str__(self) -> str:
        if self.is_float:
            return self.kind
        return f"{self.kind}-{f'g{self.group}' if self.group else 'row'}{'-min' if self.minimum else ''}"

    def groups(self, columns: int) -> int:
        """Number of groups in a row of `columns` weights."""
        if self.is_float:
            return 0
        return -(-columns // self.group) if self.group else 1

    def packed_bytes(self, rows: int, columns: int) -> int:
        """Size in bytes of a `rows` x `columns` matrix in the canonical layout."""
        if self.kind == "f32":
            size = rows * columns * 4
        else:
            tiles = -(-rows // TILE_ROWS)
            padded = -(-columns // PAD_COLUMNS) * PAD_COLUMNS
            size = tiles * TILE_ROWS * padded * self.bits // 8
            size += tiles * TILE_ROWS * 2 * self.groups(columns) * (2 if self.minimum else 1)
        return -(-size // LAYOUT_ALIGNMENT) * LAYOUT_ALIGNMENT

    def to_json(self) -> dict[str, Any]:
        """The manifest's form of this scheme, layout identifier included."""
        return {**asdict(self), "layout": self.layout}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> QuantScheme:
        """Read the manifest's form; a layout this version does not know is a BundleError."""
        unknown = set(data) - {"kind", "group", "minimum", "layout"}
        if unknown:
            raise BundleError(f"Unknown quantization field '{sorted(unknown)[0]}' in the manifest.")
        try:
            scheme = cls(data["kind"], data["group"], data["minimum"])
            layout = data["layout"]
        except KeyError as missing:
            raise BundleError(f"Quantization field {missing} is missing in the manifest.") from None
        if layout not in (scheme.layout, scheme.compact_layout):
            raise BundleError(
                f"Weight layout '{layout}' is not known to this version (it writes '{scheme.layout}'); "
                "update minicpm-edge or convert the model again."
            )
        return scheme


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized matrix in plain row-major order, before packing.

    codes: [rows, columns]; uint8 0..15 for int4 (8 is zero unless the scheme has a minimum), int8 -127..127
    for int8, uint8 0..2 for ternary (1 is zero).
    scales: float16 [rows, groups]. minimums: float16 [rows, groups], or None.
    """

    scheme: QuantScheme
    codes: npt.NDArray[Any]
    scales: npt.NDArray[np.float16]
    minimums: npt.NDArray[np.float16] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weights as float32 [rows, columns]."""
        columns = self.codes.shape[1]
        zero = {"int4": 0 if self.scheme.minimum else 8, "int8": 0, "ternary": 1}[self.scheme.kind]
        group = self.scheme.group or columns
        index = np.arange(columns) // group
        weights = (self.codes.astype(np.float32) - zero) * self.scales.astype(np.float32)[:, index]
        if self.minimums is not None:
            weights += self.minimums.astype(np.float32)[:, index]
        return weights


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix already in the canonical layout (`edge.quant.packing`).

    shape: (rows, columns). data: uint8 [scheme.packed_bytes(rows, columns)].
    """

    scheme: QuantScheme
    shape: tuple[int, int]
    data: npt.NDArray[np.uint8]
