"""A draft run several times over the same rows, as it is when it guesses several tokens in a row.

The first time every row reads the target's true hidden states. Each further time it reads what the time
before made of the row before, and attends to true rows up to where the guesses began and to the rows of the
guesses since (training-time test, EAGLE-3, arXiv 2503.01840, section 3.2; HASS, arXiv 2408.15766).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edge.model.network.draft import Draft
from edge.model.network.kv_cache import GrowingCache
from edge.train.attention import document_numbers


def unrolled(
    draft: Draft, embeddings: Tensor, hidden: Tensor, positions: Tensor, times: int
) -> Iterator[Tensor]:
    """The states of each time: [rows, n, hidden]; those of time t mean nothing in the first t rows of a
    document.

    embeddings: of the token after each row's, [rows, n, hidden]. hidden: the target's, alike. positions: int
    [rows, n], 0 where a document begins.
    """
    masks, keys = visible(positions, times), GrowingCache(draft.shape)
    for time in range(times):
        states = draft.layers_over(draft.fc(draft.joined(embeddings, hidden)), positions, masks[time], keys)
        keys.advance(states.shape[-2])
        yield states
        hidden = states.roll(1, -2)


def visible(positions: Tensor, times: int) -> list[Tensor]:
    """What the rows see the first time, the second, and so on: bool [rows, 1, n, (time + 1) * n].

    Row i of time t sees true rows up to i - t and, of time m from 1 on, the row i - t + m.
    """
    n = positions.shape[-1]
    document = document_numbers(positions)
    same = document.unsqueeze(-1) == document.unsqueeze(-2)
    row = torch.arange(n, device=positions.device)
    behind = row.unsqueeze(-1) - row
    found = []
    for time in range(times):
        parts = [behind >= time, *(behind == time - m for m in range(1, time + 1))]
        found.append(torch.cat([same & part for part in parts], -1).unsqueeze(-3))
    return found
