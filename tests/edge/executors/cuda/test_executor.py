"""The whole executor on a simulated device, beside the native one with float32 activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.config import ModelConfig, SparseConfig
from edge.errors import ConfigError, ContextError, EdgeError, NativeError
from edge.executors.cuda.cache import CudaCache
from edge.executors.cuda.executor import CudaExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.executors.protocol import Executor, SequenceStep
from edge.executors.sampling import DrawOptions
from edge.formats.bundle.reader import Bundle
from edge.quant.scheme import QuantScheme
from edge.runtime import Model
from tests.configs import one_layer
from tests.planted import FreeRows, PlantedDrafter, planted
from tests.steps import TREE, forward, paths, tree_masks

if find_spec("triton") is None:  # not imported here: it reads whether to interpret when it is
    pytest.skip("triton is not installed (pip install triton==3.9.0)", allow_module_level=True)

CONTEXT = 1024
SPARSE = SparseConfig(dense_len=128, window_size=64, init_blocks=1, topk=2)
NETWORK = one_layer(
    vocab_size=150,
    model_type="minicpm",
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=CONTEXT,
    scale_emb=3.0,
    scale_depth=1.0,
    dim_model_base=48.0,
)
SPARSE_NETWORK = replace(NETWORK, num_hidden_layers=1, sparse=SPARSE)
FILLED = 250  # rows; a tree begins in one page and ends in the next
CLOSE = 3e-2
"""Of logits, as a share of their spread: inputs of matrices, keys and values are rounded to float16."""

Open = Callable[..., CudaExecutor]
BundleOf = Callable[[ModelConfig, str], Bundle]


@pytest.fixture(scope="module")
def bundles(make_bundle) -> BundleOf:
    """Random weights of a scheme by name."""
    return lambda config, scheme: make_bundle(config, QuantScheme.from_name(scheme))


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


@dataclass(frozen=True)
class Filled:
    """An executor, a cache of FILLED rows on it, which tests fork, and the logits of all its rows."""

    executor: CudaExecutor
    cache: CudaCache
    logits: npt.NDArray[np.float32]

    def fork(self, rows: int = FILLED) -> CudaCache:
        """A cache with its first rows."""
        return self.executor.fork(self.cache, rows)


@pytest.fixture(scope="module")
def dense(bundles, open_cuda) -> Filled:
    """Of two layers."""
    return filled(open_cuda(bundles(NETWORK, "int4")), 70)


@pytest.fixture(scope="module")
def sparse(bundles, open_cuda) -> Filled:
    """Of one layer; rows from 128 on are sparse."""
    return filled(open_cuda(bundles(SPARSE_NETWORK, "int4"), sparse=SPARSE), FILLED)


def filled(executor: CudaExecutor, rows: int) -> Filled:
    """With that many rows from one pass."""
    cache = executor.new_cache()
    logits = forward(executor, cache, tokens_of(rows), logits="all").logits
    assert logits is not None
    return Filled(executor, cache, logits)


def tokens_of(count: int, seed: int = 0) -> list[int]:
    """Random ids; shorter lists of a seed begin longer ones."""
    return np.random.default_rng(seed).integers(3, 150, count).tolist()


def difference(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """The largest one, as a share of the spread of what is wanted."""
    return float(np.abs(found - wanted).max() / wanted.std())


def logits_of(executor: Executor, parts: list[list[int]], **fields: Any) -> npt.NDArray[np.float32]:
    """Of all tokens of a sequence that comes in parts."""
    cache = executor.new_cache()
    return np.concatenate([forward(executor, cache, part, logits="all", **fields).logits for part in parts])


@pytest.mark.parametrize("scheme", ["int4-g128", "int8", "ternary", "f16"])
def test_logits_are_those_of_the_native_executor(bundles, open_cuda, reference, scheme):
    bundle, tokens = bundles(NETWORK, scheme), tokens_of(5)
    found = logits_of(open_cuda(bundle), [tokens])
    assert difference(found, logits_of(reference(bundle), [tokens])) < CLOSE


def test_many_rows_at_once_give_those_of_the_native_executor(bundles, dense, reference):
    wanted = logits_of(reference(bundles(NETWORK, "int4")), [tokens_of(70)])
    assert difference(dense.logits, wanted) < CLOSE


def test_tied_embeddings_and_groups_of_heads(bundles, open_cuda, reference):
    config = replace(
        NETWORK, tie_word_embeddings=True, num_attention_heads=6, num_key_value_heads=2, head_dim=128
    )
    bundle, tokens = bundles(config, "int4"), tokens_of(4)
    found = logits_of(open_cuda(bundle, "int8"), [tokens])
    assert difference(found, logits_of(reference(bundle), [tokens])) < 2 * CLOSE


def test_answers_are_those_of_the_native_executor(bundles, dense, reference):
    """Greedy, token for token; they may part only where the best two tokens are closer than rounding."""
    mine, native = dense.executor, reference(bundles(NETWORK, "int4"))
    caches = dense.fork(5), native.new_cache()
    forward(native, caches[1], tokens_of(5))
    step = [7]
    for _ in range(8):
        found, wanted = (
            forward(executor, cache, step).logits[0]
            for executor, cache in zip((mine, native), caches, strict=True)
        )
        first, second = np.sort(wanted)[::-1][:2]
        if found.argmax() != wanted.argmax():
            assert first - second < CLOSE * wanted.std()
        step = [int(wanted.argmax())]


def test_a_prompt_has_the_same_bits_however_it_is_cut(dense):
    """In one piece of many rows, in one of few, and token by token."""
    tokens = tokens_of(70)
    parts = [tokens[:3], *([token] for token in tokens[3:5]), tokens[5:]]
    assert np.array_equal(logits_of(dense.executor, parts), dense.logits)


def test_a_sparse_prompt_has_the_same_bits_however_it_is_cut(sparse):
    """The cache is that of one pass up to a place within a block."""
    cache, tokens = sparse.fork(205), tokens_of(FILLED)
    parts = [tokens[205:206], tokens[206:209], tokens[209:]]
    found = [forward(sparse.executor, cache, part, logits="all").logits for part in parts]
    assert np.array_equal(np.concatenate(found), sparse.logits[205:])


def test_sparse_attention_is_that_of_the_native_executor(bundles, sparse, reference):
    native = reference(bundles(SPARSE_NETWORK, "int4"), "sparse")
    wanted = logits_of(native, [tokens_of(FILLED)])
    apart = np.abs(sparse.logits - wanted).max(axis=1) / wanted.std()
    assert np.mean(apart < CLOSE) > 0.98  # where two blocks have nearly the same score, another may be read
    full = logits_of(reference(bundles(SPARSE_NETWORK, "int4")), [tokens_of(FILLED)])
    assert np.mean(np.abs(full - wanted)[200:].max(axis=1) / wanted.std() > CLOSE) > 0.5  # it does matter


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_tree_has_the_bits_of_its_paths(request, kind):
    """And the path that is kept those of plain decoding, with what comes after it."""
    base: Filled = request.getfixturevalue(kind)
    executor, start, nodes = base.executor, base.cache.length, tokens_of(len(TREE), 1)
    depths = np.array([len(path) - 1 for path in paths(TREE)], np.int32)
    cache = base.fork(start)
    rows = {"positions": start + depths, "tree": tree_masks(TREE), "logits": "all", "hidden": True}
    found = forward(executor, cache, nodes, **rows)
    kept = paths(TREE)[7]
    plain = base.fork(start)
    wanted = forward(executor, plain, [nodes[each] for each in kept], logits="all", hidden=True)
    assert np.array_equal(found.logits[kept], wanted.logits)
    assert np.array_equal(found.hidden[kept], wanted.hidden)
    executor.keep(cache, start, [start + each for each in kept])
    assert cache.length == plain.length == start + len(kept)
    after = tokens_of(9, 2)
    assert np.array_equal(
        forward(executor, cache, after, logits="all").logits,
        forward(executor, plain, after, logits="all").logits,
    )


def test_steps_of_a_pass_do_not_depend_on_each_other(dense):
    """In a pass of many rows, trees and whole prompts among them, and in one of few."""
    executor = dense.executor
    depths = np.array([len(path) - 1 for path in paths(TREE)], np.int32)
    own: list[tuple[int, dict[str, Any]]] = [
        (3, {"tokens": [7], "logits": "last"}),
        (
            40,
            {
                "tokens": tokens_of(8, 3),
                "tree": tree_masks(TREE),
                "positions": 40 + depths,
                "logits": "all",
            },
        ),
        (0, {"tokens": tokens_of(70), "logits": "last", "hidden": True}),
        (64, {"tokens": [8, 9], "logits": "none", "layers": [0, 1]}),
    ]
    alone = [forward(executor, dense.fork(rows), **fields) for rows, fields in own]
    assert np.array_equal(alone[2].logits[0], dense.logits[-1])
    for chosen in ([0, 1, 3], [0, 1, 2, 3]):
        steps = [SequenceStep(dense.fork(own[at][0]), **own[at][1]) for at in chosen]
        for at, found in zip(chosen, executor.forward(steps), strict=True):
            for name in ("logits", "hidden"):
                mine, theirs = getattr(found, name), getattr(alone[at], name)
                assert (mine is None and theirs is None) or np.array_equal(mine, theirs), name
            assert len(found.layers) == len(alone[at].layers)
            assert all(map(np.array_equal, found.layers, alone[at].layers))


def test_a_step_that_fails_fails_alone(bundles, open_cuda, dense):
    executor = dense.executor
    first, second = executor.new_cache(), executor.new_cache()
    good, bad = executor.forward([SequenceStep(first, [5, 6]), SequenceStep(second, [150])])
    assert good.logits is not None and first.length == 2
    assert isinstance(bad.error, EdgeError) and second.length == 0
    with pytest.raises(EdgeError, match="A pass takes up to 256 tokens, got 257"):
        executor.forward([SequenceStep(first, [5] * 200), SequenceStep(second, [5] * 57)])
    with pytest.raises(NativeError, match="This cache belongs to another executor"):
        forward(executor, open_cuda(bundles(NETWORK, "int4")).new_cache(), [5])


def test_layers_and_hidden_states_are_those_of_the_native_executor(bundles, dense, reference):
    native, tokens = reference(bundles(NETWORK, "int4")), tokens_of(4)
    fields: dict[str, Any] = {"layers": [1, 0], "hidden": True}
    found = forward(dense.executor, dense.executor.new_cache(), tokens, **fields)
    wanted = forward(native, native.new_cache(), tokens, **fields)
    assert difference(found.hidden, wanted.hidden) < CLOSE
    for mine_at, theirs in zip(found.layers, wanted.layers, strict=True):
        assert difference(mine_at, theirs) < CLOSE


def test_memory_is_taken_once(dense):
    """Graphs are recorded once for a number of rows, and nothing is allocated after the first pass."""
    from edge.kernels.simulated import SimulatedDevice

    executor = dense.executor
    device = executor._device
    assert isinstance(device, SimulatedDevice)
    cache = dense.fork(3)
    used = executor.cache_bytes
    free, graphs = device.free_memory, dict(executor._graphs)
    for count in (1, 2, 1, 2):
        forward(executor, cache, tokens_of(count))
    assert device.free_memory == free
    assert len({*executor._graphs} - {*graphs}) <= 2
    assert all(executor._graphs[shape] is graph for shape, graph in graphs.items())
    assert executor.cache_bytes == used + executor.plan.shape.page_bytes  # a copy of the shared page
    executor.truncate(cache, 0)
    assert cache.length == 0 and executor.cache_bytes == used
    assert executor.cache_limit == (executor.plan.pages - CONTEXT // 256) * executor.plan.shape.page_bytes
    assert executor.memory_plan.total < executor.plan.total


def test_what_does_not_fit_is_refused_with_numbers(bundles, open_cuda, dense):
    bundle = bundles(NETWORK, "int4")
    with pytest.raises(ContextError, match=r"The model needs .* = weights .* \+ KV cache .* can be had"):
        open_cuda(bundle, memory=1 << 20)
    roomy = dense.executor
    room = roomy.plan.total - 2 * roomy.plan.shape.page_bytes  # of 80 % that it may have
    tight = open_cuda(bundle, memory=int(1.25 * room) + 1024)
    assert tight.plan.pages == roomy.plan.pages - 2 and tight.plan.total <= room + 1024
    assert np.array_equal(logits_of(tight, [tokens_of(3)]), dense.logits[:3])


def test_tokens_are_drawn_on_the_device_as_on_the_host(dense):
    """An answer by seeds, with settings of all kinds; what the device does not draw is left to the host."""
    executor = dense.executor
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.2, "top_k": 20, "seed": 4, "logprobs": 3},
        {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.3, "seed": 5},
        {"temperature": 1.0, "typical_p": 0.7, "seed": 6},
    ]
    rows = 3
    for index, chosen in enumerate(settings):
        step = SequenceStep(dense.fork(5), tokens_of(rows, 7), logits="all")
        (plain,) = executor.forward([step])
        (held,) = executor.forward([replace(step, cache=dense.fork(5), held=True)])
        for row in range(rows):
            options, history = DrawOptions(**chosen), tokens_of(5)
            found = executor.sample(held.logits[row], options, history, index=index)
            wanted = executor.sample(plain.logits[row], options, history, index=index)
            assert found.token == wanted.token
            if wanted.logprob is not None:
                assert found.logprob == pytest.approx(wanted.logprob, abs=1e-5)
                assert [token for token, _ in found.top] == [token for token, _ in wanted.top]
    forward(executor, dense.fork(3), [5])
    with pytest.raises(NativeError, match="are of an earlier pass"):
        executor.sample(held.logits[0], options)


def test_answers_with_guesses_are_those_without(make_bundle, dense):
    """The whole engine above the executor: sessions, the scheduler, trees and draws."""
    bundle = make_bundle(NETWORK, QuantScheme.from_name("int4"), tokenizer=True)
    model = Model(bundle, dense.executor, name="tiny")
    model.scheduler.costs = FreeRows()
    settings: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_new_tokens": 6, "ignore_eos": True}
    prompt = tokens_of(4)
    plain = model.complete(prompt, session=model.session(speculate=False), **settings)
    drafter = PlantedDrafter([prompt + list(plain.tokens)], right=0.7, vocab_size=150, seed=1)
    model.scheduler.speculation = planted([drafter])
    guessed = model.complete(prompt, session=model.session(), **settings)
    assert guessed.tokens == plain.tokens
    assert guessed.speculation is not None and guessed.speculation.accepted > 0


def test_a_context_shorter_than_a_graph(bundles, open_cuda, dense):
    """A pass of 33 rows is filled up to 64, for which there is room though the context has less."""
    executor = open_cuda(bundles(NETWORK, "int4"), context=40)
    assert executor.max_batch == 40 and executor.plan.sizes.stream == 64 * 4 * NETWORK.hidden_size
    found = logits_of(executor, [tokens_of(33)])
    assert np.array_equal(found, dense.logits[:33])


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"hidden_size": 8208}, EdgeError, "A hidden size of 8208 is more than the 8192"),
        ({"head_dim": 32}, ConfigError, "take a head_dim of 64 or 128, not 32"),
    ],
)
def test_what_the_kernels_are_not_made_for_is_refused_before_anything_is_read(
    open_cuda, changes, error, sentence
):
    no_weights = SimpleNamespace(config=replace(NETWORK, **changes), tensors={})
    with pytest.raises(error, match=sentence):
        open_cuda(no_weights)


def test_a_closed_model_says_so(bundles, open_cuda):
    executor = open_cuda(bundles(NETWORK, "int4"))
    cache = executor.new_cache()
    executor.close()
    executor.close()
    with pytest.raises(NativeError, match="The model is closed"):
        forward(executor, cache, [5])
