"""Soft rows: what they give is what the PyTorch network says, and nothing else of a pass knows of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edge.config import SparseConfig
from edge.errors import ConfigError, ContextError, EdgeError, NativeError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import SequenceStep
from edge.executors.soft import SoftRows
from edge.model.network.soft_prompt import SoftPrompt
from edge.model.weights.checkpoint import reference_from_bundle
from edge.quant.scheme import QuantScheme
from tests.soft import grouped_step, soft_weights
from tests.steps import TREE, forward, memory_of

M = 2
KV = ("float32", "float16", "int16", "int8", "int4")


def some(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 203, n, dtype=np.int32)


@pytest.fixture(scope="module")
def bundle(minicpm, make_bundle) -> Any:
    return make_bundle(minicpm(num_hidden_layers=3))


@pytest.mark.parametrize("past", [1, 70, 300])
@pytest.mark.parametrize("name", ["native", "torch"])
def test_logits_are_those_of_the_network(bundle, open_native, open_reference, name, past):
    """Behind every node of a tree, against a pass over its path, the group behind it and nothing else."""
    executor = open_native(bundle) if name == "native" else open_reference(bundle)
    weights, decoder = soft_weights(bundle.config, M), reference_from_bundle(bundle)
    network = SoftPrompt(bundle.config, M, weights.keys.shape[1])
    network.load_state_dict({name: torch.from_numpy(each) for name, each in weights.tensors.items()})
    before, nodes, cache = some(past, 1), some(len(TREE), 2), executor.new_cache()
    for piece in np.split(before, range(200, past, 200)):
        forward(executor, cache, piece, logits="none")
    step = grouped_step(cache, nodes, TREE, executor.open_soft(weights), M)
    found = executor.forward([step])[0]
    assert found.error is None and found.soft.shape == (len(TREE) * M, 203)
    assert found.logits.shape == (len(TREE), 203)
    plain = None
    for node in range(len(TREE)):
        path = [node]
        while (parent := TREE[path[0]]) >= 0:
            path.insert(0, parent)
        tokens = torch.from_numpy(np.concatenate([before, nodes[path]]).astype(np.int64))
        with torch.inference_mode():
            hidden = decoder.trunk(tokens, soft=network.rows(torch.arange(M))).hidden[-M:]
            wanted = decoder.logits(hidden).numpy()
            unseen = torch.cat([tokens, torch.zeros(M, dtype=torch.long)])
            plain = decoder(unseen)[-M:].numpy()
        np.testing.assert_allclose(found.soft[node * M : node * M + M], wanted, rtol=1e-3, atol=2e-3)
    assert np.abs(plain - wanted).max() > 0.1  # the prompt does something


@pytest.mark.parametrize("kv_type", KV)
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_other_rows_do_not_know_of_them(minicpm, make_bundle, open_native, kv_type, activations):
    """Bit by bit: logits, hidden states, outputs of layers, the cache, and whatever comes after."""
    bundle = make_bundle(minicpm(num_hidden_layers=2), QuantScheme.from_name("int4"))
    executor = open_native(bundle, kv_type=kv_type, activations=activations)
    before, nodes, after = some(61, 1), some(len(TREE), 2), some(9, 3)
    alone, beside, other = (executor.new_cache() for _ in range(3))
    prompt = executor.open_soft(soft_weights(bundle.config, M))
    for cache in (alone, beside):
        forward(executor, cache, before, logits="none")
    step = grouped_step(beside, nodes, TREE, prompt, M, hidden=True, layers=(0, 1))
    n, length = len(TREE), len(before)
    plain = replace(step, cache=alone, soft=None, positions=step.positions[:n], tree=step.tree[:n])
    wanted = executor.forward([plain])[0]
    found, neighbour = executor.forward([step, SequenceStep(other, after, logits="all")])
    np.testing.assert_array_equal(found.logits, wanted.logits)
    np.testing.assert_array_equal(found.hidden, wanted.hidden)
    for mine, theirs in zip(found.layers, wanted.layers, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(
        neighbour.logits, forward(executor, executor.new_cache(), after, logits="all").logits
    )
    assert alone.length == beside.length == length + n
    for cache in (alone, beside):
        executor.keep(cache, length, [length, length + 1, length + 3])
    results = [forward(executor, cache, after, logits="all").logits for cache in (alone, beside)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("kv_type", ["float16", "int8", "int4"])
def test_their_own_bits_do_not_depend_on_the_pass(bundle, open_native, kv_type):
    """Alone behind a chain, and beside another sequence and a tree that has the chain in it."""
    executor = open_native(bundle, kv_type=kv_type, activations="int8")
    prompt = executor.open_soft(soft_weights(bundle.config, M))
    before, nodes = some(258, 1), some(len(TREE), 2)
    caches = [executor.new_cache() for _ in range(3)]
    for cache in caches:
        forward(executor, cache, before[:200], logits="none")
        forward(executor, cache, before[200:], logits="none")
    tree = executor.forward(
        [grouped_step(cache, nodes, TREE, prompt, M) for cache in caches[:2]],
    )
    chain = executor.forward([grouped_step(caches[2], nodes[[0, 1, 3]], (-1, 0, 1), prompt, M)])[0]
    np.testing.assert_array_equal(tree[0].soft, tree[1].soft)
    np.testing.assert_array_equal(tree[0].soft.reshape(-1, M, 203)[[0, 1, 3]], chain.soft.reshape(-1, M, 203))


def test_they_leave_no_memory(bundle, open_native):
    """Rows that would have needed another page of the cache do not keep it."""
    executor = open_native(bundle)
    prompt, cache = executor.open_soft(soft_weights(bundle.config, M)), executor.new_cache()
    forward(executor, cache, some(254, 1), logits="none")
    used, pages = executor.cache_bytes, memory_of(executor, cache).nbytes
    found = executor.forward([grouped_step(cache, some(1, 2), (-1,), prompt, M)])[0]
    assert found.error is None and cache.length == 255
    assert executor.cache_bytes == used and memory_of(executor, cache).nbytes == pages


def test_in_a_row(bundle, open_native, open_reference):
    """Without a tree they follow the last token, whichever logits are wanted beside theirs."""
    results = []
    for executor in (open_native(bundle), open_reference(bundle)):
        cache, prompt = executor.new_cache(), executor.open_soft(soft_weights(bundle.config, M))
        soft = SoftRows(prompt, np.arange(M, dtype=np.int32))
        none = executor.forward([SequenceStep(cache, some(40, 1), logits="none", soft=soft)])[0]
        last = executor.forward([SequenceStep(cache, some(3, 2), logits="last", soft=soft)])[0]
        assert none.logits is None and none.soft.shape == (M, 203) and last.logits.shape == (1, 203)
        assert cache.length == 43
        results.append((none.soft, last.soft, last.logits))
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["native", "torch"])
def test_what_is_refused(minicpm, make_bundle, bundle, open_native, open_reference, name):
    executor = open_native(bundle) if name == "native" else open_reference(bundle)
    config, cache = bundle.config, executor.new_cache()
    prompt = executor.open_soft(soft_weights(config, M))
    for changes, field in (
        ({"hidden_size": 160}, "hidden_size"),
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"head_dim": 32}, "head_dim"),
    ):
        with pytest.raises(ConfigError, match=field):
            executor.open_soft(soft_weights(replace(config, **changes)))
    broken = soft_weights(config)
    broken.values[1, 2, 0, 3] = np.nan
    with pytest.raises(NativeError, match="not finite"):
        executor.open_soft(broken)
    tokens = np.array([1, 2], np.int32)
    for numbers in ([0, M], [-1]):
        soft = SoftRows(prompt, np.array(numbers, np.int32))
        with pytest.raises(EdgeError, match=f"has {M} embeddings"):
            forward(executor, cache, tokens, soft=soft)
    forward(executor, cache, np.ones(250, np.int32), logits="none")
    room = executor.context - cache.length
    while room > 250:
        forward(executor, cache, np.ones(250, np.int32), logits="none")
        room = executor.context - cache.length
    soft = SoftRows(prompt, np.zeros(room - 1, np.int32))
    with pytest.raises(ContextError):
        forward(executor, cache, tokens, soft=soft)
    assert executor.context - cache.length == room
    other = open_reference(bundle) if name == "native" else open_native(bundle)
    soft = SoftRows(other.open_soft(soft_weights(config, M)), np.zeros(1, np.int32))
    with pytest.raises(NativeError, match="another executor"):
        forward(executor, cache, tokens, soft=soft)
    prompt.close()
    with pytest.raises(NativeError, match="closed"):
        forward(executor, cache, tokens, soft=SoftRows(prompt, np.zeros(1, np.int32)))


@pytest.mark.parametrize("name", ["native", "torch"])
def test_sparse_attention_has_none(minicpm, make_bundle, name):
    sparse = SparseConfig(dense_len=128, window_size=128, init_blocks=1, topk=2)
    bundle = make_bundle(minicpm(sparse=sparse))
    executor = open_executor(bundle, RunOptions(executor=name, attention="sparse"))
    assert not executor.capabilities.soft_rows
    if name == "native":
        with pytest.raises(NativeError, match="dense attention"):
            executor.open_soft(soft_weights(bundle.config))
    dense = open_executor(bundle, RunOptions(executor=name, attention="dense"))
    prompt = dense.open_soft(soft_weights(bundle.config))
    with pytest.raises(EdgeError, match="dense attention"):
        forward(
            executor,
            executor.new_cache(),
            np.ones(2, np.int32),
            soft=SoftRows(prompt, np.zeros(1, np.int32)),
        )
    for each in (executor, dense):
        each.close()
