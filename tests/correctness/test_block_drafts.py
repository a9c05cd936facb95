"""Block drafts: the PyTorch network against formulas, and trees of both executors against the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edge.checkpoints.synthetic_draft import draft_shape
from edge.executors.drafts import DraftPlan, DraftRows, Tried
from edge.formats.bundle.reader import Bundle
from edge.formats.draft.files import DraftFiles
from edge.model.draft import block_draft_from_files
from edge.model.network.block_draft import BlockDraft
from edge.model.network.kv_cache import GrowingCache
from edge.model.weights.checkpoint import reference_from_bundle
from tests.random_draft import write_draft
from tests.steps import forward

ROWS = 40  # of a head that the Markov head sees all of
BOTH = pytest.mark.parametrize("opened", ["open_native", "open_reference"])
FLASH = {"markov_rank": 0, "confidence": False, "anchor_tells": False, "block_size": 4}


@pytest.fixture(scope="module")
def bundle(minicpm, make_bundle) -> Bundle:
    return make_bundle(minicpm(num_hidden_layers=6))


@pytest.fixture(scope="module")
def draft_of(bundle, tmp_path_factory) -> Callable[..., DraftFiles]:
    """`draft_of(**fields)`: a random block draft with a head over ROWS tokens."""

    def make(**fields: Any) -> DraftFiles:
        config = draft_shape(bundle.config, "dspark", **{"num_hidden_layers": 2, "markov_rank": 24, **fields})
        ids = np.random.default_rng(5).permutation(config.vocab_size)[:ROWS].astype(np.int32)
        return write_draft(
            tmp_path_factory.mktemp("draft") / "draft", bundle, config.with_head(ROWS), token_ids=ids
        )

    return make


def given(config: Any, n: int, seed: int = 3) -> DraftRows:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, n, dtype=np.int32)
    return DraftRows(0, tokens, rng.standard_normal((n, config.hidden_columns), np.float32))


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def rotated(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x [n, heads, d], pairs of a half each."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * theta ** (-torch.arange(half) / half)
    turned = torch.polar(torch.ones_like(angles), angles)[:, None]
    pairs = torch.complex(x[..., :half], x[..., half:]) * turned
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def by_hand(draft: BlockDraft, embedded: Tensor, hidden: Tensor, theta: float) -> Tensor:
    """States of a block behind n tokens, as DeepSeek's DeepSpec states the network."""
    w, config = dict(draft.state_dict()), draft.config
    context = norm(hidden @ w["fc.weight"].T, w["input_norm2.weight"])
    n, x = len(hidden), embedded
    positions = torch.arange(n + len(x), dtype=torch.float32)
    heads, kv, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    for index in range(config.num_hidden_layers):
        own = {
            name.removeprefix(f"layers.{index}."): each
            for name, each in w.items()
            if name.startswith(f"layers.{index}.")
        }
        read = norm(x, own["input_layernorm.weight"])
        both = torch.cat([context, read])
        q = norm((read @ own["self_attn.q_proj.weight"].T).view(-1, heads, d), own["self_attn.q_norm.weight"])
        k = norm((both @ own["self_attn.k_proj.weight"].T).view(-1, kv, d), own["self_attn.k_norm.weight"])
        v = (both @ own["self_attn.v_proj.weight"].T).view(-1, kv, d)
        q, k = rotated(q, positions[n:], theta), rotated(k, positions, theta)
        outputs = []
        for head in range(heads):
            group = head // (heads // kv)
            weights = (q[:, head] @ k[:, group].T / d**0.5).softmax(-1)  # every row sees all rows
            outputs.append(weights @ v[:, group])
        x = x + torch.cat(outputs, dim=-1) @ own["self_attn.o_proj.weight"].T
        normed = norm(x, own["post_attention_layernorm.weight"])
        gate, up = normed @ own["mlp.gate_proj.weight"].T, normed @ own["mlp.up_proj.weight"].T
        x = x + (functional.silu(gate) * up) @ own["mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"])


def states_of(draft: BlockDraft, rows: DraftRows) -> Tensor:
    n, cache = len(rows.tokens), GrowingCache(draft.shape)
    draft.remember(torch.from_numpy(rows.hidden), torch.arange(n), cache)
    block = draft.block(torch.tensor(int(rows.tokens[-1])))
    return draft(block, torch.arange(n, n + len(block)), cache)


@pytest.mark.parametrize("fields", [{}, FLASH], ids=["dspark", "dflash"])
def test_the_network_by_hand(bundle, draft_of, fields):
    files = draft_of(**fields)
    decoder = reference_from_bundle(bundle)
    draft, rows = block_draft_from_files(files, decoder), given(files.config, 21)
    config = files.config
    tokens = torch.tensor([int(rows.tokens[-1]), *[config.mask_token] * (config.block_size - 1)])
    assert draft.block(tokens[0]).tolist() == tokens.tolist()
    wanted = by_hand(draft, decoder.model.embed(tokens), torch.from_numpy(rows.hidden), config.rope.theta)
    torch.testing.assert_close(states_of(draft, rows), wanted, rtol=2e-4, atol=2e-5)


def path_of(tried: Tried, node: int) -> list[int]:
    path = [node]
    while tried.parents[path[0]] >= 0:
        path.insert(0, tried.parents[path[0]])
    return path


@BOTH
@pytest.mark.parametrize(
    "fields", [{"confidence": False}, FLASH, {"confidence": False, "markov_rank": 0}], ids=str
)
def test_chances_are_those_of_the_block(bundle, draft_of, request, opened, fields):
    """Row by row, and with a Markov head for every token before."""
    files = draft_of(**fields)
    draft, rows = block_draft_from_files(files, reference_from_bundle(bundle)), given(files.config, 30)
    network = request.getfixturevalue(opened)(bundle).open_draft(files)
    tried = network.run(network.new_cache(), rows, DraftPlan(steps=5, branches=3))
    states, config, ids = states_of(draft, rows), files.config, files.token_ids.tolist()
    guessed = states[config.block_size - config.guessed_rows :]
    assert len(tried.seconds) == min(5, config.guessed_rows)
    for node in range(len(tried.tokens)):
        before, wanted = int(rows.tokens[-1]), 0.0
        for depth, step in enumerate(path_of(tried, node)):
            logits = draft.logits(guessed[depth])
            if config.markov_rank:
                logits = logits + draft.bias(torch.tensor(before))
            before = int(tried.tokens[step])
            wanted += float(logits.log_softmax(-1)[ids.index(before)])
        assert tried.logprobs[node] == pytest.approx(wanted, abs=2e-3)


@BOTH
@pytest.mark.parametrize("rank", [0, 24])
def test_the_confidence_head_tells_chances(bundle, draft_of, request, opened, rank):
    """Of the likeliest token of every row; the others have what is left, by what the head thinks of them."""
    files = draft_of(markov_rank=rank)
    draft, rows = block_draft_from_files(files, reference_from_bundle(bundle)), given(files.config, 30)
    network = request.getfixturevalue(opened)(bundle).open_draft(files)
    tried = network.run(network.new_cache(), rows, DraftPlan(steps=4, branches=3))
    states, ids = states_of(draft, rows), files.token_ids.tolist()
    for parent in [-1, *sorted({*tried.parents} - {-1})]:
        children = [at for at, above in enumerate(tried.parents) if above == parent]
        before = int(rows.tokens[-1] if parent < 0 else tried.tokens[parent])
        state = states[0 if parent < 0 else len(path_of(tried, parent))]
        sure = draft.confidence(state, torch.tensor(before)).sigmoid()
        logits = draft.logits(state) + (draft.bias(torch.tensor(before)) if rank else 0)
        chances = logits.softmax(-1)[[ids.index(tried.tokens[child]) for child in children]]
        wanted = torch.cat([sure[None], ((1 - sure) * chances[1:] / (1 - chances[0])).clamp(max=sure)])
        found = np.exp(np.array(tried.logprobs)[children] - (tried.logprobs[parent] if parent >= 0 else 0))
        np.testing.assert_allclose(found, wanted.numpy(), rtol=5e-3)


@BOTH
def test_a_chain_ends_where_confidence_does(bundle, draft_of, request, opened):
    network = request.getfixturevalue(opened)(bundle).open_draft(draft_of())
    rows = given(network.config, 30)
    chain = network.run(network.new_cache(), rows, DraftPlan(steps=20, branches=1))
    assert len(chain.tokens) == len(chain.seconds) == 7  # as many as a block tells
    least = float(np.exp(chain.logprobs[2]))
    cut = network.run(network.new_cache(), rows, DraftPlan(steps=7, branches=1, least_chance=least * 1.01))
    assert len(cut.tokens) == 3 and cut.tokens == chain.tokens[:3]


@BOTH
def test_rows_depend_on_no_token_but_the_anchor(bundle, draft_of, request, opened):
    """Their keys and values are made of hidden states."""
    network = request.getfixturevalue(opened)(bundle).open_draft(draft_of())
    rows, plan = given(network.config, 20), DraftPlan(steps=3, branches=2)

    def tried(tokens: np.ndarray[Any, Any]) -> Tried:
        return network.run(network.new_cache(), replace(rows, tokens=tokens), plan)

    plain = tried(rows.tokens)
    others = np.append(rows.tokens[:-1] * 0, rows.tokens[-1:]).astype(np.int32)
    np.testing.assert_array_equal(tried(others).logprobs, plain.logprobs)
    others[-1] = (others[-1] + 1) % 100
    assert tried(others).logprobs != plain.logprobs


@BOTH
def test_a_large_head_is_searched_among_its_best(bundle, tmp_path, request, opened):
    """Of 203 tokens the Markov head moves 64: chances are those of a sum with these alone raised."""
    config = draft_shape(bundle.config, "dspark", num_hidden_layers=1, confidence=False)
    files = write_draft(tmp_path / "draft", bundle, config)
    draft, rows = block_draft_from_files(files, reference_from_bundle(bundle)), given(config, 9)
    network = request.getfixturevalue(opened)(bundle).open_draft(files)
    tried = network.run(network.new_cache(), rows, DraftPlan(steps=1, branches=16))
    logits = draft.logits(states_of(draft, rows)[0])
    best = logits.sort(descending=True, stable=True).indices[:64]
    raised = logits.clone()
    raised[best] += draft.bias(torch.tensor(int(rows.tokens[-1])))[best]
    wanted = raised.log_softmax(-1)[best].sort(descending=True)
    assert tried.tokens == best[wanted.indices[:16]].tolist()
    np.testing.assert_allclose(tried.logprobs, wanted.values[:16].numpy(), atol=2e-3)


def test_what_the_target_gives_goes_in_as_it_is(bundle, draft_of, open_native):
    """Its residual streams after the layers that the draft names."""
    executor, files = open_native(bundle), draft_of()
    network, tokens = executor.open_draft(files), np.arange(3, 23, dtype=np.int32)
    assert files.config.taps == (1, 2, 3)
    result = forward(executor, executor.new_cache(), tokens[:-1], layers=files.config.taps)
    rows = DraftRows(0, tokens[1:], np.concatenate(result.layers, axis=1))
    plan = DraftPlan(steps=3, branches=1)
    tried = network.run(network.new_cache(), rows, plan)
    decoder = reference_from_bundle(bundle)
    draft, trunk = block_draft_from_files(files, decoder), decoder.trunk(torch.from_numpy(tokens[:-1]))
    hidden = torch.cat([trunk.stream[layer] for layer in files.config.taps], dim=-1)
    states = states_of(draft, replace(rows, hidden=hidden.numpy()))
    logits = draft.logits(states[0]) + draft.bias(torch.tensor(22))
    assert tried.tokens[0] == files.token_ids[int(logits.argmax())]
