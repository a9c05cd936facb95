"""What a soft prompt learns, and that it is what the executors then run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edge.apps.cli.main import main
from edge.checkpoints.bita import read_bita
from edge.formats.bundle.reader import Bundle
from edge.model.network.decoder import Attention, Decoder, fused_attention
from edge.runtime import load
from edge.train.attention import packed
from edge.train.config import DraftSection
from edge.train.data.batch import IGNORED, AnswerBatch
from edge.train.drafts.bita import BitaObjective, chosen_groups
from tests.drafts import minicpm_target
from tests.planted import FreeRows

MASKS = 3


def objective_of(groups: int = 4) -> tuple[BitaObjective, Decoder]:
    torch.manual_seed(0)
    decoder = Decoder(minicpm_target(), 64).requires_grad_(False).eval()
    for module in decoder.modules():
        if isinstance(module, Attention):  # so that it matters what is seen
            module.o_proj.weight *= 40
    decoder.use_attention(packed(fused_attention))
    objective = BitaObjective(decoder, DraftSection(masks=MASKS, prefix=4, groups=groups))
    for each in objective.parameters():
        torch.nn.init.normal_(each)
    return objective, decoder


def batch_of(lengths: tuple[int, ...], begins: tuple[int, ...], seed: int = 1) -> AnswerBatch:
    """One row of documents whose answers begin at these places."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 203, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    targets, first = torch.full_like(tokens, IGNORED), 0
    for n, begin in zip(lengths, begins, strict=True):
        targets[0, first + begin - 1 : first + n - 1] = tokens[0, first + begin : first + n]
        first += n
    return AnswerBatch(tokens, targets, positions, torch.zeros(1, sum(lengths), 1))


def test_a_group_guesses_what_comes_after_the_next_token():
    """Two documents: nothing is guessed of a prompt, or beyond a document's end."""
    batch = batch_of((7, 5), (3, 2))
    groups = chosen_groups(*batch[:3], most=50, masks=2)
    found = {
        int(place): wanted.tolist()
        for place, wanted in zip(groups.places[0], groups.targets[0], strict=True)
        if wanted[0] != IGNORED
    }
    t = batch.tokens[0].tolist()
    wanted = {place: [t[place + 2], t[place + 3] if place < 4 else IGNORED] for place in (1, 2, 3, 4)}
    wanted |= {7: [t[9], t[10]], 8: [t[10], t[11]], 9: [t[11], IGNORED]}
    assert found == wanted


def test_some_of_many_places():
    """Spread over the row, others in other rows, and the same again for the same row."""
    batch = batch_of((64,), (2,))
    groups = chosen_groups(*batch[:3], most=8, masks=2)
    places = groups.places[0].tolist()
    assert (groups.targets[..., 0] != IGNORED).all() and len(set(places)) == 8
    assert all(5 <= b - a <= 10 for a, b in pairwise(places))
    assert torch.equal(groups.places, chosen_groups(*batch[:3], most=8, masks=2).places)
    others = {
        tuple(chosen_groups(*batch_of((64,), (2,), seed)[:3], 8, 2).places[0].tolist()) for seed in range(9)
    }
    assert len(others) > 2


def test_losses_are_those_of_groups_alone():
    """Every group by a pass over what it sees, and nothing but the soft prompt gets a gradient."""
    objective, decoder = objective_of(50)
    one, other = batch_of((11, 9), (3, 2)), batch_of((20,), (6,), 2)
    batch = AnswerBatch(*(torch.cat(each) for each in zip(one, other, strict=True)))
    groups = chosen_groups(*batch[:3], most=50, masks=MASKS)
    loss, rows, first, last = torch.zeros(()), 0, 0, 0
    decoder.use_attention(fused_attention)

    def logits_behind(row: int, place: int) -> Tensor:
        begin = place - int(batch.positions[row, place])
        soft = objective.soft.rows(torch.arange(MASKS))
        trunk = decoder.trunk(batch.tokens[row, begin : place + 1], soft=soft)
        return decoder.logits(trunk.hidden[-MASKS:])

    for row in range(2):
        for place, wanted in zip(groups.places[row].tolist(), groups.targets[row], strict=True):
            if wanted[0] == IGNORED:
                continue
            logits = logits_behind(row, place)
            loss = loss + functional.cross_entropy(logits, wanted, reduction="sum", ignore_index=IGNORED)
            right = logits.argmax(-1) == wanted
            first, last = first + int(right[0]), last + int(right[-1])
            rows += int((wanted != IGNORED).sum())
    gradients = torch.autograd.grad(loss, list(objective.parameters()))
    decoder.use_attention(packed(fused_attention))
    found = objective(*batch)
    found.token.backward()
    assert objective.counts(batch)[0] == rows
    torch.testing.assert_close(found.token, loss, rtol=1e-4, atol=1e-3)
    assert (int(found.agreed), int(found.agreed_last)) == (first, last)
    for parameter, wanted in zip(objective.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-4)
    assert all(each.grad is None for each in decoder.parameters())
    assert [name for name, _ in objective.named_parameters()] == [
        f"soft.{name}" for name in ("mask_embeddings", "prefix_keys", "prefix_values")
    ]


def test_a_row_without_answers():
    objective, _ = objective_of()
    batch = batch_of((12,), (12,))
    assert objective.counts(batch) == (0, 0, 0)
    assert objective(*batch).token.item() == 0
