"""How GPTQ, AWQ and Marlin pack 4-bit numbers in int32 words: to plain arrays, and nothing else.

All three store a matrix of K inputs and N outputs transposed, as [K, N]; what comes out here is [N, K].
Marlin (arXiv 2408.11743, section 3.4) orders it for a GPU's tensor cores: tiles of 16 x 16, four of them side
by side dealt out to 32 threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int32]

TILE = 16
MARLIN_OUTPUTS = 64
"""Marlin's matrices have a multiple of this many outputs."""
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word is output _AWQ_ORDER[i] of its eight


def gptq_codes(words: Words) -> Codes:
    """[K / 8, N] words, eight inputs in one, the first in the lowest bits -> [N, K]."""
    return np.ascontiguousarray(_nibbles(words.T))


def gptq_zeros(words: Words, *, less_one: bool) -> Codes:
    """[groups, N / 8] words, eight outputs in one -> [N, groups].

    less_one: GPTQ's first format, in which every zero is stored less one. Its packers take the one from eight
    zeros at once, so a zero of 0 borrows from its neighbour; only the same sum over whole words undoes that.
    """
    if less_one:
        words = (words.view(np.uint32) + np.uint32(0x11111111)).view(np.int32)
    return np.ascontiguousarray(_nibbles(words).T)


def awq_codes(words: Words) -> Codes:
    """[K, N / 8] words, eight outputs in one in the order of AWQ's `gemm` -> [N, K]; zeros likewise."""
    nibbles = _nibbles(words)
    plain = np.empty_like(nibbles).reshape(len(words), -1, 8)
    plain[..., _AWQ_ORDER] = nibbles.reshape(len(words), -1, 8)
    return np.ascontiguousarray(plain.reshape(nibbles.shape).T)


def marlin_codes(words: Words) -> Codes:
    """[K / 16, 2 N] words -> [N, K]."""
    dealt = _nibbles(words)
    plain = np.empty_like(dealt).reshape(-1, 4 * TILE * TILE)
    plain[:, _dealing()] = dealt.reshape(plain.shape)
    tile_rows, width = dealt.shape
    tiles = plain.reshape(tile_rows, width // TILE // TILE, TILE, TILE)  # [K / 16, N / 16, input, output]
    return np.ascontiguousarray(tiles.transpose(1, 3, 0, 2).reshape(width // TILE, -1))


def marlin_scales(scales: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[groups, N] scales -> [N, groups]; one group alone (a scale per output) has an order of its own."""
    groups, outputs = scales.shape
    if groups > 1:
        plain = scales.reshape(groups, -1, 8, 8).swapaxes(2, 3)  # blocks of 64, transposed
    else:
        # Blocks of 32: pairs of neighbours, four of them 8 apart, stand together.
        plain = scales.reshape(groups, -1, 4, 4, 2).swapaxes(2, 3)
    return np.ascontiguousarray(plain.reshape(groups, outputs).T)


def _nibbles(words: Words) -> Codes:
    """[rows, n] words -> [rows, 8 n], lowest bits first."""
    octets = np.ascontiguousarray(words, "<i4").view(np.uint8)
    pairs = np.stack((octets & 15, octets >> 4), axis=-1)
    return pairs.reshape(words.shape[0], -1)


def _dealing() -> npt.NDArray[np.intp]:
    """Where each of the 1024 numbers of four tiles comes from, in the order in which they are packed.

    A thread holds, of every tile, four inputs (a pair and the pair 8 below) of one output and of the one 8 to
    the right; a word has first the even and then the odd ones of these eight.
    """
    thread, tile, slot = np.meshgrid(np.arange(32), np.arange(4), np.arange(8), indexing="ij")
    held = slot % 4 * 2 + slot // 4
    right, row = held // 4, held % 4
    inputs = 2 * (thread % 4) + row % 2 + 8 * (row // 2)
    outputs = thread // 4 + 8 * right
    return (tile * TILE * TILE + inputs * TILE + outputs).reshape(-1)
