"""The PyTorch executor: the same answers as the native one, through the same protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edge.engine.session import Session
from edge.errors import ContextError
from edge.executors.memory import memory_plan
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.trace import Trace, TracedExecutor
from edge.measure.alignment import align
from edge.measure.perplexity import perplexity
from edge.model.executor import TorchExecutor
from edge.quant.scheme import QuantScheme
from edge.runtime import Model, load
from tests.oak import OAK, oak, registered
from tests.steps import TREE, forward, paths, tree_masks


@pytest.fixture
def pair(minicpm, make_bundle, open_native, open_reference):
    """Both executors over one bundle."""
    bundle = make_bundle(minicpm(), QuantScheme("int4", 32))
    return open_reference(bundle, 512), open_native(bundle, context=512)


def test_its_float32_weights_count_as_memory(minicpm, make_bundle, monkeypatch):
    """Four bytes for each, though the memory would hold the packed ones of the bundle twice."""
    bundle = make_bundle(minicpm(), QuantScheme("int4", 32))
    floats = sum(4 * info.rows * info.columns for info in bundle.tensors.values())
    assert floats > 2 * memory_plan(bundle, 16, "float32", 8).total
    monkeypatch.setattr("edge.executors.opening.available_memory", lambda: floats)
    with pytest.raises(ContextError, match="The model needs"):
        open_executor(bundle, RunOptions("torch", context=16, max_batch=8))


@pytest.mark.parametrize("chunks", [(1,), (7, 1, 13), (256,)], ids=str)
def test_logits_hidden_states_and_outputs_of_layers(pair, tokens_of, assert_close, chunks: Sequence[int]):
    ours = pair[0]
    tokens = tokens_of(ours.config, 40)
    caches = [executor.new_cache() for executor in pair]
    at, turn = 0, 0
    while at < len(tokens):
        part = tokens[at : at + chunks[turn % len(chunks)]]
        found, wanted = (
            forward(executor, cache, part, logits="all", hidden=True, layers=(1, 0))
            for executor, cache in zip(pair, caches, strict=True)
        )
        assert_close(found.logits, wanted.logits)
        assert_close(found.hidden, wanted.hidden)
        for one, other in zip(found.layers, wanted.layers, strict=True):
            assert_close(one, other)
        at, turn = at + len(part), turn + 1
    assert caches[0].length == caches[1].length == 40 and caches[0].capacity == 512
    last = forward(ours, ours.new_cache(), tokens)
    assert last.logits.shape == (1, ours.config.vocab_size) and last.hidden is None and last.layers == ()
    assert forward(ours, ours.new_cache(), tokens, logits="none").logits is None


@pytest.mark.parametrize("prefix", [0, 5])
def test_tree_equals_each_path(pair, tokens_of, assert_close, prefix: int):
    ours, _ = pair
    before, tree = tokens_of(ours.config, prefix), tokens_of(ours.config, len(TREE), seed=3)
    cache = ours.new_cache()
    if prefix:
        forward(ours, cache, before)
    positions = np.array([prefix + len(path) - 1 for path in paths(TREE)], np.int32)
    found = forward(ours, cache, tree, positions=positions, tree=tree_masks(TREE), logits="all").logits
    for node, path in enumerate(paths(TREE)):
        wanted = forward(ours, ours.new_cache(), np.concatenate([before, tree[path]])).logits[0]
        assert_close(found[node], wanted)


def test_keep_an_accepted_path(pair, tokens_of, assert_close):
    """After a tree both executors keep one path and go on alike."""
    path = paths(TREE)[5]
    tree, after = tokens_of(pair[0].config, len(TREE), seed=3), tokens_of(pair[0].config, 20, seed=4)
    positions = np.array([9 + len(nodes) for nodes in paths(TREE)], np.int32)
    results = []
    for executor in pair:
        cache = executor.new_cache()
        forward(executor, cache, tokens_of(executor.config, 10))
        forward(executor, cache, tree, positions=positions, tree=tree_masks(TREE))
        executor.keep(cache, 10, [10 + node for node in path])
        assert cache.length == 10 + len(path)
        results.append(forward(executor, cache, after, logits="all").logits)
    assert_close(*results)


def test_sessions_reuse_what_prompts_share(pair, tokens_of, assert_close):
    ours, _ = pair
    first, second = tokens_of(ours.config, 300, seed=1), tokens_of(ours.config, 280, seed=2)
    second[:270] = first[:270]
    used, cold = Session(ours), Session(ours)
    used.prefill(first)
    before = used.computed_tokens
    assert_close(used.prefill(second), cold.prefill(second))
    assert used.computed_tokens - before == 10
    assert_close(used.step(7), cold.step(7))


@pytest.fixture(scope="module")
def models(smollm2_gguf: Path) -> Iterator[tuple[Model, Model]]:
    options = {"activations": "float32", "kv_type": "float32", "context": 256}
    with load(smollm2_gguf, **options) as native, load(smollm2_gguf, executor="torch", **options) as ours:
        yield ours, native


@pytest.mark.slow
def test_the_same_greedy_text(models: tuple[Model, Model]):
    ours, native = models
    assert isinstance(ours.executor, TorchExecutor)
    prompt = "The three primary colours are"
    texts = [model.complete(prompt, max_new_tokens=24, temperature=0).text for model in models]
    assert texts[0] == texts[1] and len(texts[0]) > 20
    answers = [
        model.chat(temperature=0).send("Name a planet.", max_new_tokens=12).text for model in (ours, native)
    ]
    assert answers[0] == answers[1] != ""


def test_the_same_perplexity(models: tuple[Model, Model]):
    text = "The tower is 324 metres tall, about the same height as an 81-storey building. " * 4
    found, wanted = (perplexity(model, text, window=64, stride=32) for model in models)
    assert found.tokens == wanted.tokens
    assert found.nll == pytest.approx(wanted.nll, abs=1e-4)


@pytest.fixture
def known_oak() -> Iterator[None]:
    with registered(OAK):
        yield


@pytest.mark.usefixtures("known_oak")
@pytest.mark.parametrize("network", ["llama", "minicpm", "oak"])
def test_torch_has_the_stages_of_the_native_decoder(network, tiny_config, minicpm, make_bundle, tmp_path):
    """Same shapes and, but for rounding, values; what the native one only prepares is missing."""
    bundle = make_bundle({"llama": tiny_config(), "minicpm": minicpm(), "oak": oak(minicpm())}[network])
    for name in ("native", "torch"):
        options = RunOptions(context=48, threads=1, activations="float32", kv_type="float32", executor=name)
        traced = TracedExecutor(open_executor(bundle, options), Trace(tmp_path / f"{name}.json"))
        cache = traced.new_cache()
        forward(traced, cache, [3, 14, 15, 9, 26])
        forward(traced, cache, [7])
        traced.close()
    found = align(tmp_path / "native.json", tmp_path / "torch.json", tolerance=1e-4)
    assert found.first is None, found.first
    assert found.worst.difference > 0  # they are two programs
    assert found.only_a == ("o_input", "rope_cache") and found.only_b == ()
    assert found.stages == 2 * (2 * 7 + 4)  # two calls of two layers; embed, final_norm, head, and the call
    assert found.whole == ()
