"""Logits and the likeliest tokens, see `kernels/cuda/head.py`."""

from __future__ import annotations

from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import Matrix
from edge.executors.cuda.operators.linear import linear

SUMMED, COMPARED, MOST_BLOCKS = 1024, 4096, 128
"""Tokens of one program that adds or compares logits; blocks of the latter that a row may have."""


def head(
    device: Device, matrix: Matrix, x: Address, logits: Address, partials: Address, *, rows: int
) -> None:
    """logits float32 [rows, matrix.rows] = x float16 [rows, matrix.columns] times the transposed matrix.

    partials: float32 [matrix.slices, rows, matrix.rows]; 0 will do where matrix.slices is 1.
    """
    if matrix.slices == 1:
        linear(device, matrix, x, logits, rows=rows)
        return
    linear(device, matrix, x, partials, rows=rows)
    device.launch(
        "logits",
        (-(-matrix.rows // SUMMED), rows, 1),
        (partials, logits, matrix.slices, rows, matrix.rows),
    )


def argmax_blocks(vocabulary: int) -> int:
    """Numbers that `argmax` needs for a row, of each of its two workspaces."""
    return -(-vocabulary // COMPARED)


def argmax(
    device: Device,
    logits: Address,
    best: Address,
    values: Address,
    tokens: Address,
    *,
    rows: int,
    vocabulary: int,
) -> None:
    """best int32 [rows] = the token of the largest of logits float32 [rows, vocabulary], the lower one of
    equals.

    values float32, tokens int32 [rows, argmax_blocks(vocabulary)]: workspaces.
    """
    blocks = argmax_blocks(vocabulary)
    assert blocks <= MOST_BLOCKS
    device.launch("argmax.tokens", (blocks, rows, 1), (logits, values, tokens, vocabulary))
    device.launch("argmax.blocks", (rows, 1, 1), (values, tokens, best, blocks, vocabulary))
