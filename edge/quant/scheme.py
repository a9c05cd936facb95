"""How a weight matrix is quantized: one description for quantizers, bundles and kernels.

What kinds there are is declared in `edge.quant.kinds`, the bytes are written down in `edge.quant.packing`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError
from edge.quant.kinds import KINDS, SchemeKind
from edge.quant.layout import PAD_COLUMNS, MatrixLayout

SOURCE = "source"
"""Name of the quantization that a checkpoint has itself, its floats as float16."""
_NAME = re.compile(r"(\w+?)(?:-(?:g([1-9]\d*)|(row)))?(-min)?", re.ASCII)


@dataclass(frozen=True)
class QuantScheme:
    """Kind, groups and offsets of one matrix.

    kind: a name in `edge.quant.kinds`, such as `f32` (plain rows, only for norms), `f16`, `int8`, `int4` and
    `ternary` (-1, 0 or 1 times the scale).
    group: columns that share a scale, a multiple of 32; 0 means one scale per row; the last group may be
    ragged. Floats have no groups.
    minimum: weight = scale * code + minimum, codes from 0 (int4: as GGUF's Q4_1).
    """

    kind: str
    group: int = 0
    minimum: bool = False

    def __post_init__(self) -> None:
        declared = KINDS.find(self.kind)
        if declared is None:
            raise BundleError(f"Unknown quantization kind '{self.kind}'; known: {', '.join(KINDS)}.")
        if self.group < 0 or self.group % PAD_COLUMNS:
            raise BundleError(
                f"Quantization group {self.group} must be 0 (per row) or a multiple of {PAD_COLUMNS}."
            )
        if self.minimum and declared.minimum_rule is None:
            raise BundleError(f"Weights of the kind {self.kind} can't have a per-group minimum.")
        if self.group and declared.is_float:
            raise BundleError(f"{self.kind} weights have no quantization group, got {self.group}.")

    @classmethod
    def from_name(cls, name: str) -> QuantScheme:
        """The scheme of a name: `int4` (its kind's own groups), `int4-g128`, `int4-row`, `int4-min`, `f16`.

        BundleError for any other, with the names that there are.
        """
        found = _NAME.fullmatch(name)
        kind = KINDS.find(found[1]) if found else None
        if found is None or kind is None or kind.layout.operator is None:
            if name == "none":
                raise BundleError("The quantization 'none' is called 'source' now; give that.")
            kinds = ", ".join(each.name for each in KINDS.values() if each.layout.operator is not None)
            raise BundleError(
                f"Unknown quantization '{name}'; choose one of {kinds}, with other groups as in int4-g128 "
                "and int4-row."
            )
        group = int(found[2]) if found[2] else 0 if found[3] else kind.group
        if kind.is_float and name != kind.name:
            raise BundleError(
                f"Unknown quantization '{name}'; {kind.name} has no groups, give '{kind.name}'."
            )
        return cls(kind.name, group, found[4] is not None)

    @classmethod
    def chosen(cls, name: str | None) -> QuantScheme | None:
        """The scheme of a name, None where the checkpoint's own is kept: for `source` and None."""
        return None if name in (None, SOURCE) else cls.from_name(str(name))

    @classmethod
    def parse(cls, text: str) -> QuantScheme:
        """Inverse of `str`: `int4-g32-min`, `ternary-row`, `f16`, `f32`; BundleError for short names."""
        scheme = cls(text) if text == "f32" else cls.from_name(text)
        if str(scheme) != text:
            raise BundleError(f"Unknown quantization '{text}'.")
        return scheme

    @property
    def declared(self) -> SchemeKind:
        """Everything that is said about its kind."""
        return KINDS.get(self.kind)

    @property
    def is_float(self) -> bool:
        """True for f32 and f16, which have neither scales nor groups."""
        return self.declared.is_float

    @property
    def bits(self) -> int:
        """Bits that a code needs, scales not counted."""
        return self.declared.bits

    @property
    def zero(self) -> int:
        """The code of a weight of zero; with a minimum, that of the minimum."""
        return 0 if self.minimum else self.declared.zero

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code counted from `zero`: what the scale is multiplied with."""
        kind = self.declared
        return (0, kind.high - kind.low) if self.minimum else (kind.low, kind.high)

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        """Type of the codes: signed where some are negative."""
        return np.int8 if self.code_range[0] + self.zero < 0 else np.uint8

    @property
    def beside(self) -> QuantScheme:
        """The scheme of embedding and head where random weights have this one in their layers."""
        head = self.declared.head
        return self if head is None else QuantScheme.from_name(head)

    @property
    def packing(self) -> MatrixLayout:
        """The layout that holds it, with its groups."""
        return MatrixLayout(self.declared.layout, self.group, self.minimum)

    @property
    def layout(self) -> str:
        """Identifier of the byte layout, for example `i4.n16k8.g32.min.v1`."""
        return self.packing.id

    @property
    def compact_layout(self) -> str | None:
        """Identifier of the smaller byte layout of `edge.quant.base3`, which ternary matrices have."""
        return self.packing.compact_id

    def __str__(self) -> str:
        if self.is_float:
            return self.kind
        return f"{self.kind}-{f'g{self.group}' if self.group else 'row'}{'-min' if self.minimum else ''}"

    def groups(self, columns: int) -> int:
        """Number of groups in a row of `columns` weights."""
        return self.packing.groups(columns)

    def packed_bytes(self, rows: int, columns: int) -> int:
        """Size in bytes of a `rows` x `columns` matrix in its layout."""
        return self.packing.packed_bytes(rows, columns)

    def to_json(self) -> dict[str, Any]:
        """The manifest's form of this scheme, layout identifier included."""
        return {**asdict(self), "layout": self.layout}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> QuantScheme:
        """Read the manifest's form; a layout this version does not know is a BundleError."""
        types = {"kind": str, "group": int, "minimum": bool, "layout": str}
        unknown = set(data) - set(types)
        if unknown:
            raise BundleError(f"Unknown quantization field '{sorted(unknown)[0]}' in the manifest.")
        for name, wanted in types.items():
            if name not in data:
                raise BundleError(f"Quantization field '{name}' is missing in the manifest.")
            if not isinstance(data[name], wanted):
                raise BundleError(f"Quantization field '{name}' of the manifest has the wrong type.")
        scheme, layout = cls(data["kind"], data["group"], data["minimum"]), data["layout"]
        if layout not in (scheme.layout, scheme.compact_layout):
            raise BundleError(
                f"Weight layout '{layout}' is not known to this version (it writes '{scheme.layout}'); "
                "update minicpm-edge or convert the model again."
            )
        return scheme


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized matrix in plain row-major order, before packing.

    codes: [rows, columns] of the scheme's type, for example uint8 0..15 for int4 (8 is zero unless there is a
    minimum), int8 -127..127 for int8, uint8 0..2 for ternary (1 is zero).
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
        return weights_of(self.codes, self.scheme.zero, self.scheme.group, self.scales, self.minimums)


def weights_of(
    codes: npt.NDArray[Any],
    zero: int,
    group: int,
    scales: npt.NDArray[np.float16],
    minimums: npt.NDArray[np.float16] | None,
) -> npt.NDArray[np.float32]:
    """scale * (code - zero) + minimum, float32 [rows, columns]; group 0: one scale per row."""
    columns = codes.shape[1]
    index = np.arange(columns) // (group or columns)
    weights = (codes.astype(np.float32) - zero) * scales.astype(np.float32)[:, index]
    if minimums is not None:
        weights += minimums.astype(np.float32)[:, index]
    return weights


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix already in the canonical layout (`edge.quant.packing`).

    shape: (rows, columns). data: uint8 [scheme.packed_bytes(rows, columns)].
    """

    scheme: QuantScheme
    shape: tuple[int, int]
    data: npt.NDArray[np.uint8]
