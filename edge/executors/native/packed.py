"""Tensors as the native decoder borrows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config.tensors import NetworkTensor
from edge.errors import EdgeError
from edge.executors.native import library as native
from edge.formats.bundle.manifest import BundleTensor
from edge.quant.layout import LAYOUT_ALIGNMENT
from edge.quant.packing import pack
from edge.quant.rounding import quantize, to_float16


def packed_tensor(values: npt.NDArray[np.floating[Any]], info: BundleTensor) -> npt.NDArray[np.uint8]:
    """The nearest codes in the kernels' layout, in memory that starts at a cache line."""
    matrix = np.asarray(values)
    if matrix.shape != info.shape or matrix.dtype.kind != "f":
        raise EdgeError(
            f"'{info.name}' is a float tensor of shape {list(info.shape)}, got {matrix.dtype} "
            f"{list(matrix.shape)}."
        )
    if not np.isfinite(matrix).all():
        raise EdgeError(f"'{info.name}' has values that are not finite: nothing was changed.")
    scheme = info.scheme
    if not scheme.is_float:
        data = pack(quantize(matrix, scheme, info.name), scheme)
    else:
        data = pack(to_float16(matrix, info.name) if matrix.ndim == 2 else matrix, scheme)
    place = np.empty(data.size + LAYOUT_ALIGNMENT, np.uint8)
    start = -place.ctypes.data % LAYOUT_ALIGNMENT
    place[start : start + data.size] = data
    return place[start : start + data.size]


def weight_of(info: BundleTensor, tensor: NetworkTensor, address: int) -> native.Weight:
    """A packed tensor as libedge takes it."""
    matrix = native.matrix(info.scheme.packing, info.rows, info.columns, address)
    return native.Weight(role=tensor.role.native, layer=tensor.layer or 0, matrix=matrix)
