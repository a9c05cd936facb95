"""Weights in a Core ML program: codes and scales as they are in the source, expanded by constexpr operators.

Codes of 4 and 8 bits are `constexpr_blockwise_shift_scale`; ternary is a 2-bit lookup of -1, 0, 1, times the
scales.
Core ML computes code x scale in float16: a ternary weight is exact, another one is rounded to float16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import ExportError
from edge.export.source import Source
from edge.formats.bundle.manifest import BundleTensor
from edge.quant.scheme import QuantizedMatrix, QuantScheme

_LOOKUP = np.array([-1, 0, 1, 0], np.int8)


def code_bits(scheme: QuantScheme) -> int:
    """Bits of a code in the program: 2 by lookup, 4 or 8; of float16, 16."""
    if scheme.is_float:
        return 16
    low, high = scheme.code_range
    return 2 if low >= -1 and high <= 1 else 4 if low >= -8 and high <= 7 else 8


def block_width(info: BundleTensor) -> int:
    """Columns per scale in the program: blocks must divide a row evenly, so a ragged group is cut finer."""
    return math.gcd(info.scheme.group or info.columns, info.columns)


def is_bias(info: BundleTensor) -> bool:
    """Whether a matrix has it as its bias; other vectors are norms."""
    return info.name.endswith(".bias")


def type_name(info: BundleTensor) -> str:
    """How the program stores a tensor, for the manifest; ExportError for what Core ML can't hold exactly."""
    if len(info.shape) == 1:
        return "float16" if is_bias(info) else "float32"
    if info.scheme.minimum:
        raise ExportError(
            f"Tensor '{info.name}' has a minimum per group ({info.scheme}), which Core ML does not know; "
            "export with `--quantize int4`."
        )
    if info.scheme.is_float:
        return "float16"
    return f"{info.scheme.kind} blocks of {block_width(info)}"


def stored_bytes(info: BundleTensor) -> int:
    """Size of a tensor in weight.bin: codes, and a float16 scale per block."""
    if len(info.shape) == 1:
        return padded_bytes((2 if is_bias(info) else 4) * info.columns)
    codes = padded_bytes(info.rows * info.columns * code_bits(info.scheme) // 8)
    return codes if info.scheme.is_float else codes + padded_bytes(2 * _blocks(info))


def shared_bytes(infos: Iterable[BundleTensor]) -> int:
    """What matrices of the same shape share in weight.bin: zero biases, and the tables of ternary blocks."""
    infos = list(infos)
    matrices = [info for info in infos if len(info.shape) == 2]
    biased = {info.name.removesuffix(".bias") for info in infos if is_bias(info)}
    biases = {info.rows for info in matrices if info.name.removesuffix(".weight") not in biased}
    tables = {(info.shape, _blocks(info)) for info in matrices if code_bits(info.scheme) == 2}
    return sum(padded_bytes(2 * rows) for rows in biases) + sum(
        padded_bytes(4 * blocks) for _, blocks in tables
    )


def _blocks(info: BundleTensor) -> int:
    return info.rows * info.columns // block_width(info)


def padded_bytes(size: int) -> int:
    """What `size` bytes take in weight.bin: at a multiple of 64, behind 64 bytes of description."""
    return -(-size // 64) * 64 + 64


class Weights:
    """The source's tensors as MIL constants; the functions of one program share what was unpacked."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._stored: dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.float16] | None]] = {}

    def matrix(self, name: str) -> Any:
        """A MIL variable of the matrix: float16 [rows, columns] when it is expanded."""
        from coremltools.converters.mil import Builder as mb

        label = name.replace(".", "_")
        if name not in self._stored:
            self._stored[name] = _stored(self.source, name)
        data, scales = self._stored[name]
        if scales is None:
            return mb.const(val=data, name=label)
        if code_bits(self.source.tensors[name].scheme) == 2:
            lookup = _LOOKUP[None, None, :, None]
            data = mb.constexpr_lut_to_dense(indices=data, lut=lookup, name=f"{label}_codes")
        return mb.constexpr_blockwise_shift_scale(data=data, scale=scales, name=label)

    def bias(self, name: str) -> Any:
        """A MIL variable of a bias: float16 [rows]."""
        from coremltools.converters.mil import Builder as mb

        return mb.const(val=self.source.floats(name).astype(np.float16), name=name.replace(".", "_"))


def _stored(source: Source, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.float16] | None]:
    """Codes in the program's own type and their scales, or float16 weights."""
    from coremltools.converters.mil.mil import types

    info = source.tensors[name]
    codes, scales = _plain(source, info)
    if info.scheme.is_float:
        return codes, scales
    values = codes if info.scheme.zero == 0 else (codes.astype(np.int16) - info.scheme.zero).astype(np.int8)
    bits = code_bits(info.scheme)
    if bits == 2:
        return (values + np.int8(1)).astype(types.np_uint2_dtype), scales  # places in _LOOKUP
    return values.astype(types.np_int4_dtype) if bits == 4 else values, scales


def _plain(source: Source, info: BundleTensor) -> tuple[npt.NDArray[Any], npt.NDArray[np.float16] | None]:
    """Codes (or float16 weights) and scales by block, put together from row blocks."""
    codes, scales = [], []
    for block in source.row_blocks(info.name):
        if isinstance(block, QuantizedMatrix):
            codes.append(block.codes)
            width = block_width(info)
            first = np.arange(info.columns // width) * width // (info.scheme.group or info.columns)
            scales.append(block.scales[:, first])
        else:
            codes.append(block.astype(np.float16))
    return np.concatenate(codes), np.concatenate(scales) if scales else None
