"""GGUF's block formats: raw blocks to plain codes and scales, without a detour through floats.

Block layouts are those of ggml (`ggml-common.h`, `ggml-quants.c`); `gguf.quants.dequantize` is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.quant.scheme import QuantizedMatrix, QuantScheme

Bytes = npt.NDArray[np.uint8]

SCHEMES = {
    "Q4_0": QuantScheme("int4", 32),
    "Q4_1": QuantScheme("int4", 32, minimum=True),
    "Q4_K": QuantScheme("int4", 32, minimum=True),
    "Q5_0": QuantScheme("int8", 32),
    "Q8_0": QuantScheme("int8", 32),
    "IQ4_NL": QuantScheme("int8", 32),
    "IQ4_XS": QuantScheme("int8", 32),
    "Q3_K": QuantScheme("int8", 32),
    "TQ1_0": QuantScheme("ternary", 256),
    "TQ2_0": QuantScheme("ternary", 256),
}
"""Types whose codes are kept."""
INEXACT = ("Q4_K", "IQ4_XS", "Q3_K")
"""Those of them that lose something all the same, see `unpack_blocks`."""
ROUNDED = dict.fromkeys(("Q2_K", "Q5_1", "Q5_K", "Q6_K"), QuantScheme("int8", 32))
"""Types without a counterpart here: dequantized and rounded to int8."""
_IQ4_NL = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)  # what its sixteen codes weigh


def unpack_blocks(raw: Bytes, type_name: str) -> QuantizedMatrix:
    """The codes and scales of rows of blocks of a type in SCHEMES.

    raw: uint8 [rows, bytes per row]. Codes come out as they are in the file, but for Q3_K. Q4_K and IQ4_XS
    store a scale as a 6-bit integer times a float16 (up to 17 significant bits); it is rounded to float16
    here, a relative error of at most 2^-11 in scale and minimum. A weight of Q3_K is the float16 times the
    product of two integers; that product becomes the code, and where it is 128, the largest, it becomes 127.
    """
    unpack, block_bytes = _UNPACK[type_name]
    rows = raw.shape[0]
    codes, scales, minimums = unpack(raw.reshape(rows, -1, block_bytes))
    tails = [
        None if t is None else np.ascontiguousarray(t, np.float16).reshape(rows, -1)
        for t in (scales, minimums)
    ]
    assert tails[0] is not None
    return QuantizedMatrix(SCHEMES[type_name], codes.reshape(rows, -1), tails[0], tails[1])


_Parts = tuple[npt.NDArray[Any], npt.NDArray[np.floating], "npt.NDArray[np.floating] | None"]


def _half(blocks: Bytes, at: int) -> npt.NDArray[np.float16]:
    """The float16 at byte `at` of every block: [rows, blocks, 1]"""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")


def _nibbles(packed: Bytes) -> Bytes:
    """Low nibbles, then high nibbles, along the last axis."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _q4_0(blocks: Bytes) -> _Parts:
    return _nibbles(blocks[..., 2:]), _half(blocks, 0), None


def _q4_1(blocks: Bytes) -> _Parts:
    return _nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2)


def _q4_k(blocks: Bytes) -> _Parts:
    scale, minimum = _half(blocks, 0).astype(np.float32), _half(blocks, 2).astype(np.float32)
    # 12 bytes hold eight 6-bit scales and eight 6-bit minimums; the last four of each are split over two
    # bytes.
    low, high, mixed = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = np.concatenate((low & 63, (mixed & 15) | (low >> 6 << 4)), axis=-1)
    minimums = np.concatenate((high & 63, (mixed >> 4) | (high >> 6 << 4)), axis=-1)
    codes = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    with np.errstate(over="ignore"):  # the converter refuses scales that are not finite
        return codes, (scale * scales).astype(np.float16), (-minimum * minimums).astype(np.float16)


def _q5_0(blocks: Bytes) -> _Parts:
    """Four low bits of a code as in Q4_0; the fifth bits of all 32 are a little-endian word before them."""
    fifth = np.unpackbits(np.ascontiguousarray(blocks[..., 2:6]), axis=-1, bitorder="little")
    codes = _nibbles(blocks[..., 6:]) | fifth << 4
    return codes.view(np.int8) - np.int8(16), _half(blocks, 0), None


def _q8_0(blocks: Bytes) -> _Parts:
    return np.ascontiguousarray(blocks[..., 2:]).view(np.int8), _half(blocks, 0), None


def _iq4_nl(blocks: Bytes) -> _Parts:
    return _IQ4_NL[_nibbles(blocks[..., 2:])], _half(blocks, 0), None


def _iq4_xs(blocks: Bytes) -> _Parts:
    """Eight 6-bit scales, 32 stands for zero: low nibbles in four bytes, high pairs of bits in a word."""
    low = blocks[..., 4:8, None] >> np.array([0, 4], np.uint8) & 15
    high = blocks[..., 2:4, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    shape = (*blocks.shape[:2], 8)
    scales = (low.reshape(shape) | high.reshape(shape) << 4).astype(np.int8) - np.int8(32)
    codes = _IQ4_NL[_nibbles(blocks[..., 8:].reshape(*shape, 16))]
    with np.errstate(over="ignore"):  # as for Q4_K
        return codes, (_half(blocks, 0).astype(np.float32) * scales).astype(np.float16), None


def _q3_k(blocks: Bytes) -> _Parts:
    """Sixteen codes -4..3 share a 6-bit scale, of which 32 stands for zero."""
    quarters, shape = np.array([0, 2, 4, 6], np.uint8)[:, None], blocks.shape[:2]
    low = blocks[..., None, 96:104] >> np.array([0, 4], np.uint8)[:, None] & 15
    high = blocks[..., None, 104:108] >> quarters & 3
    scales = (low.reshape(*shape, 16) | high.reshape(*shape, 16) << 4).astype(np.int8) - np.int8(32)
    pairs = blocks[..., 32:96].reshape(*shape, 2, 1, 32) >> quarters & 3
    third = blocks[..., None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = (pairs.reshape(*shape, 16, 16) | third.reshape(*shape, 16, 16) << 2).astype(np.int8)
    codes -= np.int8(4)
    codes *= scales[..., None]
    codes[codes == -128] = 127  # 128, which int8 lacks: -4 times -32
    return codes, np.repeat(_half(blocks, 108), 8, axis=-1), None


def _tq1_0(blocks: Bytes) -> _Parts:
    """Five base-3 digits in a byte, as a fraction of 256: times 3^n modulo 256 brings digit n to the top."""

    def digits(packed: Bytes, count: int) -> Bytes:
        powers = np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]
        fractions = (packed[..., None, :] * powers).astype(np.uint16)
        return (fractions * 3 >> 8).astype(np.uint8).reshape(*packed.shape[:2], -1)

    parts = digits(blocks[..., :32], 5), digits(blocks[..., 32:48], 5), digits(blocks[..., 48:52], 4)
    return np.concatenate(parts, axis=-1), _half(blocks, 52), None


def _tq2_0(blocks: Bytes) -> _Parts:
    packed = blocks[..., :64].reshape(*blocks.shape[:2], 2, 1, 32)
    return packed >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3, _half(blocks, 64), None


_UNPACK: dict[str, tuple[Callable[[Bytes], _Parts], int]] = {
    "Q4_0": (_q4_0, 18),
    "Q4_1": (_q4_1, 20),
    "Q4_K": (_q4_k, 144),
    "Q5_0": (_q5_0, 22),
    "Q8_0": (_q8_0, 34),
    "IQ4_NL": (_iq4_nl, 18),
    "IQ4_XS": (_iq4_xs, 136),
    "Q3_K": (_q3_k, 110),
    "TQ1_0": (_tq1_0, 54),
    "TQ2_0": (_tq2_0, 66),
}
