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


@pytest.fixture(scope="module")
def progressions(make_bundle: Callable[..., Bundle]) -> Bundle:
    """A model that has learned to go on with two progressions in turn: the token before last, plus one."""
    config = minicpm_target(hidden_size=128, vocab_size=120)
    ids = torch.tensor([token for token in range(3, 120) if token not in config.eos_token_ids])
    torch.manual_seed(0)
    decoder = Decoder(config, 64)
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.1)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=4e-3, weight_decay=0.0)
    places = torch.arange(24)
    for _ in range(80):
        begins = torch.randint(0, len(ids), (32, 2))
        tokens = ids[(begins[:, places % 2] + places // 2) % len(ids)]
        loss = functional.cross_entropy(decoder(tokens)[:, 1:-1].flatten(0, 1), tokens[:, 2:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5
    trained = decoder.state_dict()

    def change(name: str, values: np.ndarray) -> None:
        values[...] = trained[name].numpy().reshape(values.shape)

    return make_bundle(config, change=change, tokenizer=True)


def test_from_answers_to_a_model_that_guesses_for_itself(
    progressions: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The commands; what was learned guesses the token after next, natively and in PyTorch, and changes
    nothing. The first mask has it all before it, the second would have to add two.
    """

    def edge(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["edge", *map(str, arguments)])
        assert main() == 0
        return capsys.readouterr().out.splitlines()[-1]

    texts = [chr(40 + 3 * number) + chr(110 - 4 * number) for number in range(18)]
    (tmp_path / "prompts.txt").write_text("\n".join(texts[:12]), encoding="utf-8")
    places = ("--split", "line", "--out", tmp_path / "answers", "--context", 128, "--answer-tokens", 40)
    edge("train", "answers", progressions.path, tmp_path / "prompts.txt", *places)
    changes = ["data.length=64", "data.rows=4", "draft.groups=24", "draft.prefix=4", "schedule.steps=60"]
    changes += ["evaluation.every=30", "runtime.precision=float32", "runtime.threads=1"]
    sets = [part for change in changes for part in ("--set", change)]
    data = ("--answers", tmp_path / "answers", "--held-out", tmp_path / "answers", "--kind", "bita")
    said = json.loads(
        edge("train", "draft", progressions.path, *data, "--out", tmp_path / "run", *sets, "--json")
    )
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    held_out = [line["held_out/answers"] for line in log if "held_out/answers" in line]
    assert said["step"] == 60 and held_out[-1] < held_out[0] - 0.1 and log[-1]["loss"] < log[0]["loss"] - 0.5
    assert log[-1]["held_out_agreement/answers"] > 0.5
    weights = read_bita(tmp_path / "run" / "model", progressions.config)
    assert weights.embeddings.shape == (2, 128) and weights.keys.shape == (2, 4, 2, 32)
    for executor in ("native", "torch"):
        with load(
            progressions.path, speculate=tmp_path / "run" / "model", context=128, executor=executor
        ) as opened:
            opened.scheduler.costs = FreeRows()
            offered = accepted = 0
            for text in texts[12:]:
                asked = {"max_new_tokens": 40, "temperature": 0, "repetition_penalty": 1.0}
                plain = opened.complete(text, session=opened.session(speculate=False), **asked)
                done = opened.complete(text, **asked)
                assert done.tokens == plain.tokens and done.speculation is not None
                offered += sum(done.speculation.offered_at[:1])
                accepted += sum(done.speculation.accepted_at[:1])
            assert offered > 40 and accepted > 0.4 * offered
