"""What a draft minimises, beside plain PyTorch and beside the draft as it guesses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edge.checkpoints.synthetic_draft import draft_shape
from edge.model.network.decoder import Attention, Decoder, fused_attention
from edge.model.network.draft import Draft
from edge.model.network.kv_cache import GrowingCache
from edge.train.config import DraftSection
from edge.train.data.batch import IGNORED, AnswerBatch
from edge.train.drafts import head_loss
from edge.train.drafts.head_loss import told_apart
from edge.train.drafts.loops import loop_start
from edge.train.drafts.objective import DraftObjective
from edge.train.drafts.unrolled import unrolled
from tests.drafts import llama_target, minicpm_target

TIMES = 3


def random_draft(**changes: object) -> tuple[Draft, Decoder]:
    """A draft and its target, of random weights."""
    torch.manual_seed(0)
    target = Decoder(minicpm_target(), 64)
    draft = Draft(draft_shape(target.config, input_norms=True, attention_norm=True, **changes), target)
    for parameter in draft.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return draft, target


@pytest.mark.parametrize("part", [1 << 24, 1 << 10])
def test_the_head_loss_is_cross_entropy_with_its_gradient(monkeypatch: pytest.MonkeyPatch, part: int):
    monkeypatch.setattr(head_loss, "_MOST_LOGITS", part)
    torch.manual_seed(1)
    found = torch.randn(2, 37, 24, requires_grad=True)
    wanted, head = torch.randn(37, 24), torch.randn(203, 24)
    cross_entropy, agreed = told_apart(found, wanted, head)
    weights = torch.rand(2, 37)
    (cross_entropy * weights).sum().backward()
    mine, gradient = found.grad, found.detach()
    gradient.requires_grad_()
    logits, p = gradient @ head.T, (wanted @ head.T).softmax(-1)
    plain = functional.cross_entropy(logits.flatten(0, 1), p.repeat(2, 1), reduction="none").view(2, 37)
    (plain * weights).sum().backward()
    torch.testing.assert_close(cross_entropy, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine, gradient.grad, rtol=1e-4, atol=1e-4)
    assert torch.equal(agreed.bool(), logits.argmax(-1) == p.argmax(-1))
    assert 0 < agreed.sum() < agreed.numel() or agreed.sum() == 0


def in_a_row(draft: Draft, tokens: Tensor, hidden: Tensor, place: int, count: int) -> list[Tensor]:
    """The states of guesses in a row, as a drafter makes them: rows 0 .. place are true, then `count` - 1
    more each take the state of the one before. tokens: of all rows.
    """
    cache = GrowingCache(draft.shape)
    states = draft(tokens[: place + 1], hidden[: place + 1], cache=cache)
    found = [states[-1]]
    for further in range(place + 1, place + count):
        found.append(draft(tokens[further : further + 1], found[-1].unsqueeze(0), cache=cache)[0])
    return found


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_each_time_is_what_the_draft_guesses_after_so_many_guesses(layers: int):
    """Two documents in a row: row i of time t is the t-th guess in a row behind the true row i - t."""
    draft, target = random_draft(num_hidden_layers=layers, window=None)
    lengths = (11, 8)
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    tokens = torch.randint(0, 203, (sum(lengths),))
    hidden = torch.randn(sum(lengths), 144)
    wanted = {}
    for first, n in zip((0, lengths[0]), lengths, strict=True):
        rows = slice(first, first + n)
        for place in range(n):
            guesses = in_a_row(draft, tokens[rows], hidden[rows], place, min(TIMES, n - place))
            wanted |= {(time, first + place + time): state for time, state in enumerate(guesses)}
    for module in draft.modules():
        if isinstance(module, Attention):
            module.attend = fused_attention
    embeddings = target.model.embed(tokens).unsqueeze(0)
    found = list(unrolled(draft, embeddings, hidden.unsqueeze(0), positions, TIMES))
    assert len(found) == TIMES and len(wanted) == sum(3 * n - 3 for n in lengths)
    for (time, row), state in wanted.items():
        torch.testing.assert_close(found[time][0, row], state, rtol=1e-4, atol=1e-4)


def test_only_known_places_of_answers_count():
    """A prompt of 3 tokens and an answer of 4, then a document of which the row has the begin alone."""
    draft, target = random_draft(window=None)
    one = DraftSection(times=1)
    objective = DraftObjective(draft, target.model.embed_tokens.weight, torch.randn(50, 144), one)
    tokens = torch.randint(0, 203, (1, 10))
    targets = torch.tensor([[IGNORED, IGNORED, 5, 6, 7, 8, IGNORED, 9, 9, 9]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]])
    batch = AnswerBatch(tokens, targets, positions, torch.randn(1, 10, 144).half())
    assert objective.counts(batch) == (6,)  # the states at 2, 3, 4 and 5, and at 8 and 9
    several = DraftObjective(draft, target.model.embed_tokens.weight, torch.randn(50, 144), DraftSection())
    assert several.counts(batch) == (3,)  # behind two rows more
    first, all_times = objective(*batch), several(*batch)
    states = batch.states.clone()
    states[0, 6] = 100  # of a document's last token: it has never been run
    other = batch._replace(states=states)
    for found, same in zip((*first, *all_times), (*objective(*other), *several(*other)), strict=True):
        assert torch.equal(found, same)
    states[0, 4] = 100
    assert not torch.equal(objective(*batch._replace(states=states)).token, first.token)


def test_a_wrong_draft_is_told_from_a_right_one():
    draft, target = random_draft(window=None)
    objective = DraftObjective(
        draft, target.model.embed_tokens.weight, torch.randn(50, 144), DraftSection(times=1)
    )
    tokens = torch.randint(0, 203, (1, 12))
    positions = torch.arange(12).unsqueeze(0)
    states = torch.zeros(1, 12, 144)
    states[0, 0] = torch.randn(144)
    for place in range(11):  # a target that says what the draft says
        states[0, place + 1] = draft(tokens[0, 1:][: place + 1], states[0, : place + 1])[-1].detach()
    targets = torch.full((1, 12), 4)
    right = objective(tokens, targets, positions, states)
    wrong = objective(tokens, targets, positions, states.roll(1, 1))
    assert right.feature < 1e-4 and wrong.feature > 0.01
    assert (
        right.agreed == objective.counts(AnswerBatch(tokens, targets, positions, states))[0] == 11
        and right.token < wrong.token
    )


def test_an_answer_ends_where_it_begins_to_loop():
    assert loop_start(list(range(40))) == 40
    assert loop_start([*range(8), 99, *range(8), 98, *range(8), 97]) == 25
    assert loop_start([1, 2] * 20) == 11
    assert loop_start([]) == 0


def test_llama_targets_have_drafts_too():
    target = Decoder(llama_target(), 64)
    draft = Draft(draft_shape(target.config, input_norms=True, attention_norm=True, fc_bias=False), target)
    objective = DraftObjective(draft, target.model.embed_tokens.weight, torch.randn(50, 144), DraftSection())
    losses = objective(
        torch.zeros(2, 5).long(),
        torch.ones(2, 5).long(),
        torch.arange(5).repeat(2, 1),
        torch.randn(2, 5, 144),
    )
    losses.token.backward()
    assert all(each.grad is not None for each in draft.parameters())
