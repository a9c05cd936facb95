"""What a training step gets, and how a row of it is put together from pieces of documents.

Which pieces a row has is the loader's business (`edge.train.data.loader`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
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


class AnswerBatch(NamedTuple):
    """The same of a model's answers. targets: the answers' tokens alone. states: float16 [rows, length,
    width], hidden states of the tokens.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    states: Tensor


AnyBatch = Batch | AnswerBatch


def parts_of(batch: AnyBatch, size: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The batch's tensors on a device, so many rows at a time."""
    for start in range(0, len(batch.tokens), size):
        yield tuple(each[start : start + size].to(device) for each in batch)


class Part(NamedTuple):
    """A part of a document for a row. ids: its tokens and the one behind it, if there is one. size: how many
    of these belong into the row. answer: place in `ids` of the answer's first token, not above 0 where it
    began before. states: [size, width], or None.
    """

    ids: npt.NDArray[np.integer[Any]]
    size: int
    answer: int = 0
    states: npt.NDArray[np.float16] | None = None


class Piece(NamedTuple):
    """Tokens start..stop-1 of a document."""

    document: int
    start: int
    stop: int


def empty_batch(rows: int, length: int, width: int = 0) -> AnyBatch:
    """Rows of padding only: token 0, no targets, positions that count from 0. width: of states, 0 without."""
    plain = Batch(
        torch.zeros(rows, length, dtype=torch.int64),
        torch.full((rows, length), IGNORED, dtype=torch.int64),
        torch.arange(length).repeat(rows, 1),
    )
    return AnswerBatch(*plain, torch.zeros(rows, length, width, dtype=torch.float16)) if width else plain


def fill_row(batch: AnyBatch, row: int, parts: Iterable[Part]) -> None:
    """Write parts one behind the other into a row of padding; what they leave free stays padding. They must
    fit.
    """
    tokens, targets, positions = (each[row].numpy() for each in batch[:3])
    at = 0
    for ids, size, answer, states in parts:
        tokens[at : at + size] = ids[:size]
        first = min(max(answer, 1), len(ids))
        targets[at + first - 1 : at + len(ids) - 1] = ids[first:]
        positions[at : at + size] = np.arange(size)
        if isinstance(batch, AnswerBatch):
            batch.states[row, at : at + size] = torch.from_numpy(np.array(states))
        at += size
    positions[at:] = np.arange(len(positions) - at)
