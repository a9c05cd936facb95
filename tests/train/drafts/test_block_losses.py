"""What a block draft minimises, beside the draft as it guesses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.checkpoints.draft import DraftCheckpoint
from edge.checkpoints.synthetic_draft import draft_shape
from edge.model.network.block_draft import BlockDraft
from edge.model.network.decoder import Attention, Decoder, fused_attention
from edge.model.network.kv_cache import GrowingCache
from edge.train.config import DraftSection
from edge.train.data.batch import IGNORED, AnswerBatch
from edge.train.drafts import block_objective
from edge.train.drafts.block_objective import BlockObjective, blocks_of
from edge.train.drafts.network import draft_config, save_draft
from tests.drafts import minicpm_target

OPTIONS = DraftSection(kind="dspark", layers=2, block=4, anchors=5, markov_rank=24)
LENGTHS = (11, 8)


def random_draft(options: DraftSection = OPTIONS, fused: bool = True) -> BlockDraft:
    torch.manual_seed(0)
    target = Decoder(minicpm_target(num_hidden_layers=8), 64)
    draft = BlockDraft(draft_config(options, target.config, None), target)
    for name, parameter in draft.named_parameters():
        nn.init.normal_(parameter, std=0.1 if "confidence" in name else 0.3)
    for module in draft.modules():
        if isinstance(module, Attention) and fused:
            module.attend = fused_attention
    return draft


def batch_of(draft: BlockDraft, rows: int = 2) -> AnswerBatch:
    """Two documents a row, the first of which has a prompt of three tokens."""
    torch.manual_seed(1)
    n = sum(LENGTHS)
    tokens = torch.randint(0, 203, (rows, n))
    targets = tokens.roll(-1, 1)
    for last in (LENGTHS[0] - 1, n - 1, 0, 1):
        targets[:, last] = IGNORED
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(rows, -1)
    states = torch.randn(rows, n, draft.config.hidden_columns + 144)
    return AnswerBatch(tokens, targets, positions, states.half())


def test_blocks_are_of_one_answer() -> None:
    batch = batch_of(random_draft())
    blocks = blocks_of(batch.tokens, batch.targets, batch.positions, 19, 4)
    anchors, known = blocks.places[..., 0], blocks.known
    assert [*anchors[0]] == [*range(19)]  # all of them, where more are wanted than there are
    ends = [LENGTHS[0] - 1] * LENGTHS[0] + [sum(LENGTHS) - 1] * LENGTHS[1]
    for place in range(19):
        first = place in (0, 1, LENGTHS[0])  # nothing is before it, or it is of the prompt
        assert known[0, place].tolist() == [not first and place + step < ends[place] for step in range(4)]
    some = blocks_of(batch.tokens, batch.targets, batch.positions, 5, 4)
    again = blocks_of(batch.tokens, batch.targets, batch.positions, 5, 4)
    assert torch.equal(some.places, again.places) and some.known.any(-1).all()
    assert not torch.equal(some.places[0], some.places[1])


@pytest.mark.parametrize("most", [1 << 24, 1 << 10])
@pytest.mark.parametrize("some", [False, True])
def test_losses_are_those_of_blocks_as_they_are_guessed(monkeypatch: Any, most: int, some: bool) -> None:
    """Each from a cache of what stands before its anchor, with the true token before every place."""
    monkeypatch.setattr(block_objective, "_MOST_LOGITS", most)
    draft, ids = random_draft(), torch.randperm(203)[:50] if some else None
    head = torch.randn(203 if ids is None else 50, 144)
    batch = batch_of(draft)
    objective = BlockObjective(draft, head, OPTIONS, nn.Identity(), ids)
    losses = objective(*batch)
    blocks = blocks_of(*batch[:3], 5, 4)
    weights = torch.exp(-torch.arange(4) / 4.0)
    weights = weights / weights.mean()
    token = variation = confidence = agreed = expected = torch.zeros(())
    states, plain = batch.states.float(), random_draft(fused=False)
    for row, anchor_block in [(row, block) for row in range(2) for block in range(5)]:
        anchor = int(blocks.places[row, anchor_block, 0])
        first = 0 if anchor < LENGTHS[0] else LENGTHS[0]
        cache, size = GrowingCache(plain.shape), plain.config.hidden_columns
        plain.remember(states[row, first:anchor, :size], torch.arange(anchor - first), cache)
        at = torch.arange(anchor - first, anchor - first + 4)
        made = plain(plain.block(batch.tokens[row, anchor]), at, cache)
        alive = torch.ones(())
        for step in range(4):
            if not blocks.known[row, anchor_block, step]:
                break
            before = batch.tokens[row, anchor + step]
            bias = plain.bias(before)
            logits = made[step] @ head.T + (bias if ids is None else bias[ids])
            theirs = states[row, anchor + step, -144:] @ head.T
            p, q = theirs.softmax(-1), logits.softmax(-1)
            common = torch.minimum(p, q).sum()
            sure = plain.confidence(made[step], before)
            token = token + weights[step] * functional.cross_entropy(logits, p)
            variation = variation + weights[step] * (p - q).abs().sum()
            confidence = confidence + weights[step] * functional.binary_cross_entropy_with_logits(
                sure, common.detach()
            )
            agreed = agreed + (logits.argmax() == theirs.argmax())
            alive = alive * common.detach()
            expected = expected + alive
    wanted = (token, variation, confidence, agreed, expected)
    for found, each in zip(losses, wanted, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-3, atol=1e-3)
    assert objective.counts(batch) == (int(blocks.known.sum()), 10)
    sum(losses[:3]).backward()
    (token + variation + confidence).backward()
    for (name, mine), theirs_too in zip(draft.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs_too.grad, rtol=2e-3, atol=2e-3)


def test_a_block_draft_learns() -> None:
    """One batch by heart: more of a block is accepted, and the confidence head knows."""
    draft = random_draft()
    head = torch.randn(203, 144) / 4
    batch = batch_of(draft)
    objective = BlockObjective(draft, head, OPTIONS, nn.Identity())
    optimizer = torch.optim.AdamW(draft.parameters(), lr=1e-2)
    found: list[tuple[Tensor, ...]] = []
    places, blocks = objective.counts(batch)
    for _ in range(25):
        losses = objective(*batch)
        loss = 0.1 * losses.token + 0.9 * losses.variation + losses.confidence
        optimizer.zero_grad()
        (loss / places).backward()
        optimizer.step()
        found.append(tuple(each.detach() for each in losses))
    assert found[-1][4] / blocks > 1.2 > 0.8 > found[0][4] / blocks
    assert found[-1][2] < found[0][2]


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    for options in (OPTIONS, DraftSection(kind="dspark", markov_rank=0, confidence_loss=0, mask_token=7)):
        draft = random_draft(options)
        target = draft._target[0].config
        state = {f"draft.{name}": each.detach() for name, each in draft.state_dict().items()}
        save_draft(draft, target, None, tmp_path / str(options.markov_rank), state)
        folder = tmp_path / str(options.markov_rank)
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen3DSparkModel"]
        read = DraftCheckpoint(folder, target)
        assert read.config == draft_shape(
            target,
            "dspark",
            num_hidden_layers=options.layers,
            block_size=options.block,
            mask_token=202 if options.mask_token < 0 else 7,
            markov_rank=options.markov_rank,
            confidence=options.confidence_loss > 0,
        )
        for info in read.tensors:
            torch.testing.assert_close(
                torch.from_numpy(read.read_float32(info.name)), state[f"draft.{info.name}"]
            )
