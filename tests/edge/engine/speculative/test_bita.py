"""A model that guesses by its own soft rows: what is proposed, what it costs, and that answers stay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import edge
from edge.checkpoints.bita import random_bita, read_bita, write_bita
from edge.config import SparseConfig
from edge.engine.costs import Curve
from edge.engine.speculative.bita import Bita, BitaDrafter
from edge.engine.speculative.choice import choose
from edge.engine.speculative.drafter import Accepted, Budget
from edge.engine.speculative.sequence import PassCost, SequenceSpeculation
from edge.engine.speculative.track_record import TrackRecord
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.errors import CheckpointError, ConfigError, EdgeError
from edge.hub.drafts import open_draft
from edge.quant.scheme import QuantScheme
from tests.planted import FreeRows

VOCABULARY = 120
INT4 = QuantScheme("int4", 32)


class Prompt:
    """Of two embeddings, on no executor."""

    count = 2

    def close(self) -> None:
        pass


@pytest.fixture
def drafter() -> BitaDrafter:
    return BitaDrafter(Bita(Prompt()))


def budget(rows: int, depth: int = 8, least_chance: float = 0.3) -> Budget:
    return Budget(rows=rows, depth=depth, token_seconds=1.0, least_chance=least_chance)


def logits_of(*likeliest: list[int]) -> np.ndarray:
    """A row of each: the first is the likeliest, and so on."""
    rows = np.zeros((len(likeliest), VOCABULARY), np.float32)
    for row, tokens in zip(rows, likeliest, strict=True):
        row[tokens] = [10 - at for at in range(len(tokens))]
    return rows


def told(drafter: BitaDrafter, tokens: list[int], soft: Any = None) -> np.ndarray:
    """All but the last of the sequence stand in the cache."""
    drafter.accepted(Accepted(0, np.array(tokens[:-1], np.int32), None, soft))
    return np.array(tokens, np.int32)


def test_every_row_guesses_behind_the_likeliest_of_the_one_before(drafter):
    tokens = told(drafter, [1, 2, 3, 4], logits_of([7, 8, 9], [5, 6]))
    tree = drafter.propose(tokens, budget(9))
    assert tree.tokens[:5] == [7, 8, 9, 5, 6] and tree.group == 2
    assert tree.parents == [-1, -1, -1, 0, 0, 0]
    assert (np.diff(tree.chances[:3]) <= 0).all() and tree.chances[3] <= tree.chances[0]


def test_tokens_that_were_forced_need_no_guess(drafter):
    tokens = told(drafter, [1, 2, 3, 4], logits_of([7], [5]))
    tree = drafter.propose(np.array([*tokens, 7], np.int32), budget(9, least_chance=1.0))
    assert tree.tokens == [5] and tree.parents == [-1]
    assert len(drafter.propose(np.array([*tokens, 7, 5], np.int32), budget(9))) == 0


def test_nothing_is_known_without_rows(drafter):
    """At first, after a prompt, and where the sequence was cut: only the groups are wanted."""
    assert drafter.propose(np.array([1, 2], np.int32), budget(9)).rows == 2
    told(drafter, [1, 2, 3], logits_of([7], [5]))
    assert len(drafter.propose(np.array([1, 2], np.int32), budget(9))) == 0
    tokens = told(drafter, [1, 2, 3])
    assert len(drafter.propose(tokens, budget(9))) == 0


def test_it_learns_how_often_each_row_is_right(drafter):
    before = None
    for _ in range(60):  # the first row is always right and the second never
        tokens = told(drafter, [1, 2, 3], logits_of([7], [5]))
        tree = drafter.propose(tokens, budget(9, least_chance=1.0))
        before = before or tree.chances
        tokens = told(drafter, [1, 2, 3, 7, 6], logits_of([7], [5]))
        drafter.propose(tokens, budget(9))
        after = tree.chances
    assert after[0] > before[0] and after[1] < 0.2 * before[1]


def test_the_rows_of_a_tree():
    """Behind the root, then behind each node, each seeing its path and those of its group before it."""
    tree = DraftTree([5, 6, 7], [-1, 0, -1], [1.0] * 3, group=2)
    assert tree.rows == 3 + 4 * 2
    assert tree.positions().tolist() == [0, 1, 2, 1, 1, 2, 2, 3, 3, 4, 2, 3]
    seen = [[at for at in range(12) if int(mask) >> at & 1] for mask in tree.masks()]
    assert seen[:4] == [[0], [0, 1], [0, 1, 2], [0, 3]]
    assert seen[4:8] == [[0, 4], [0, 4, 5], [0, 1, 6], [0, 1, 6, 7]]
    assert seen[8:] == [[0, 1, 2, 8], [0, 1, 2, 8, 9], [0, 3, 10], [0, 3, 10, 11]]
    assert tree.positions(2).tolist() == [0, 1, *(tree.positions() + 2)]
    for some in (tree.best(1), tree.within(1), tree.likeliest_path(), tree.best(0)):
        assert some.group == 2
    assert tree.best(0).rows == 2 and NOTHING.rows == 0


def test_a_guess_pays_for_its_group():
    """Every row costs a tenth of a pass: with two soft rows a guess costs three."""
    curve = Curve(1 + 0.1 * np.arange(512))

    def tree(group: int, *chances: float) -> DraftTree:
        n = len(chances)
        return DraftTree([*range(n)], [*range(-1, n - 1)], [*chances], group)

    assert len(choose([tree(0, 0.6, 0.3, 0.2)], 1, 1, curve, most=60)[0]) == 3
    (chosen,) = choose([tree(2, 0.6, 0.3, 0.2)], 1, 1, curve, most=60)
    assert len(chosen) == 1 and chosen.rows == 5
    (chosen,) = choose([tree(2, 0.1)], 1, 1, curve, most=60)
    assert len(chosen) == 0 and chosen.rows == 2
    chosen, other = choose([tree(2, 0.9, 0.8), tree(2, 0.85)], 2, 2, curve, most=4 + 2 * 3 + 2)
    assert (len(chosen), len(other)) in ((1, 1), (2, 0)) and chosen.rows + other.rows <= 12
    for most, rows in ((1, 0), (2, 2), (4, 2), (5, 5)):
        (chosen,) = choose([tree(2, 0.9, 0.8)], 1, 1, curve, most=most)
        assert chosen.rows == rows


def test_what_rows_are_left_for_guesses():
    asked: list[Budget] = []

    class Asked(BitaDrafter):
        def propose(self, tokens: Any, budget: Budget) -> DraftTree:
            asked.append(budget)
            return super().propose(tokens, budget)

    speculation = SequenceSpeculation(Asked(Bita(Prompt())), "bita", TrackRecord())
    speculation._has_paid = True
    tokens = np.array([1, 2], np.int32)
    assert speculation.propose(tokens, budget(1)).rows == 0 and not asked
    assert [speculation.propose(tokens, budget(rows)).rows for rows in (2, 4, 5, 63)] == [2] * 4
    assert [each.rows for each in asked] == [0, 0, 1, 20]
    assert asked[0].least_chance == pytest.approx(0.9)


@pytest.fixture(params=["native", "torch"])
def model(request, make_bundle, tiny_config) -> Iterator[edge.Model]:
    shape = replace(tiny_config, vocab_size=VOCABULARY, max_position_embeddings=160)
    bundle = make_bundle(shape, INT4, tokenizer=True)
    with edge.load(bundle.path, executor=request.param, speculate="random:bita") as opened:
        opened.scheduler.costs = FreeRows()
        yield opened


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.5, "seed": 3}], ids=str)
def test_answers_stay(model, settings):
    """To the end of the context, in three streams, and the caches hold what was said and nothing else."""
    settings = {**settings, "ignore_eos": True}
    prompts = [[5, 6, 7], [9] * 40, list(range(10, 100))]
    plain = [model.complete(prompt, session=model.session(speculate=False), **settings) for prompt in prompts]
    sessions = [model.session() for _ in prompts]
    streams = [
        model.stream(prompt, session=session, **settings)
        for prompt, session in zip(prompts, sessions, strict=True)
    ]
    left = list(streams)
    while left:
        left = [stream for stream in left if next(stream, None) is not None]
    for stream, session, wanted, prompt in zip(streams, sessions, plain, prompts, strict=True):
        found = stream.result
        assert found.tokens == wanted.tokens and found.stop_reason == wanted.stop_reason == "context"
        assert session.tokens.tolist() == [*prompt, *found.tokens][:160]
        assert session.length == 160
    assert sum(stream.result.speculation.drafted for stream in streams) > 10


def test_it_rests_where_it_does_not_pay():
    """Passes whose soft rows cost a third of a token each, and bring none."""
    speculation, tokens = (
        SequenceSpeculation(BitaDrafter(Bita(Prompt())), "bita", TrackRecord()),
        np.arange(1, 99, dtype=np.int32),
    )
    rested = []
    for at in range(1, 60):
        tree = speculation.propose(tokens[:at], budget(9)) if speculation.is_awake() else NOTHING
        rested.append(tree.rows == 0)
        soft = logits_of([1], [1]) if tree.rows else None
        speculation.accepted(Accepted(at - 1, tokens[at - 1 : at], None, soft))
        speculation.count(tree, 0, 1)
        extra = tree.rows / 6
        speculation.settle(1, PassCost(1 + extra, 1.0, extra, 1, True))
    assert rested[:2] == [False, False] and 2 <= rested.count(False) < 12
    assert speculation.statistics.accepted == 0


def test_a_folder(make_bundle, tiny_config, tmp_path):
    bundle = make_bundle(replace(tiny_config, vocab_size=VOCABULARY), INT4, tokenizer=True)
    weights = random_bita(bundle.config)
    write_bita(tmp_path / "draft", weights, bundle.config)
    found = read_bita(tmp_path / "draft", bundle.config)
    for name, each in weights.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], each)
    with edge.load(bundle.path, speculate=tmp_path / "draft") as model:
        assert model.scheduler.speculation is not None
        assert model.scheduler.speculation.memory_bytes == weights.bytes
        plain = model.complete(
            [5, 6], session=model.session(speculate=False), temperature=0, max_new_tokens=9
        )
        assert model.complete([5, 6], temperature=0, max_new_tokens=9).tokens == plain.tokens
    with pytest.raises(CheckpointError, match="goes into no bundle"):
        open_draft(tmp_path / "draft", bundle)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 64}, "hidden_size is 64, not"),
        ({"num_hidden_layers": 7}, "num_hidden_layers is 7"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"masks": 3}, "'mask_embeddings' .* asks for"),
        ({"masks": True}, "'masks' .* must be a number from 1 to 16"),
        ({"prefix": 1 << 40}, "'prefix' .* must be a number from 1 to 256"),
        ({"kind": "eagle2"}, None),
    ],
    ids=str,
)
def test_folders_that_do_not_fit(make_bundle, tiny_config, tmp_path, changes, says):
    bundle = make_bundle(replace(tiny_config, vocab_size=VOCABULARY), INT4, tokenizer=True)
    write_bita(tmp_path / "draft", random_bita(bundle.config), bundle.config)
    path = tmp_path / "draft/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(EdgeError, match=says):
        edge.load(bundle.path, speculate=tmp_path / "draft")
    with pytest.raises((ConfigError, CheckpointError)):
        read_bita(tmp_path / "draft", bundle.config)


@pytest.mark.parametrize("broken", ["missing", "surplus", "infinite", "whole"])
def test_tensors_that_are_damaged(make_bundle, tiny_config, tmp_path, broken):
    bundle = make_bundle(replace(tiny_config, vocab_size=VOCABULARY), INT4, tokenizer=True)
    write_bita(tmp_path / "draft", random_bita(bundle.config), bundle.config)
    tensors = {name: each.copy() for name, each in random_bita(bundle.config).tensors.items()}
    if broken == "missing":
        del tensors["prefix_values"]
    elif broken == "surplus":
        tensors["fc.weight"] = np.zeros(3, np.float32)
    elif broken == "infinite":
        tensors["prefix_keys"][0, 1, 0, 2] = np.inf
    else:
        tensors["prefix_values"] = np.zeros(tensors["prefix_values"].shape, np.int8)
    save_file(tensors, tmp_path / "draft/model.safetensors")
    with pytest.raises(CheckpointError, match=r"prefix_|fc\.weight"):
        edge.load(bundle.path, speculate=tmp_path / "draft")


def test_executors_that_can_not(make_bundle, tiny_config):
    sparse = SparseConfig(dense_len=128, window_size=128, init_blocks=1, topk=2)
    bundle = make_bundle(replace(tiny_config, vocab_size=VOCABULARY, sparse=sparse), INT4, tokenizer=True)
    with pytest.raises(EdgeError, match="native or torch, with --attention dense"):
        edge.load(bundle.path, speculate="random:bita", attention="sparse")
    with edge.load(bundle.path, speculate="random:bita", attention="dense") as model:
        assert model.executor.capabilities.soft_rows
