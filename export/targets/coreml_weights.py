"""Weights in a Core ML program: codes and scales as they are in the source, expanded by constexpr operators.

int4 and int8 are `constexpr_blockwise_shift_scale`; ternary is a 2-bit lookup of -1, 0, 1, times the scales.
Core ML computes code x scale in float16: a ternary weight is exact, another one is rounded to float16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.bundle.manifest import BundleTensor
from edge.errors import ExportError
from edge.scheme import QuantizedMatrix
from export.source import Source

_LOOKUP = np.array([-1, 0, 1, 0], np.int8)


def block_width(info: BundleTensor) -> int:
    """Columns per scale in the program: blocks must divide a row evenly, so a ragged group is cut finer."""
    return math.gcd(info.scheme.group or info.columns, info.columns)


def type_name(info: BundleTensor) -> str:
    """How the program stores a tensor, for the manifest; ExportError for what Core ML can't hold exactly."""
    if len(info.shape) == 1:
        return "float32"
    if info.scheme.minimum:
        raise ExportError(
            f"Tensor '{info.name}' has a minimum per group ({info.scheme}), which Core ML does not know; "
            "export with `--quantize int4-g32`."
        )
    if info.scheme.is_float:
        return "float16"
    return f"{info.scheme.kind} blocks of {block_width(info)}"


def stored_bytes(info: BundleTensor) -> int:
    """Size of a tensor in weight.bin: codes, and a float16 scale per block."""
    if len(info.shape) == 1:
        return _padded(4 * info.columns)
    codes = _padded(info.rows * info.columns * info.scheme.bits // 8)
    return codes if info.scheme.is_float else codes + _padded(2 * _blocks(info))


def shared_bytes(infos: Iterable[BundleTensor]) -> int:
    """What matrices of the same shape share in weight.bin: zero biases, and the tables of ternary blocks."""
    matrices = [info for info in infos if len(info.shape) == 2]
    biases = {info.rows for info in matrices}
    tables = {(info.shape, _blocks(info)) for info in matrices if info.scheme.kind == "ternary"}
    return sum(_padded(2 * rows) for rows in biases) + sum(_padded(4 * blocks) for _, blocks in tables)


def _blocks(info: BundleTensor) -> int:
    return info.rows * info.columns // block_width(info)


def _padded(size: int) -> int:
    """64 bytes of description stand before each entry, which starts at a multiple of 64."""
    return -(-size // 64) * 64 + 64


def weight(source: Source, name: str) -> Any:
    """A MIL variable of the matrix: float16 [rows, columns] when it is expanded."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    info = source.tensors[name]
    label = name.replace(".", "_")
    codes, scales = _plain(source, info)
    if scales is None:
        return mb.const(val=codes, name=label)
    if info.scheme.kind == "ternary":
        data = mb.constexpr_lut_to_dense(
            indices=codes.astype(types.np_uint2_dtype),
            lut=_LOOKUP[None, None, :, None],
            name=f"{label}_codes",
        )
    elif info.scheme.kind == "int4":
        data = (codes.astype(np.int8) - np.int8(8)).astype(types.np_int4_dtype)
    else:
        data = codes
    return mb.constexpr_blockwise_shift_scale(data=data, scale=scales, name=label)


def expected_weight(source: Source, name: str) -> npt.NDArray[np.float16]:
    """The weights that the program must expand to, from our own unpacking of the bundle."""
    return source.floats(name).astype(np.float16)


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
