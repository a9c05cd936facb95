"""The whole executor on a simulated device, beside the native one with float32 activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.config import ModelConfig, SparseConfig
from edge.errors import ContextError, EdgeError, NativeError
from edge.executors.cuda.executor import CudaExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import Executor, SequenceStep
from edge.formats.bundle.reader import Bundle
from edge.quant.scheme import QuantScheme
from tests.configs import one_layer
from tests.steps import TREE, forward, paths, tree_masks

if find_spec("triton") is None:  # not imported here: it reads whether to interpret when it is
    pytest.skip("triton is not installed (pip install triton==3.9.0)", allow_module_level=True)

CONTEXT = 640
SPARSE = SparseConfig(dense_len=128, window_size=128, init_blocks=1, topk=3)
NETWORK = one_layer(
    vocab_size=150,
    model_type="minicpm",
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=CONTEXT,
    scale_emb=3.0,
    scale_depth=1.0,
    dim_model_base=48.0,
)
CLOSE = 3e-2
"""Of logits, as a share of their spread: inputs of matrices, keys and values are rounded to float16."""

Open = Callable[..., CudaExecutor]


@pytest.fixture(scope="module")
def bundles(make_bundle) -> Callable[[ModelConfig, str], Bundle]:
    """Random weights of a scheme by name."""
    return lambda config, scheme: make_bundle(config, QuantScheme.from_name(scheme))


@pytest.fixture
def open_cuda() -> Iterator[Open]:
    """Executors on simulated devices, closed at the end."""
    from edge.kernels.simulated import SimulatedDevice

    opened: list[CudaExecutor] = []

    def make(bundle: Bundle, kv_type: Any = "float16", memory: int = 2**30, **options: Any) -> CudaExecutor:
        options = {"context": CONTEXT, "sparse": None, "max_batch": 256, **options}
        opened.append(CudaExecutor(SimulatedDevice(memory), bundle, kv_type, **options))
        return opened[-1]

    yield make
    for executor in opened:
        executor.close()


@pytest.fixture
def reference() -> Iterator[Callable[..., Executor]]:
    """The native executor with float32 activations."""
    opened: list[Executor] = []

    def make(bundle: Bundle, attention: Any = "dense") -> Executor:
        options = RunOptions(
            activations="float32", kv_type="float16", context=CONTEXT, threads=1, attention=attention
        )
        opened.append(open_executor(bundle, options))
        return opened[-1]

    yield make
    for executor in opened:
        executor.close()


def tokens_of(count: int, seed: int = 0) -> list[int]:
    """Random ids."""
    return np.random.default_rng([count, seed]).integers(3, 150, count).tolist()


def difference(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """The largest one, as a share of the spread of what is wanted."""
    return float(np.abs(found - wanted).max() / wanted.std())


def logits_of(executor: Executor, parts: list[list[int]], **fields: Any) -> npt.NDArray[np.float32]:
    """Of all tokens of a sequence that comes in parts."""
    cache = executor.new_cache()
    return np.concatenate([forward(executor, cache, part, logits="all", **fields).logits for part in parts])


@pytest.mark.parametrize("scheme", ["int4", "int4-g128", "int8", "ternary", "f16"])
def test_logits_are_those_of_the_native_executor(bundles, open_cuda, reference, scheme):
    bundle, tokens = bundles(NETWORK, scheme), tokens_of(20)
    found = logits_of(open_cuda(bundle), [tokens])
    assert difference(found, logits_of(reference(bundle), [tokens])) < CLOSE


def test_tied_embeddings_and_groups_of_heads(bundles, open_cuda, reference):
    config = replace(
        NETWORK, tie_word_embeddings=True, num_attention_heads=8, num_key_value_heads=1, head_dim=128
    )
    bundle, tokens = bundles(config, "int4"), tokens_of(9)
    found = logits_of(open_cuda(bundle), [tokens])
    assert difference(found, logits_of(reference(bundle), [tokens])) < CLOSE


def test_answers_are_those_of_the_native_executor(bundles, open_cuda, reference):
    """Greedy, token for token; they may part only where the best two tokens are closer than rounding."""
    bundle, tokens = bundles(NETWORK, "int4"), tokens_of(30)
    mine, native = open_cuda(bundle), reference(bundle)
    caches = mine.new_cache(), native.new_cache()
    step = tokens
    for _ in range(12):
        found, wanted = (
            forward(executor, cache, step).logits[0]
            for executor, cache in zip((mine, native), caches, strict=True)
        )
        first, second = np.sort(wanted)[::-1][:2]
        if found.argmax() != wanted.argmax():
            assert first - second < CLOSE * wanted.std()
        step = [int(wanted.argmax())]


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_a_prompt_has_the_same_bits_however_it_is_cut(bundles, open_cuda, attention):
    """In one piece of many rows, in pieces of few, and token by token at its end."""
    executor = open_cuda(bundles(NETWORK, "int4"), sparse=SPARSE if attention == "sparse" else None)
    tokens = tokens_of(200)
    whole = logits_of(executor, [tokens])
    parts = [tokens[:70], tokens[70:100], *([token] for token in tokens[100:103]), tokens[103:]]
    assert np.array_equal(logits_of(executor, parts), whole)


@pytest.mark.parametrize("kv_type", ["float16", "int8"])
def test_sparse_attention_is_that_of_the_native_executor(bundles, open_cuda, reference, kv_type):
    bundle, tokens = bundles(replace(NETWORK, sparse=SPARSE), "int4"), tokens_of(420)
    found = logits_of(open_cuda(bundle, kv_type, sparse=SPARSE), [tokens[:256], tokens[256:]])
    wanted = logits_of(reference(bundle, "sparse"), [tokens[:256], tokens[256:]])
    apart = np.abs(found - wanted).max(axis=1) / wanted.std()
    limit = CLOSE if kv_type == "float16" else 3 * CLOSE
    assert np.mean(apart < limit) > 0.97  # a tie of scores may be decided otherwise


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_a_tree_has_the_bits_of_its_paths(bundles, open_cuda, attention):
    """And the path that is kept those of plain decoding, with what comes after it."""
    executor = open_cuda(bundles(NETWORK, "int4"), sparse=SPARSE if attention == "sparse" else None)
    start, nodes = tokens_of(250), tokens_of(len(TREE), 1)
    depths = np.array([len(path) - 1 for path in paths(TREE)], np.int32)
    cache = executor.new_cache()
    forward(executor, cache, start)
    rows = {"positions": 250 + depths, "tree": tree_masks(TREE), "logits": "all", "hidden": True}
    found = forward(executor, cache, nodes, **rows)
    for node in (5, 7):
        path = paths(TREE)[node]
        plain = executor.fork(cache, 250)
        wanted = forward(executor, plain, [nodes[each] for each in path], logits="all", hidden=True)
        assert np.array_equal(found.logits[path], wanted.logits)
        assert np.array_equal(found.hidden[path], wanted.hidden)
    kept = paths(TREE)[7]
    executor.keep(cache, 250, [250 + each for each in kept])
    assert cache.length == plain.length == 250 + len(kept)
    after = tokens_of(30, 2)
    assert np.array_equal(
        forward(executor, cache, after, logits="all").logits,
        forward(executor, plain, after, logits="all").logits,
    )


def test_steps_of_a_pass_do_not_depend_on_each_other(bundles, open_cuda):
    executor = open_cuda(bundles(NETWORK, "int4"))
    prompts = [tokens_of(length) for length in (3, 300, 1, 64)]

    def filled() -> list[Any]:
        caches = [executor.new_cache() for _ in prompts]
        for cache, prompt in zip(caches, prompts, strict=True):
            for start in range(0, len(prompt), 256):
                forward(executor, cache, prompt[start : start + 256])
        return caches

    depths = np.array([len(path) - 1 for path in paths(TREE)], np.int32)
    own: list[dict[str, Any]] = [
        {"tokens": [7], "logits": "last"},
        {"tokens": tokens_of(8, 3), "tree": tree_masks(TREE), "positions": 300 + depths, "logits": "all"},
        {"tokens": tokens_of(90, 4), "logits": "last", "hidden": True},
        {"tokens": [8, 9], "logits": "none", "layers": [0, 1]},
    ]
    for chosen in ([0, 1, 3], [0, 1, 2, 3]):
        alone = [forward(executor, filled()[at], **own[at]) for at in chosen]
        caches = filled()
        together = executor.forward([SequenceStep(caches[at], **own[at]) for at in chosen])
        for found, wanted in zip(together, alone, strict=True):
            for name in ("logits", "hidden"):
                mine, theirs = getattr(found, name), getattr(wanted, name)
                assert (mine is None and theirs is None) or np.array_equal(mine, theirs), name
            assert all(map(np.array_equal, found.layers, wanted.layers))


def test_a_step_that_fails_fails_alone(bundles, open_cuda):
    executor = open_cuda(bundles(NETWORK, "int4"))
    first, second = executor.new_cache(), executor.new_cache()
    good, bad = executor.forward([SequenceStep(first, [5, 6]), SequenceStep(second, [150])])
    assert good.logits is not None and first.length == 2
    assert isinstance(bad.error, EdgeError) and second.length == 0
    with pytest.raises(EdgeError, match="A pass takes up to 256 tokens, got 257"):
        executor.forward([SequenceStep(first, [5] * 200), SequenceStep(second, [5] * 57)])
    with pytest.raises(NativeError, match="This cache belongs to another executor"):
        forward(executor, open_cuda(bundles(NETWORK, "int4")).new_cache(), [5])


def test_layers_and_hidden_states_are_those_of_the_native_executor(bundles, open_cuda, reference):
    bundle, tokens = bundles(NETWORK, "int8"), tokens_of(11)
    mine, native = open_cuda(bundle), reference(bundle)
    fields: dict[str, Any] = {"layers": [1, 0], "hidden": True}
    found = forward(mine, mine.new_cache(), tokens, **fields)
    wanted = forward(native, native.new_cache(), tokens, **fields)
    assert difference(found.hidden, wanted.hidden) < CLOSE
    for mine_at, theirs in zip(found.layers, wanted.layers, strict=True):
        assert difference(mine_at, theirs) < CLOSE


def test_memory_is_taken_once(bundles, open_cuda):
    """Graphs are recorded once for a number of rows, and nothing is allocated after the first pass."""
    from edge.kernels.simulated import SimulatedDevice

    executor = open_cuda(bundles(NETWORK, "int4"))
    device = executor._device
    assert isinstance(device, SimulatedDevice)
    cache = executor.new_cache()
    forward(executor, cache, tokens_of(70))
    free, recorded = device.free_memory, len(executor._graphs)
    for count in (1, 3, 1, 4, 1):
        forward(executor, cache, tokens_of(count))
    assert device.free_memory == free and len(executor._graphs) == recorded + 2
    assert executor.cache_bytes == executor.plan.shape.page_bytes
    executor.truncate(cache, 0)
    assert executor.cache_bytes == 0 and cache.length == 0


def test_what_does_not_fit_is_refused_with_numbers(bundles, open_cuda):
    bundle = bundles(NETWORK, "int4")
    with pytest.raises(ContextError, match=r"The model needs .* = weights .* \+ KV cache .* can be had"):
        open_cuda(bundle, memory=1 << 20)
    roomy = open_cuda(bundle)
    tight = open_cuda(bundle, memory=roomy.plan.weights + (6 << 20))
    assert tight.max_batch < roomy.max_batch or tight.plan.pages < roomy.plan.pages
    tokens = tokens_of(40)
    assert np.array_equal(logits_of(tight, [tokens]), logits_of(roomy, [tokens]))


def test_a_closed_model_says_so(bundles, open_cuda):
    executor = open_cuda(bundles(NETWORK, "int4"))
    cache = executor.new_cache()
    executor.close()
    executor.close()
    with pytest.raises(NativeError, match="The model is closed"):
        forward(executor, cache, [5])
