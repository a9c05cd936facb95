"""What a training step gets, and how a row of it is put together from pieces of documents.

Which pieces a row has is the loader's business (`edge.train.data.loader`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
"""The target of a token that has no next one; PyTorch's cross entropy leaves it out."""


class Batch(NamedTuple):
    """Rows of packed documents; each tensor is int64 [rows, length].

    targets: the next token of the same document, also where that lies behind the row's end; IGNORED behind a
    document's last token and in padding. positions: 0, 1, 2, ... from the begin of each piece of a document,
    so that every 0 begins one and attention derives the documents from them; padding is one more piece.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor


class Piece(NamedTuple):
    """Tokens start..stop-1 of a document."""

    document: int
    start: int
    stop: int


def empty_batch(rows: int, length: int) -> Batch:
    """Rows of padding only: token 0, no targets, positions that count from 0."""
    return Batch(
        torch.zeros(rows, length, dtype=torch.int64),
        torch.full((rows, length), IGNORED, dtype=torch.int64),
        torch.arange(length).repeat(rows, 1),
    )


def fill_row(batch: Batch, row: int, pieces: Iterable[tuple[np.ndarray, int]]) -> None:
    """Write pieces one behind the other into a row of padding; what they leave free stays padding.

    pieces: the tokens of a part of a document and the one behind it, if there is one; and how many of these
    belong into the row. They must fit.
    """
    tokens, targets, positions = (each[row].numpy() for each in batch)
    at = 0
    for ids, size in pieces:
        tokens[at : at + size] = ids[:size]
        targets[at : at + len(ids) - 1] = ids[1:]
        positions[at : at + size] = np.arange(size)
        at += size
    positions[at:] = np.arange(len(positions) - at)
