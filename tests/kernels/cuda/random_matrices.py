"""Random matrices in the layout of bundles, and on a device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.executors.cuda.device import Device
from edge.executors.cuda.matrices import Matrix, variant_of
from edge.executors.cuda.operators.repack import repack
from edge.quant.packing import dequantize, pack
from edge.quant.scheme import QuantizedMatrix, QuantScheme
from tests.kernels.cuda.memory import sent

SCHEMES = [
    *(QuantScheme("int4", group) for group in (32, 64, 128, 0)),
    *(QuantScheme("int4", group, minimum=True) for group in (32, 128)),
    *(QuantScheme("int8", group) for group in (32, 64, 128, 0)),
    *(QuantScheme("ternary", group) for group in (32, 64, 128, 0)),
    QuantScheme("f16"),
]
"""One for each variant that kernels are compiled for."""
REPEATED = [
    QuantScheme("int4", 96),
    QuantScheme("int8", 256),
    QuantScheme("int4", 64, minimum=True),
    QuantScheme("int4", 0, minimum=True),
]
"""Some whose scales are repeated."""


def packed(scheme: QuantScheme, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Random weights around zero, in the bytes of a bundle."""
    random = np.random.default_rng([rows, columns])
    if scheme.is_float:
        return pack(random.standard_normal((rows, columns)).astype(np.float16), scheme)
    low, high = (part + scheme.zero for part in scheme.code_range)
    codes = random.integers(low, high + 1, (rows, columns)).astype(scheme.dtype)
    scales, minimums = random.uniform(0.5, 1.5, (2, rows, scheme.groups(columns))).astype(np.float16)
    return pack(QuantizedMatrix(scheme, codes, scales, -7 * minimums if scheme.minimum else None), scheme)


def loaded(
    device: Device, scheme: QuantScheme, shapes: tuple[int, ...], columns: int
) -> tuple[Matrix, npt.NDArray[np.float32]]:
    """Random matrices with these numbers of rows as one, and their weights float32 [rows, columns]."""
    matrix = Matrix(variant_of(scheme.packing), sum(shapes), columns)
    matrix = matrix.at(device.allocate(matrix.size))
    weights, first = [], 0
    for rows in shapes:
        data = packed(scheme, rows, columns)
        repack(device, scheme.packing, sent(device, data), matrix, first=first, rows=rows)
        weights.append(dequantize(data, scheme, rows, columns))
        first += rows
    return matrix, np.concatenate(weights)
