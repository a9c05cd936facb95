"""Linear layers that somebody quantized to 4 bits (GPTQ, AWQ, Marlin as CPM.cu writes it), one by one.

weight = scale * (code - zero), scales and zeros per output and group of inputs. Symmetric groups (zero 8)
pass into our int4 as they are. Groups with other zeros get the minimum -scale * zero, rounded to float16
where it does not fit; what has no counterpart at all (act-order, groups that are no multiple of 32) becomes
int8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from edge.checkpoints import int4_packings as packings
from edge.errors import CheckpointError
from edge.formats.safetensors import TensorEntry, to_float32
from edge.quant.layout import PAD_COLUMNS
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme

Floats = npt.NDArray[np.float32]
Reader = Callable[[str], npt.NDArray[Any]]
"""Raw array of a tensor by its name in the file."""

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_SYMMETRIC = 8
_ROUNDED = QuantScheme("int8", 32)
_NAMES = {"gptq": "GPTQ", "awq": "AWQ", "marlin": "Marlin"}
_STYLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gptq": (("checkpoint_format", "format"), ("gptq", "gptq_v2")),
    "awq": (("version", "checkpoint_format", "format"), ("gemm",)),
    "marlin": ((), ("marlin",)),
}
"""Fields that may name a method's layout, and the layouts that can be read, the one of older files first."""


@dataclass(frozen=True)
class Int4Settings:
    """What `quantization_config` says.

    method: `gptq`, `awq` or `marlin`; Marlin's packing may come with GPTQ's config, shapes tell them apart.
    group_size: -1 for one group. zeros_less_one: whether zeros are stored as in GPTQ's first format.
    """

    READ: ClassVar[tuple[str, ...]] = ("quant_method", "bits", "group_size", "version", "checkpoint_format")

    method: str
    group_size: int
    zeros_less_one: bool

    @classmethod
    def from_config(cls, entry: Mapping[str, Any], where: str) -> Int4Settings:
        """Read a `quantization_config`; CheckpointError, naming `where`, for what can't be imported."""
        method, group = entry.get("quant_method"), entry.get("group_size")
        if method not in _NAMES:
            raise CheckpointError(
                f"{where} holds weights quantized with {method or 'an unnamed method'}, which cannot be "
                "imported; use the unquantized checkpoint or a GGUF file of the model."
            )
        _check_known("bits", entry.get("bits"), (4,), where)
        style = _style(method, entry, where)
        if isinstance(group, bool) or not isinstance(group, int) or group < -1 or group == 0:
            raise CheckpointError(
                f"The field 'group_size' of {where} must be a positive whole number or -1, not {group!r}."
            )
        return cls(str(method), group, zeros_less_one=style == "gptq")


def _style(method: str, entry: Mapping[str, Any], where: str) -> str:
    """How the method's packer lays numbers out; packers and their versions name it in different fields."""
    fields, known = _STYLES[method]
    stated = {name: str(entry[name]).lower() for name in fields if entry.get(name) is not None}
    for name, value in stated.items():
        _check_known(name, value, known, where)
    if len(set(stated.values())) > 1:
        both = " and ".join(f"{name} {value!r}" for name, value in stated.items())
        raise CheckpointError(
            f"The quantization_config of {where} contradicts itself: it names {both}; delete the wrong one."
        )
    return next(iter(stated.values()), known[0])


def _check_known(name: str, value: object, known: tuple[object, ...], where: str) -> None:
    if value not in known:
        raise CheckpointError(
            f"{where} is quantized with {name} {value!r}, but only {' and '.join(map(str, known))} can be "
            "imported; use the unquantized checkpoint or a GGUF file of the model."
        )


class _Groups(NamedTuple):
    """scales float32 and zeros uint8, both [rows, groups]; group_of: of every column, None if in order."""

    scales: Floats
    zeros: npt.NDArray[np.uint8]
    group_of: npt.NDArray[np.intp] | None


class Int4Linear:
    """One matrix [rows, columns]; its scales are looked at when it is opened, its codes when it is read.

    source_type, scheme, exact: as in `edge.checkpoints.base.TensorInfo`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        source_type: str,
        group: int,
        groups: Callable[[], _Groups],
        codes: Callable[[], npt.NDArray[np.uint8]],
    ) -> None:
        self.shape, self.source_type = shape, source_type
        self._group, self._groups, self._codes = group, groups, codes
        self.scheme, self.exact = self._describe()

    def read(self) -> QuantizedMatrix:
        """Codes and scales in `scheme`."""
        if self.scheme == _ROUNDED:
            return quantize(self.read_float32(), _ROUNDED, self.source_type)
        groups = self._groups()
        with np.errstate(over="ignore"):  # the converter refuses scales that are not finite
            scales = groups.scales.astype(np.float16)
            minimums = (-groups.scales * groups.zeros).astype(np.float16) if self.scheme.minimum else None
        return QuantizedMatrix(self.scheme, self._codes(), scales, minimums)

    def read_float32(self) -> Floats:
        """scale * (code - zero), nothing rounded: float32 [rows, columns]."""
        scales, zeros, group_of = self._groups()
        if group_of is None:
            group_of = np.arange(self.shape[1]) // (self._group or self.shape[1])
        weights = self._codes().astype(np.float32)
        weights -= zeros[:, group_of]
        weights *= scales[:, group_of]
        return weights

    def rows(self, at: slice | npt.NDArray[np.intp]) -> Int4Linear:
        """Some of its rows as a matrix of their own: fused layers are stored as one."""

        def groups() -> _Groups:
            whole = self._groups()
            return whole._replace(scales=whole.scales[at], zeros=whole.zeros[at])

        shape = (np.arange(self.shape[0])[at].size, self.shape[1])
        return Int4Linear(shape, self.source_type, self._group, groups, lambda: self._codes()[at])

    def _describe(self) -> tuple[QuantScheme, bool]:
        scales, zeros, group_of = self._groups()
        if group_of is not None or self._group % PAD_COLUMNS:
            return _ROUNDED, False
        symmetric = bool((zeros == _SYMMETRIC).all())
        with np.errstate(over="ignore"):
            stored = [scales] if symmetric else [scales, scales * zeros]
            exact = all(np.array_equal(part.astype(np.float16), part) for part in stored)
        return QuantScheme("int4", self._group, minimum=not symmetric), exact


def open_int4(
    name: str,
    rows: int,
    columns: int,
    settings: Int4Settings,
    entries: Mapping[str, TensorEntry],
    read: Reader,
    where: str,
) -> Int4Linear:
    """The layer `name` (without `.qweight`) of `rows` outputs and `columns` inputs.

    Raises CheckpointError, with the tensor's name, for parts that are missing or contradict the settings.
    """
    if rows % 8 or columns % 8:
        raise CheckpointError(
            f"Tensor '{name}.qweight' of {where} can't hold a {rows}x{columns} matrix: eight numbers share a "
            "word; its configuration belongs to another file."
        )
    settings = _by_shape(name, rows, columns, settings, entries)
    group = columns if settings.group_size == -1 else min(settings.group_size, columns)
    count = -(-columns // group)
    words = {"gptq": (columns // 8, rows), "awq": (columns, rows // 8), "marlin": (columns // 16, rows * 2)}
    expected: dict[str, tuple[int, ...]] = {"qweight": words[settings.method], "scales": (count, rows)}
    has_zeros = settings.method != "marlin" and f"{name}.qzeros" in entries
    if settings.method == "awq" or has_zeros:
        expected["qzeros"] = (count, rows // 8)
    if settings.method == "gptq" and f"{name}.g_idx" in entries:
        expected["g_idx"] = (columns,)
    for part, shape in expected.items():
        _check(f"{name}.{part}", shape, entries, settings, where)
    if settings.method == "marlin" and (rows % packings.MARLIN_OUTPUTS or columns % packings.TILE):
        raise CheckpointError(
            f"Tensor '{name}.qweight' of {where} can't be in Marlin's packing, whose outputs come in "
            f"{packings.MARLIN_OUTPUTS}s; it has {rows}."
        )

    def codes() -> npt.NDArray[np.uint8]:
        unpack = {"gptq": packings.gptq_codes, "awq": packings.awq_codes, "marlin": packings.marlin_codes}
        return unpack[settings.method](read(f"{name}.qweight"))

    def groups() -> _Groups:
        dtype = entries[f"{name}.scales"].dtype
        scales = to_float32(read(f"{name}.scales"), dtype, f"Tensor '{name}.scales' of {where}")
        scales = packings.marlin_scales(scales) if settings.method == "marlin" else scales.T
        zeros = np.full(scales.shape, _SYMMETRIC, np.uint8)
        if "qzeros" in expected:
            stored = read(f"{name}.qzeros")
            if settings.method == "awq":
                zeros = packings.awq_codes(stored)
            else:
                zeros = packings.gptq_zeros(stored, less_one=settings.zeros_less_one)
        order = _order(read(f"{name}.g_idx"), group, count, name, where) if "g_idx" in expected else None
        return _Groups(scales, zeros, order)

    return Int4Linear(
        (rows, columns),
        f"{_NAMES[settings.method]} int4",
        0 if group >= columns else group,
        groups,
        codes,
    )


def _by_shape(
    name: str, rows: int, columns: int, settings: Int4Settings, entries: Mapping[str, TensorEntry]
) -> Int4Settings:
    """CPM.cu's converter leaves GPTQ's config beside Marlin's packing."""
    entry = entries.get(f"{name}.qweight")
    if settings.method == "gptq" and entry is not None and entry.shape == (columns // 16, rows * 2):
        return replace(settings, method="marlin")
    return settings


def _check(
    tensor: str,
    shape: tuple[int, ...],
    entries: Mapping[str, TensorEntry],
    settings: Int4Settings,
    where: str,
) -> None:
    entry = entries.get(tensor)
    if entry is None:
        raise CheckpointError(
            f"{where} lacks tensor '{tensor}', which {_NAMES[settings.method]} weights need; download it "
            "again."
        )
    wanted = ("F16", "BF16", "F32") if tensor.endswith(".scales") else ("I32",)
    if entry.shape != shape or entry.dtype not in wanted:
        raise CheckpointError(
            f"Tensor '{tensor}' of {where} is {entry.dtype} {list(entry.shape)}, but quantization_config "
            f"(method {settings.method}, group_size {settings.group_size}) asks for {wanted[0]} "
            f"{list(shape)}; the file is damaged or its configuration belongs to another one."
        )


def _order(
    raw: npt.NDArray[Any], group: int, count: int, name: str, where: str
) -> npt.NDArray[np.intp] | None:
    """The group of every column, None if they are in order: act-order is seen in g_idx, not in the config."""
    order = raw.astype(np.intp)
    if order.size and (order.min() < 0 or order.max() >= count):
        raise CheckpointError(
            f"Tensor '{name}.g_idx' of {where} names group {order.max()}, but there are {count}; "
            "download it again."
        )
    return None if np.array_equal(order, np.arange(order.size) // group) else order
