"""The drafter over a draft network: rows that are true whatever happens, steps that pay, and answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edge.checkpoints.synthetic_draft import draft_shape
from edge.config.draft import EMBEDDING_NORM, FC, MARKOV_AFTER, MARKOV_BEFORE, OUTPUT_NORM, DraftConfig
from edge.config.tensors import EMBEDDING, FINAL_NORM, HEAD
from edge.engine.speculative.drafter import Budget
from edge.engine.speculative.eagle import Eagle, EagleDrafter
from edge.engine.speculative.known_rows import KnownRows
from edge.engine.speculative.small_model import SmallModel
from edge.engine.speculative.speculation import Speculation
from edge.engine.speculative.tree import DraftTree
from edge.errors import NativeError
from edge.executors.drafts import MARKOV_CANDIDATES, Tried
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.formats.bundle.reader import Bundle
from edge.quant.packing import dequantize
from edge.quant.scheme import QuantScheme
from edge.runtime import Model
from tests.draft_story import RICH, Story
from tests.planted import FreeRows
from tests.random_draft import write_draft

SPENT = Budget(rows=6, depth=4, token_seconds=0.02, least_chance=0.2)
_MOVED = MARKOV_CANDIDATES  # tokens that a Markov head chooses among


@pytest.fixture
def open_one() -> Any:
    """`open_one(bundle, name="native")`: an executor, closed at the end."""
    opened = []

    def make(bundle: Bundle, name: str = "native") -> Any:
        opened.append(open_executor(bundle, RunOptions(executor=name, **exact(name))))
        return opened[-1]

    yield make
    for executor in opened:
        executor.close()


def exact(name: str) -> dict[str, Any]:
    if name != "native":
        return {"max_batch": 128}
    return {"activations": "float32", "kv_type": "float32", "threads": 2, "max_batch": 128}


@pytest.fixture
def shaped(tiny_config) -> Callable[..., Any]:
    """`shaped(field=value, ...)`: the shape of a tiny MiniCPM4."""
    return lambda **changes: replace(
        tiny_config, **{"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 64, **changes}
    )


@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize(
    ("kind", "layers"),
    [("eagle2", 1), ("eagle2", 2), ("eagle3", 1), ("mtp", 1), ("dspark", 1), ("dspark", 3)],
)
def test_rows_are_true_whatever_happens(shaped, make_bundle, tmp_path, open_one, window, kind, layers):
    """Prompts, accepted tokens, cuts, guesses that nobody verified: the tree is that of a drafter which sees
    the sequence for the first time."""
    bundle = make_bundle(shaped(max_position_embeddings=256))
    config = draft_shape(bundle.config, kind, window=window, num_hidden_layers=layers)
    executor, ids = open_one(bundle), np.arange(60, dtype=np.int32) if kind == "eagle3" else None
    if ids is not None:
        config = config.with_head(len(ids))
    eagle = Eagle(executor.open_draft(write_draft(tmp_path / "draft", bundle, config, token_ids=ids)))
    rng = np.random.default_rng(layers)
    # what a random confidence head says is far too little
    budget = RICH if kind != "dspark" else RICH._replace(least_chance=1e-6)

    def some(n: int) -> list[int]:
        return rng.integers(0, bundle.config.vocab_size, n).tolist()

    story = Story(executor, eagle)
    for _ in range(40):
        if len(story.tokens) > 150 or rng.random() < 0.25:
            story.cut(max(0, len(story.tokens) - int(rng.integers(1, 40))))
        story.go_on(some(rng.integers(1, 30 if rng.random() < 0.3 else 5)))
        for root in some(rng.integers(0, 3)):
            tree = story.propose(root, budget)
            wanted = story.fresh().propose(root, budget)
            assert len(tree) == RICH.rows
            np.testing.assert_array_equal(tree.tokens, wanted.tokens)
            np.testing.assert_array_equal(tree.parents, wanted.parents)


def test_what_is_not_known_is_left_out(shaped, make_bundle, tmp_path, open_one):
    """Without the last hidden state there is no guess; behind a gap the cache begins anew."""
    bundle = make_bundle(shaped(max_position_embeddings=256))
    executor = open_one(bundle)
    eagle = Eagle(executor.open_draft(write_draft(tmp_path / "draft", bundle, draft_shape(bundle.config))))
    tokens = np.random.default_rng(1).integers(0, 77, 200).tolist()
    story = Story(executor, eagle)
    assert not len(story.propose(5))
    story.go_on(tokens[:40])
    assert len(story.propose(tokens[40]))
    story.go_on(tokens[40:60], tell_hidden=False)
    assert not len(story.propose(tokens[60]))
    story.go_on(tokens[60:63])
    assert len(story.propose(tokens[63]))
    assert story.drafter._cache.length == 3  # the rows before the gap are gone
    story.go_on(tokens[63:65], tell_hidden=False)
    story.go_on(tokens[65:66])
    assert len(story.propose(9))
    assert story.drafter._cache.length == 4  # a small one is nothing to begin anew for
    story.cut(10)
    story.go_on(tokens[66:67])
    assert len(story.propose(9))
    assert story.drafter._cache.length == 9  # some old hidden states were still there


def test_chances_do_not_grow_along_paths(shaped, make_bundle, tmp_path, open_one):
    bundle = make_bundle(shaped())
    executor = open_one(bundle)
    eagle = Eagle(executor.open_draft(write_draft(tmp_path / "draft", bundle, draft_shape(bundle.config))))
    for probability in (0.05, 0.3, 0.97):  # as if some guesses were better than their word, others worse
        for right in range(100):
            eagle.calibration.learn(probability, right < 60)
    story = Story(executor, eagle)
    story.go_on([1, 2, 3])
    tree = story.propose(4)
    assert tree.depth > 1
    for node, parent in enumerate(tree.parents):
        assert 0 < tree.chances[node] <= (tree.chances[parent] if parent >= 0 else 1)
        assert parent < node
        children = [tree.tokens[child] for child in tree.children(node)]
        assert len(set(children)) == len(children)


def tried(chances: list[float], parents: list[int], seconds: list[float]) -> Tried:
    return Tried([*range(len(chances))], parents, np.log(chances).tolist(), seconds)


@dataclass
class NoNetwork:
    """What `Eagle.plan` asks of one."""

    config: DraftConfig


def test_steps_are_planned_by_what_they_gave_and_cost(shaped):
    eagle = Eagle(NoNetwork(draft_shape(shaped())))
    plan = eagle.plan(Budget(rows=6, depth=4, token_seconds=0.02, least_chance=0.2))
    assert plan is not None
    assert (plan.steps, plan.branches, plan.rows) == (4, 5, 6)
    assert not any(plan.least_gains)  # costs are not known yet
    chances, parents = [0.8, 0.1, 0.6, 0.1], [-1, -1, 0, 0]
    for _ in range(60):
        one = tried(chances, parents, [0.005, 0.003])
        eagle.record(one, 2, DraftTree(one.tokens, one.parents, chances), SPENT)
    plan = eagle.plan(Budget(rows=6, depth=4, token_seconds=0.02, least_chance=0.2))
    assert plan is not None
    # A row costs 0.2 of a token: step 1 gives 0.6 - 0.2 for leaves of 0.8, and must give 0.003 / 0.02.
    assert plan.least_gains[1] == pytest.approx(0.003 / 0.02 / (0.4 / 0.8), rel=0.02)
    assert plan.least_gains[2] > plan.least_gains[1] * 0.8
    assert eagle.plan(Budget(rows=6, depth=4, token_seconds=0.004, least_chance=0.2)) is None
    slow = tried(chances, parents, [5.0, 0.003])
    for _ in range(9):  # many rows: a prompt
        eagle.record(slow, 100, DraftTree(slow.tokens, slow.parents, chances), SPENT)
    assert eagle.plan(Budget(rows=1, depth=9, token_seconds=0.02, least_chance=1.0)) is not None


def test_a_block_is_paid_once(shaped):
    """Its steps behind the first cost next to nothing, and it may cost more than one token."""
    eagle = Eagle(NoNetwork(draft_shape(shaped(), "dspark")), share=0.9)
    budget = Budget(rows=12, depth=12, token_seconds=0.01, least_chance=0.2)
    plan = eagle.plan(budget)
    assert plan is not None and plan.steps == 7 and not any(plan.least_gains[1:])
    one = tried([0.9, 0.8], [-1, 0], [0.03, 0.0001])
    for _ in range(9):
        eagle.record(one, 2, DraftTree(one.tokens, one.parents, [0.9, 0.8]), SPENT)
    plan = eagle.plan(budget)
    assert plan is not None and plan.steps == 7 and 0 < plan.least_gains[1] < 0.2
    assert not any(plan.least_gains[2:])
    assert eagle.plan(budget._replace(token_seconds=0.004)) is None  # more than seven tokens


@pytest.fixture(params=["eagle2", "mtp", "dspark"])
def parrot(shaped, make_bundle, tmp_path, request) -> tuple[Bundle, Any]:
    """A model whose next token follows from its last one, and a draft that knows how."""
    kind = request.param

    def silent(name: str, weights: Any) -> None:
        if ".o_proj." in name or ".down_proj." in name:
            weights[:] = 0
        if name == HEAD:
            weights *= 6  # sure of what comes
            weights[_MOVED:] *= kind != "dspark"

    bundle = make_bundle(
        shaped(vocab_size=120, max_position_embeddings=512), QuantScheme("f16"), change=silent, tokenizer=True
    )

    def stored(name: str) -> Any:
        info = bundle.tensors[name]
        return dequantize(bundle.data(name), info.scheme, info.rows, info.columns)

    final_norm = stored(FINAL_NORM)[0]

    def copying(name: str, weights: Any) -> None:
        silent(name, weights)
        if kind == "dspark":
            if name == OUTPUT_NORM:
                weights[:] = 0  # the head tells nothing, the token before everything
            if name == MARKOV_BEFORE:
                x = stored(EMBEDDING) * bundle.config.embedding_scale
                x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + bundle.config.rms_norm_eps)
                weights[:] = x * final_norm * bundle.config.logit_scale
            if name == MARKOV_AFTER:
                weights[:] = stored(HEAD)
            return
        if name == EMBEDDING_NORM:
            weights[:] = final_norm if kind == "eagle2" else 1
        if name == OUTPUT_NORM:
            weights[:] = final_norm
        if name == FC:
            weights[:] = np.eye(*weights.shape)

    own = {"confidence": False, "markov_rank": bundle.config.hidden_size}
    config = draft_shape(bundle.config, kind, **(own if kind == "dspark" else {"input_norms": True}))
    return bundle, write_draft(tmp_path / "parrot", bundle, config, change=copying)


@pytest.mark.parametrize("name", ["native", "torch"])
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.9, "seed": 3}], ids=str)
def test_a_good_draft_makes_answers_of_few_passes(parrot, open_one, name, settings):
    """The answer is that of plain decoding, and so is one to the next question in the same session."""
    bundle, files = parrot
    executor = open_one(bundle, name)
    eagle = Eagle(executor.open_draft(files))
    with Model(bundle, executor, name="parrot") as model:
        model.scheduler.costs = FreeRows()
        plain_session = model.session(speculate=False)
        model.scheduler.speculation = Speculation("eagle", lambda: lambda: EagleDrafter(eagle))
        session = model.session()
        eagle._cost = lambda step, token_seconds: 0.0  # of a step, so that none is spared on a busy machine
        prompt = list(range(5, 30))
        for _ in range(2):
            wanted = {**settings, "max_new_tokens": 50 if name == "native" else 12, "ignore_eos": True}
            plain = model.complete(prompt, session=plain_session, **wanted)
            guessed = model.complete(prompt, session=session, **wanted)
            assert guessed.tokens == plain.tokens
            counted = session.speculation.statistics
            assert counted.drafter == "eagle"
            if settings["temperature"] == 0:
                assert counted.mean_accepted_length > 3
            else:
                assert counted.accepted > 0
            prompt = [*prompt, *plain.tokens, 7, 8, 9]


@pytest.mark.parametrize("name", ["native", "torch"])
@pytest.mark.parametrize("kind", ["eagle2", "eagle3", "mtp", "dspark"])
def test_guesses_of_every_kind_change_nothing(shaped, make_bundle, tmp_path, open_one, name, kind):
    """A model that says few tokens, so that a network of random weights is right now and then."""

    def few(tensor: str, weights: Any) -> None:
        if tensor == HEAD:
            weights[8:] = 0
            weights[:8] *= 3

    bundle = make_bundle(
        shaped(vocab_size=120, num_hidden_layers=7, max_position_embeddings=512),
        QuantScheme("f16"),
        change=few,
        tokenizer=True,
    )
    executor, ids = open_one(bundle, name), np.array([5, 0, 7, 1, 6, 4], np.int32)
    config = draft_shape(bundle.config, kind).with_head(len(ids))
    eagle = Eagle(executor.open_draft(write_draft(tmp_path / "draft", bundle, config, token_ids=ids)))
    eagle._cost = lambda step, token_seconds: 0.0
    with Model(bundle, executor, name="few") as model:
        model.scheduler.costs = FreeRows()
        plain_session = model.session(speculate=False)
        model.scheduler.speculation = Speculation(kind, lambda: lambda: EagleDrafter(eagle))
        session = model.session()
        for number, settings in enumerate(({"temperature": 0}, {"temperature": 0.9, "seed": 3})):
            prompt = list(range(5 + number, 40))
            wanted = {**settings, "max_new_tokens": 60 if name == "native" else 15, "ignore_eos": True}
            plain = model.complete(prompt, session=plain_session, **wanted)
            guessed = model.complete(prompt, session=session, **wanted)
            assert guessed.tokens == plain.tokens and guessed.text == plain.text
            assert session.speculation.statistics.accepted > 0


def test_what_is_expected_is_what_comes(shaped, make_bundle, tmp_path, open_one):
    """A draft that has no idea learns to say so: the sum of its chances is what is accepted."""
    bundle = make_bundle(shaped())
    executor = open_one(bundle)
    files = write_draft(tmp_path / "draft", bundle, draft_shape(bundle.config), seed=4)
    eagle = Eagle(executor.open_draft(files))
    rng = np.random.default_rng(2)
    expected, accepted = [], []
    story = Story(executor, eagle)
    story.go_on([1])
    tokens = rng.integers(0, 77, 400).tolist()
    for root, after in pairwise(tokens):
        tree = story.propose(root)
        first = tree.children(-1)
        expected.append(sum(tree.chances[child] for child in first))
        accepted.append(after in [tree.tokens[child] for child in first])
        story.go_on([root])
    assert np.mean(expected[:3]) > 0.3
    assert np.mean(expected[200:]) == pytest.approx(np.mean(accepted[200:]), abs=0.08)


def test_a_first_step_that_was_too_slow_is_tried_again(shaped):
    """It may have been the machine's fault."""
    eagle, budget = Eagle(NoNetwork(draft_shape(shaped()))), Budget(6, 4, 0.02, 0.2)
    slow = tried([0.8], [-1], [0.5])
    eagle.record(slow, 2, DraftTree(slow.tokens, slow.parents, [0.8]), SPENT)
    assert eagle.plan(budget) is None
    assert [eagle.rests() for _ in range(300)] == [*range(255, 0, -1), *[0] * 45]
    assert eagle.plan(budget) is not None
    model = SmallModel(None, vocab_size=9, share=0.1)
    model.record(0.5)
    begun = [model.begins(0.02) for _ in range(300)]
    assert begun.count(False) == 255 and all(begun[255:])


def test_guesses_that_cost_more_than_they_give_are_tried_now_and_then(shaped):
    """By one sequence for all, and again without a rest as soon as they give more."""
    eagle, budget = Eagle(NoNetwork(draft_shape(shaped()))), Budget(6, 4, 0.02, 0.2)

    def guess(chance: float) -> bool:
        if eagle.rests() or eagle.plan(budget) is None:
            return False
        found = tried([chance], [-1], [0.004])  # a fifth of a token
        eagle.record(found, 2, DraftTree(found.tokens, found.parents, [chance]), SPENT)
        return True

    poor = [guess(0.1) for _ in range(2000)]
    assert 8 < poor.index(False) < 40 and not any(poor[poor.index(False) :][:256])
    assert poor.count(True) < 100
    good = [guess(0.9) for _ in range(600)]
    assert all(good[270:])


def test_guesses_that_lose_time_rest_whatever_they_promise(shaped):
    """A pass takes more than its rows and the network's steps; a hiccup of the machine is no reason."""
    eagle, budget = Eagle(NoNetwork(draft_shape(shaped()))), Budget(6, 4, 0.02, 0.2)

    def guess(gained: float) -> bool:
        if eagle.rests() or eagle.plan(budget) is None:
            return False
        found = tried([0.9], [-1], [0.004])
        eagle.record(found, 2, DraftTree(found.tokens, found.parents, [0.9]), SPENT)
        eagle.settled(gained)
        return True

    assert guess(-50.0) and all(guess(0.1) for _ in range(100))
    bad = [guess(-0.3) for _ in range(2000)]
    assert 16 < bad.index(False) < 60 and not any(bad[bad.index(False) :][:256]) and bad.count(True) < 130
    assert all([guess(0.5) for _ in range(600)][270:])


def test_bad_luck_is_no_loss(shaped):
    """Guesses that are right in two of five passes, and cost three tenths of a token, are never left out.
    Those that are never right from the beginning are, and soon.
    """
    budget, never = Budget(6, 4, 0.02, 0.2), Eagle(NoNetwork(draft_shape(shaped())))
    for seed in range(8):
        lucky, draw = Eagle(NoNetwork(draft_shape(shaped()))), np.random.default_rng(seed)
        for _ in range(5000):
            assert not lucky.rests() and lucky.plan(budget) is not None
            lucky.settled(float(draw.random() < 0.4) - 0.3)
    asked = 0
    while not never.rests() and never.plan(budget) is not None:
        never.settled(-0.3)
        asked += 1
    assert asked < 30


def failing(*_: Any) -> Any:
    raise NativeError("no")


def test_rows_are_true_after_a_failure(shaped, make_bundle, tmp_path, open_one, monkeypatch):
    """Of the network, in the middle of a change of the cache."""
    bundle = make_bundle(shaped(max_position_embeddings=256))
    executor = open_one(bundle)
    eagle = Eagle(executor.open_draft(write_draft(tmp_path / "draft", bundle, draft_shape(bundle.config))))
    story, fresh = Story(executor, eagle), Story(executor, eagle)
    story.go_on(list(range(20, 60)))
    assert len(story.propose(7))
    story.cut(30)
    story.go_on([3, 4])
    run = eagle.network.run
    monkeypatch.setattr(eagle.network, "run", failing)
    with pytest.raises(NativeError):
        story.propose(8)
    monkeypatch.setattr(eagle.network, "run", run)
    story.cut(30)  # and what stood there before the cut comes again
    story.go_on([50, 51])
    fresh.go_on(story.tokens)
    found, wanted = story.propose(8), fresh.propose(8)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    assert story.drafter._cache.length == fresh.drafter._cache.length == 32


def test_closing_waits_for_the_call_that_is_under_way(shaped, make_bundle, tmp_path, open_one):
    """Another thread's, which uses the weights."""
    bundle = make_bundle(shaped())
    executor = open_one(bundle)
    network = executor.open_draft(write_draft(tmp_path / "draft", bundle, draft_shape(bundle.config)))
    closing = threading.Thread(target=network.close)
    with executor._lock():
        closing.start()
        closing.join(0.1)
        assert closing.is_alive() and network._own.free.alive
    closing.join()
    with pytest.raises(NativeError, match="closed"):
        network.new_cache()
    network.close()


def test_hidden_states_are_kept_in_little_time():
    """Of a drafter that is not asked: those that the last row depends on, at some microseconds a token."""
    known, state = KnownRows(1024), np.zeros((1, 8), np.float32)
    started = time.perf_counter()
    for place in range(3000):
        known.tell(place, 1, state)
    assert time.perf_counter() - started < 1.0  # looking at all of them takes 8 s
    (states,) = known._states
    assert (states.first, states.end) == (1976, 3000)
