"""Draft networks: the native executor against PyTorch, and both against what a draft is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from edge.checkpoints.synthetic_draft import draft_shape
from edge.config import RopeConfig
from edge.config.draft import DraftConfig
from edge.config.rope_regime import with_regime
from edge.errors import ConfigError, ContextError, EdgeError, NativeError, TokenizerError, WrongTypeError
from edge.executors.drafts import DraftPlan, DraftRows, Tried, drafts_of
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles
from edge.model.draft import draft_from_files
from edge.model.network.draft import hidden_of
from edge.model.weights.checkpoint import reference_from_bundle
from edge.quant.scheme import QuantScheme
from tests.random_draft import F16, write_draft
from tests.steps import forward

PLAN = DraftPlan(steps=4, branches=3)
INT4 = QuantScheme("int4", 32)
VARIANTS: dict[str, dict[str, Any]] = {
    "minicpm": {},
    "no input norms": {"input_norms": False},
    "no attention norm": {"attention_norm": False},
    "no norms, a bias": {"input_norms": False, "attention_norm": False, "fc_bias": True},
    "no rope": {"rope": None},
    "another residual": {"residual_scale": 1.0},
    "two layers": {"num_hidden_layers": 2, "attention_norm": False},
    "three layers in a window": {"num_hidden_layers": 3, "window": 10},
    "other heads": {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "intermediate_size": 96,
    },
    "no window": {"window": None},
    "a window of 16": {"window": 16},
    "a window of 1": {"window": 1},
    "a window within a block": {"window": 75},
    "eagle3": {"kind": "eagle3"},
    "eagle3, one tap, a bias": {"kind": "eagle3", "taps": (1,), "fc_bias": True},
    "eagle3 without rope, its residual scaled": {"kind": "eagle3", "rope": None, "residual_scale": 0.3},
    "eagle3 in a window": {"kind": "eagle3", "window": 16, "intermediate_size": 96},
    "mtp": {"kind": "mtp"},
    "mtp in a window": {"kind": "mtp", "window": 16},
    "dspark": {"kind": "dspark"},
    "dspark, two layers, no rope": {"kind": "dspark", "num_hidden_layers": 2, "rope": None},
    "dspark in a window": {"kind": "dspark", "window": 75, "num_hidden_layers": 3, "intermediate_size": 96},
    "dspark in a window that the block fills": {"kind": "dspark", "window": 7},
    "dspark without a window, its residual scaled": {"kind": "dspark", "window": None, "residual_scale": 0.3},
    "dspark, one tap, a block of 64": {"kind": "dspark", "taps": (1,), "block_size": 64},
    "dspark of rank 5 without confidence": {"kind": "dspark", "markov_rank": 5, "confidence": False},
    "dspark, confidence without a Markov head": {"kind": "dspark", "markov_rank": 0},
    "dspark with a head of its own": {"kind": "dspark", "own_head": True, "head_rows": 120},
    "dflash": {
        **{"kind": "dspark", "markov_rank": 0, "confidence": False},
        **{"anchor_tells": False, "block_size": 16},
    },
}
KINDS = ("eagle2", "eagle3", "mtp")
ALL_KINDS = (*KINDS, "dspark")


@pytest.fixture(scope="module")
def bundle(minicpm, make_bundle) -> Bundle:
    return make_bundle(minicpm())


@pytest.fixture(scope="module")
def draft_of(tmp_path_factory) -> Callable[..., DraftFiles]:
    """`draft_of(bundle, scheme=float16, token_ids=None, **fields)`: a random draft of the target's shape."""

    def make(target: Bundle, scheme: QuantScheme = F16, token_ids=None, **fields: Any) -> DraftFiles:
        config = draft_shape(target.config, **fields)
        if config.trained_head and token_ids is None:
            token_ids = np.random.default_rng(8).permutation(config.vocab_size)[:120].astype(np.int32)
        config = config.with_head(None if token_ids is None else len(token_ids))
        return write_draft(tmp_path_factory.mktemp("draft") / "draft", target, config, scheme, token_ids)

    return make


@pytest.fixture
def native(open_native) -> Callable[..., Any]:
    """`native(bundle, files, **options)`: the draft on a native executor."""

    def open_one(target: Bundle, files: DraftFiles, **options: Any) -> Any:
        return open_native(target, **options).open_draft(files)

    return open_one


@pytest.fixture
def reference(open_reference) -> Callable[..., Any]:
    return lambda target, files: open_reference(target).open_draft(files)


def rows_of(config: DraftConfig, n: int, position: int = 0, seed: int = 3) -> DraftRows:
    """Random tokens, and hidden states as they are behind a norm."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, n, dtype=np.int32)
    return DraftRows(position, tokens, rng.standard_normal((n, config.hidden_columns), np.float32))


def part(rows: DraftRows, first: int, last: int) -> DraftRows:
    return DraftRows(rows.position + first, rows.tokens[first:last], rows.hidden[first:last])


def assert_alike(found: Tried, wanted: Tried, tolerance: float = 1e-4) -> None:
    """The same tokens in the same tree; chances may differ by rounding."""
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.parents, wanted.parents)
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=tolerance)
    assert len(found.seconds) == len(wanted.seconds)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_as_in_pytorch(bundle, draft_of, native, reference, variant: str):
    """Prompts that fill less and more than a block, then rows that come one after the other."""
    files = draft_of(bundle, **VARIANTS[variant])
    ours, theirs = native(bundle, files), reference(bundle, files)
    rows = rows_of(files.config, 330)
    caches = ours.new_cache(), theirs.new_cache()
    for first, last in ((0, 5), (5, 6), (6, 100), (100, 329), (329, 330)):
        found = ours.run(caches[0], part(rows, first, last), PLAN)
        assert_alike(found, theirs.run(caches[1], part(rows, first, last), PLAN))
        assert len(found.tokens) == PLAN.room
        assert caches[0].length == caches[1].length == last


@pytest.mark.parametrize("opened", ["native", "reference"])
def test_a_draft_rotates_in_the_regime_of_its_target(
    minicpm, make_bundle, draft_of, request, opened: str
) -> None:
    """Not in that which its own original length would give it in this context."""
    short, long = tuple(1 + i / 8 for i in range(32)), tuple(2.0 + i for i in range(32))
    rope = RopeConfig("longrope", original_max_position_embeddings=64, short_factor=short, long_factor=long)
    target = make_bundle(minicpm(rope=rope))
    run = request.getfixturevalue(opened)

    def tried(draft_rope: RopeConfig, regime: Literal["auto", "short", "long"]) -> Tried:
        files = draft_of(target, rope=draft_rope)
        network = run(target.with_config(with_regime(target.config, regime)), files)
        return network.run(network.new_cache(), rows_of(files.config, 40), PLAN)

    fixed = {name: replace(rope, regime=name) for name in ("short", "long")}
    short_tried, long_tried = tried(fixed["short"], "short"), tried(fixed["long"], "long")
    assert not np.allclose(short_tried.logprobs, long_tried.logprobs, atol=1e-3)
    for own, regime, wanted in (
        (rope, "auto", long_tried),  # a context of 1024
        (rope, "short", short_tried),
        (rope, "long", long_tried),
        (fixed["short"], "long", long_tried),
    ):
        np.testing.assert_array_equal(tried(own, regime).logprobs, wanted.logprobs)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("scheme", ["int4", "int8", "ternary"])
@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_quantized_weights(bundle, draft_of, native, reference, kind: str, scheme: str, activations: str):
    """Rounded activations may exchange tokens that are nearly as likely: the first step is compared by its
    chances."""
    files = draft_of(bundle, QuantScheme(scheme, 32), kind=kind)
    plan = DraftPlan(steps=1, branches=8)
    ours, theirs = native(bundle, files, activations=activations), reference(bundle, files)
    rows = rows_of(files.config, 40)
    found = ours.run(ours.new_cache(), rows, plan)
    wanted = theirs.run(theirs.new_cache(), rows, plan)
    tolerance = 2e-3 if activations == "float32" else 0.2
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=tolerance)
    if activations == "float32":
        assert_alike(found, wanted, tolerance)
    else:
        assert len(set(found.tokens) & set(wanted.tokens)) >= 6


@pytest.mark.parametrize("opened", ["native", "reference"])
@pytest.mark.parametrize(
    ("kind", "window"), [("eagle2", None), *((kind, 20) for kind in KINDS)], ids=lambda value: str(value)
)
def test_a_tree_is_what_its_paths_are(bundle, draft_of, request, opened: str, kind: str, window: int | None):
    """Every tried token's chance is the one that the network gives without a cache, along the path alone."""
    files = draft_of(bundle, window=window, kind=kind)
    ids = np.arange(bundle.config.vocab_size) if files.token_ids is None else files.token_ids
    network = request.getfixturevalue(opened)(bundle, files)
    rows = rows_of(files.config, 70, position=5)
    tried = network.run(network.new_cache(), rows, PLAN)
    draft = draft_from_files(files, reference_from_bundle(bundle))
    for node in range(len(tried.tokens)):
        path = [node]
        while tried.parents[path[0]] >= 0:
            path.insert(0, tried.parents[path[0]])
        tokens, logprob = torch.from_numpy(rows.tokens), 0.0
        hidden = draft.features(torch.from_numpy(rows.hidden))
        for step in path:
            states = draft(tokens, hidden, torch.arange(5, 5 + len(tokens)))
            token = int(tried.tokens[step])
            logprob += float(draft.logits(states[-1]).log_softmax(-1)[ids.tolist().index(token)])
            tokens = torch.cat([tokens, torch.tensor([token], dtype=torch.int32)])
            hidden = torch.cat([hidden, states[-1:]])
        assert tried.logprobs[node] == pytest.approx(logprob, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_draft_of_a_perfect_copy_guesses_the_target(
    minicpm, make_bundle, draft_of, open_native, kind: str
):
    """Hidden states are the target's own: what its executor gives goes in as it is."""
    bundle = make_bundle(minicpm(num_hidden_layers=7))  # EAGLE-3 reads three of them
    executor = open_native(bundle)
    files = draft_of(bundle, kind=kind)
    network, taps = executor.open_draft(files), files.config.taps
    tokens = np.arange(3, 23, dtype=np.int32)
    result = forward(executor, executor.new_cache(), tokens[:-1], hidden=not taps, layers=taps)
    hidden = np.concatenate(result.layers, axis=1) if taps else result.hidden
    tried = network.run(network.new_cache(), DraftRows(0, tokens[1:], hidden), PLAN)
    decoder = reference_from_bundle(bundle)
    draft, trunk = draft_from_files(files, decoder), decoder.trunk(torch.from_numpy(tokens[:-1]))
    states = draft(torch.from_numpy(tokens[1:]), draft.features(hidden_of(trunk, files.config)))
    best = draft.logits(states[-1]).log_softmax(-1).sort(descending=True).indices[:3].numpy()
    wanted = best if files.token_ids is None else files.token_ids[best]
    assert tried.tokens[:3] == wanted.tolist()


@pytest.mark.parametrize("opened", ["native", "reference"])
def test_a_head_over_some_tokens(bundle, draft_of, request, opened: str):
    """In the order of a list by frequency: tokens are those of the list, chances sum to 1 over it."""
    ids = np.random.default_rng(5).permutation(bundle.config.vocab_size)[:50].astype(np.int32)
    files, whole = draft_of(bundle, token_ids=ids), draft_of(bundle)
    network, full = (request.getfixturevalue(opened)(bundle, each) for each in (files, whole))
    rows = rows_of(files.config, 30)
    plan = DraftPlan(steps=1, branches=16)
    some = network.run(network.new_cache(), rows, plan)
    assert set(some.tokens) <= set(ids.tolist())
    draft = draft_from_files(whole, reference_from_bundle(bundle))
    states = draft(torch.from_numpy(rows.tokens), torch.from_numpy(rows.hidden))
    logits = draft.logits(states[-1])[torch.from_numpy(ids).long()]
    best = logits.log_softmax(-1).sort(descending=True)
    np.testing.assert_array_equal(some.tokens, ids[best.indices[:16].numpy()])
    np.testing.assert_allclose(some.logprobs, best.values[:16].numpy(), atol=2e-3)
    assert some.logprobs[0] > min(full.run(full.new_cache(), rows, plan).logprobs)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_rows_come_in_any_pieces(bundle, draft_of, native, activations: str, kind: str):
    """To the bit: appended alone, with others, with a tree behind them, or again after they were dropped."""
    files = draft_of(bundle, window=100, kind=kind)
    network = native(bundle, files, activations=activations)
    rows = rows_of(files.config, 200)
    wanted = network.run(network.new_cache(), rows, PLAN)
    cache = network.new_cache()
    network.append(cache, part(rows, 0, 70))
    network.run(cache, part(rows, 70, 73), PLAN)
    network.append(cache, part(rows, 73, 190))
    network.truncate(cache, 150)
    network.append(cache, part(rows, 150, 151))
    found = network.run(cache, part(rows, 151, 200), PLAN)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.logprobs, wanted.logprobs)


def test_a_cache_may_begin_where_its_window_does(bundle, draft_of, native):
    files = draft_of(bundle, window=64)
    network = native(bundle, files)
    rows = rows_of(files.config, 500)
    whole = network.run(network.new_cache(), rows, PLAN)
    late = network.run(network.new_cache(), part(rows, 436, 500), PLAN)
    assert_alike(late, whole)
    missing = network.run(network.new_cache(), part(rows, 437, 500), PLAN)
    assert missing.logprobs != whole.logprobs


def test_steps_that_promise_too_little_are_not_made(bundle, draft_of, native, reference):
    files = draft_of(bundle)
    rows = rows_of(files.config, 20)
    ours, theirs = native(bundle, files), reference(bundle, files)

    def both(plan: DraftPlan) -> Tried:
        found = ours.run(ours.new_cache(), rows, plan)
        assert_alike(found, theirs.run(theirs.new_cache(), rows, plan), 2e-3)
        return found

    everything = both(DraftPlan(steps=5, branches=4))
    chances = np.exp(everything.logprobs)
    assert len(everything.seconds) == 5 and min(everything.seconds) > 0
    first = np.sort(chances[:4])[::-1]
    second = float((first[0] + first[1]) / 2)
    pruned = both(DraftPlan(steps=5, branches=4, least_chance=second))
    assert set(pruned.parents) <= {-1, 0} | set(np.flatnonzero(np.exp(pruned.logprobs) >= second).tolist())
    assert len(pruned.tokens) < len(everything.tokens)
    enough = float(first.sum())
    assert len(both(DraftPlan(5, 4, least_gains=[0, enough * 1.01])).seconds) == 1
    assert len(both(DraftPlan(5, 4, least_gains=[9, enough * 0.99, 9])).seconds) == 2
    assert len(both(DraftPlan(5, 4, rows=1)).seconds) == 1
    few = both(DraftPlan(5, 4, rows=3))
    best = np.sort(chances)[-3:]
    np.testing.assert_allclose(np.sort(np.exp(few.logprobs))[-3:], best, rtol=1e-5)
    assert len(few.tokens) < len(everything.tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_has_room_for_64_rows(bundle, draft_of, native, reference, kind: str):
    """Of all steps together, as masks have bits."""
    files = draft_of(bundle, kind=kind)
    plan, rows = DraftPlan(steps=7, branches=16), rows_of(files.config, 3)
    ours, theirs = native(bundle, files), reference(bundle, files)
    found = ours.run(ours.new_cache(), rows, plan)
    assert len(found.seconds) == 5 and len(found.tokens) == 16 + 4 * 256
    wanted = theirs.run(theirs.new_cache(), rows, plan)
    assert np.mean(np.sort(found.logprobs) - np.sort(wanted.logprobs)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("kind", ["eagle2", "eagle3"])
def test_what_fails_leaves_the_cache_as_it_was(bundle, draft_of, native, reference, kind: str):
    files = draft_of(bundle, kind=kind)
    rows = rows_of(files.config, 100)
    broken = rows.hidden.copy()
    broken[90, 7] = np.nan
    for network in (native(bundle, files), reference(bundle, files)):
        cache = network.new_cache()
        network.append(cache, part(rows, 0, 10))
        before = network.run(cache, part(rows, 10, 12), PLAN)
        for position, tokens, hidden, error in (
            (12, rows.tokens, broken, NativeError),
            (12, np.full(100, files.config.vocab_size, np.int32), rows.hidden, TokenizerError),
            (11, rows.tokens, rows.hidden, ContextError),
            (-1, rows.tokens, rows.hidden, ContextError),
            (bundle.config.max_position_embeddings - 99, rows.tokens, rows.hidden, ContextError),
            (12, rows.tokens[:99], rows.hidden, EdgeError),
            (12, rows.tokens[:0], rows.hidden[:0], EdgeError),
            (12, rows.tokens, rows.hidden[:, :-1], EdgeError),
            (12, rows.tokens.astype(np.float32), rows.hidden, WrongTypeError),
        ):
            with pytest.raises(error):
                network.run(cache, DraftRows(position, tokens, hidden), PLAN)
            assert cache.length == 12
        network.truncate(cache, 10)
        after = network.run(cache, part(rows, 10, 12), PLAN)
        np.testing.assert_array_equal(after.logprobs, before.logprobs)


def test_damaged_weights_are_an_error(bundle, draft_of, native, tmp_path, monkeypatch):
    files = draft_of(bundle)
    weights = {name: files.data(name).copy() for name in files.tensors}
    weights["layers.0.post_attention_layernorm.weight"].view(np.float32)[:] = np.inf
    monkeypatch.setattr("edge.executors.native.draft.open_weights", lambda _: Addresses(weights))
    network = native(bundle, files)
    cache = network.new_cache()
    with pytest.raises(NativeError, match="logits of the draft are not finite"):
        network.run(cache, rows_of(files.config, 80), PLAN)
    assert cache.length == 0


class Addresses:
    """Weights in arrays."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self._arrays = arrays

    def address(self, name: str) -> int:
        return int(self._arrays[name].ctypes.data)


def test_caches_of_others_are_refused(bundle, draft_of, native, reference):
    files = draft_of(bundle)
    first, second, torch_draft = native(bundle, files), native(bundle, files), reference(bundle, files)
    rows = rows_of(files.config, 2)
    for network, cache in (
        (first, second.new_cache()),
        (first, torch_draft.new_cache()),
        (torch_draft, first.new_cache()),
        (torch_draft, reference(bundle, files).new_cache()),
    ):
        with pytest.raises(NativeError, match="belongs to another"):
            network.run(cache, rows, PLAN)


def test_several_drafts_beside_one_model(bundle, draft_of, open_native):
    executor = open_native(bundle)
    plain, windowed = draft_of(bundle), draft_of(bundle, window=4, num_hidden_layers=2)
    rows = rows_of(plain.config, 30)
    alone = [open_native(bundle).open_draft(each) for each in (plain, windowed)]
    wanted = [network.run(network.new_cache(), rows, PLAN) for network in alone]
    together = [executor.open_draft(each) for each in (plain, windowed)]
    caches = [network.new_cache() for network in together]
    for network, cache, result in zip(together, caches, wanted, strict=True):
        found = network.run(cache, rows, PLAN)
        np.testing.assert_array_equal(found.logprobs, result.logprobs)
        assert network.cache_bytes > 0


def test_a_closed_model_closes_its_drafts(bundle, draft_of, open_native):
    executor = open_native(bundle)
    network = executor.open_draft(draft_of(bundle))
    cache = network.new_cache()
    executor.close()
    for call in (lambda: network.new_cache(), lambda: network.run(cache, rows_of(network.config, 1), PLAN)):
        with pytest.raises(NativeError, match="closed"):
            call()


def test_drafts_of_another_shape_are_refused(
    bundle, draft_of, minicpm, make_bundle, open_native, open_reference
):
    files = draft_of(make_bundle(minicpm(hidden_size=160)))
    for executor in (open_native(bundle), open_reference(bundle)):
        with pytest.raises(ConfigError, match="a draft for a model whose hidden_size is 160, not 144"):
            executor.open_draft(files)


@pytest.mark.parametrize(("steps", "branches"), [(0, 1), (65, 1), (1, 0), (1, 17)])
def test_plans_are_checked(steps: int, branches: int):
    with pytest.raises(EdgeError, match="1 to 64 steps with 1 to 16 branches"):
        DraftPlan(steps, branches)


def test_who_runs_drafts(bundle, open_native, open_reference):
    assert drafts_of(open_native(bundle)) is not None
    assert drafts_of(open_reference(bundle)) is not None
    assert drafts_of(object()) is None
