"""Sparse attention in the native decoder: how a sequence got into the cache must not matter here either.

Bit for bit, as in test_cache.py: the key summaries are a function of the stored rows alone. Trees are
compared within the tolerance. Queries up to 200 tokens are dense, so that both kinds are met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from edge.config import SparseConfig
from edge.config.attention import with_selection
from edge.errors import ConfigError, NativeError
from edge.executors.memory import memory_plan
from edge.executors.native import library as native
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.model.attention.mode import use_attention_mode
from edge.quant.scheme import QuantScheme
from tests.steps import forward, memory_of, paths, tree_masks

SPARSE = SparseConfig(init_blocks=1, window_size=128, topk=3, dense_len=200)
MODES = [("float32", "float32"), ("int8", "int16"), ("int8", "float16"), ("int8", "int8"), ("int8", "int4")]
N = 620  # 10 blocks, of which a query reads 5


@pytest.fixture
def bundle(minicpm, make_bundle):
    return make_bundle(minicpm(num_attention_heads=16, sparse=SPARSE), QuantScheme("int4", 32))


@pytest.fixture(params=MODES, ids="-".join)
def executor(request, open_native, bundle):
    activations, kv_type = request.param
    return open_native(bundle, activations=activations, kv_type=kv_type, max_batch=320)


@pytest.fixture
def whole(executor, run_all, tokens_of):
    """Logits of all tokens, fed at once."""
    return run_all(executor, executor.new_cache(), tokens_of(executor.config, N))


@pytest.mark.parametrize("selection", ["paper", "minicpm4", "infllmv2"])
def test_somebody_else_s_choice_of_blocks(
    open_native, bundle, reference, run_all, tokens_of, assert_close, selection: str
):
    """One option for the native and the PyTorch network; caches of another choice are told apart."""
    wanted = with_selection(bundle.config, selection)
    executor = open_native(bundle, selection=selection)
    assert executor.info.sparse == wanted.sparse and executor.config == wanted
    tokens = tokens_of(bundle.config, N)
    found = run_all(executor, executor.new_cache(), tokens)
    decoder = reference(bundle.with_config(wanted))
    use_attention_mode(decoder, "sparse")
    with torch.no_grad():
        assert_close(found, decoder(torch.from_numpy(tokens).long()))
    own = open_native(bundle)
    assert (own.cache_identity == executor.cache_identity) == (selection == "paper")
    changed = not np.array_equal(found, run_all(own, own.new_cache(), tokens))
    assert changed == (selection != "paper")
    executor = open_executor(bundle, RunOptions("torch", selection=selection))
    assert executor.info.sparse == wanted.sparse
    executor.close()


def test_equals_the_reference(open_native, bundle, reference, run_all, tokens_of, assert_close):
    """The whole network with sparse attention, and what it would be without."""
    executor = open_native(bundle)
    assert executor.info.sparse == SPARSE and executor.capabilities.sparse_attention
    tokens = tokens_of(bundle.config, N)
    found = run_all(executor, executor.new_cache(), tokens)
    decoder = reference(bundle)
    assert use_attention_mode(decoder, "sparse") == SPARSE
    with torch.no_grad():
        assert_close(found, decoder(torch.from_numpy(tokens).long()))
    dense = open_native(bundle, attention="dense")
    wanted = run_all(dense, dense.new_cache(), tokens)
    np.testing.assert_array_equal(found[: SPARSE.dense_len], wanted[: SPARSE.dense_len])
    assert np.abs(found[-1] - wanted[-1]).max() > 0.1


def test_the_torch_executor_is_sparse_too(open_native, bundle, run_all, tokens_of, assert_close):
    """In pieces and after going back, as a session runs it."""
    torch_executor = open_executor(bundle, RunOptions("torch"))
    native = open_native(bundle)
    assert torch_executor.info.sparse == native.info.sparse == SPARSE
    tokens = tokens_of(bundle.config, 420)
    found, wanted = [], []
    for executor, results in ((torch_executor, found), (native, wanted)):
        cache = executor.new_cache()
        run_all(executor, cache, tokens, (200, 60))
        executor.truncate(cache, 350)
        results.append(run_all(executor, cache, tokens[350:], (25, 1)))
    assert_close(found[0], wanted[0])
    assert open_executor(bundle, RunOptions("torch", attention="dense")).info.sparse is None


@pytest.mark.parametrize("chunks", [(1,), (7, 64), (255, 2), (190, 20, 1, 3)], ids=str)
def test_any_chunking_equals_at_once(executor, whole, run_all, tokens_of, chunks: Sequence[int]):
    tokens = tokens_of(executor.config, N)
    np.testing.assert_array_equal(run_all(executor, executor.new_cache(), tokens, chunks), whole)


@pytest.mark.parametrize("threads", [1, 3])
def test_thread_count_does_not_matter(open_native, bundle, run_all, tokens_of, threads: int):
    tokens = tokens_of(bundle.config, 500)
    one, many = (open_native(bundle, kv_type="float16", threads=count) for count in (2, threads))
    wanted = run_all(one, one.new_cache(), tokens, (250, 190, 1))
    np.testing.assert_array_equal(run_all(many, many.new_cache(), tokens, (250, 190, 1)), wanted)


@pytest.mark.parametrize("shared", [5, 199, 333, 448, 619])
def test_going_back_equals_cold_start(executor, whole, run_all, tokens_of, shared: int):
    """Rows that another text has overwritten in between."""
    first, second = tokens_of(executor.config, N, seed=2), tokens_of(executor.config, N)
    first[:shared] = second[:shared]
    cache = executor.new_cache()
    run_all(executor, cache, first)
    executor.truncate(cache, shared)
    np.testing.assert_array_equal(run_all(executor, cache, second[shared:], (41,)), whole[shared:])


PARENTS = [-1, 0, 0, 1, 1, 3, 2, 6, *range(7, 40)]


@pytest.mark.parametrize("prefix", [180, 400, 455])
def test_trees(executor, run_all, tokens_of, prefix: int):
    """Verifying a tree equals decoding its paths, and an accepted path goes on as if it had been fed."""
    before, after = tokens_of(executor.config, prefix), tokens_of(executor.config, 60, seed=4)
    tree = tokens_of(executor.config, len(PARENTS), seed=3)
    cache = executor.new_cache()
    run_all(executor, cache, before)
    positions = np.array([prefix + len(path) - 1 for path in paths(PARENTS)], np.int32)
    found = forward(executor, cache, tree, positions=positions, tree=tree_masks(PARENTS), logits="all").logits
    accepted = paths(PARENTS)[-1]
    fed = executor.new_cache()
    wanted = run_all(executor, fed, np.concatenate([before, tree[accepted], after]))[prefix:]
    np.testing.assert_array_equal(found[accepted], wanted[: len(accepted)])
    # The root is kept as it stands, the rest is moved together.
    executor.keep(cache, prefix + 1, [prefix + kept for kept in accepted[1:]])
    np.testing.assert_array_equal(run_all(executor, cache, after), wanted[len(accepted) :])


def test_a_tree_whose_queries_are_all_dense(executor, run_all, tokens_of):
    """Below dense_len in a sparse model; what follows is sparse, over the windows of the kept path."""
    before, after = tokens_of(executor.config, 100), tokens_of(executor.config, 300, seed=4)
    tree = tokens_of(executor.config, len(PARENTS), seed=3)
    cache, fed = executor.new_cache(), executor.new_cache()
    run_all(executor, cache, before)
    positions = np.array([100 + len(path) - 1 for path in paths(PARENTS)], np.int32)
    found = forward(executor, cache, tree, positions=positions, tree=tree_masks(PARENTS), logits="all").logits
    accepted = paths(PARENTS)[-1]
    wanted = run_all(executor, fed, np.concatenate([before, tree[accepted], after]))[100:]
    np.testing.assert_array_equal(found[accepted], wanted[: len(accepted)])
    executor.keep(cache, 100, [100 + kept for kept in accepted])
    np.testing.assert_array_equal(run_all(executor, cache, after, (9, 64)), wanted[len(accepted) :])


@pytest.mark.parametrize(
    "kept", [range(200, 500), [*range(100, 110), *range(300, 520)]], ids=["moved", "gap"]
)
def test_rows_moved_below_those_that_were_summarised(executor, run_all, tokens_of, kept):
    """The windows over them are computed again: as for a cache that got the same rows from a file."""
    tokens = tokens_of(executor.config, N + 60)
    cache, copied = executor.new_cache(), executor.new_cache()
    run_all(executor, cache, tokens[:N])
    executor.keep(cache, 100, kept)
    assert cache.length == 100 + len(kept)
    executor.restore(copied, cache.length, memory_of(executor, cache))
    np.testing.assert_array_equal(
        run_all(executor, cache, tokens[N:], (20,)), run_all(executor, copied, tokens[N:], (20,))
    )


def test_a_restored_cache_forgets_the_windows_it_had(executor, run_all, tokens_of):
    first, second = tokens_of(executor.config, N), tokens_of(executor.config, N, seed=5)
    source, used, fresh = (executor.new_cache() for _ in range(3))
    run_all(executor, source, first)
    run_all(executor, used, second)  # has windows of all its rows
    for cache in (used, fresh):
        executor.restore(cache, N, memory_of(executor, source))
    np.testing.assert_array_equal(run_all(executor, used, second[:30]), run_all(executor, fresh, second[:30]))


def test_a_batch_that_failed_leaves_no_windows(minicpm, make_bundle, open_native, run_all, tokens_of):
    """Rows of a batch that was refused were summarised in the layers that had run."""

    def damage(name, weights):
        if name == "model.embed_tokens.weight":
            weights[7] = np.nan

    config = minicpm(num_attention_heads=16, sparse=SPARSE)
    executor = open_native(make_bundle(config, change=damage), kv_type="float16")
    tokens = np.where(tokens_of(config, N) == 7, 8, tokens_of(config, N))
    used, fresh = executor.new_cache(), executor.new_cache()
    for cache in (used, fresh):
        run_all(executor, cache, tokens[:400])
    with pytest.raises(NativeError, match="not finite"):
        forward(executor, used, [*range(10, 60), 7])
    np.testing.assert_array_equal(
        run_all(executor, used, tokens[400:]), run_all(executor, fresh, tokens[400:])
    )


def test_what_sparse_attention_moves_and_computes(open_native, bundle, tokens_of):
    """Of one token after 499: five blocks of 64, and 31 windows of 16, which are keys without values."""
    executor = open_native(bundle, kv_type="float16")
    cache, events = executor.new_cache(), []
    forward(executor, cache, tokens_of(bundle.config, 255), logits="none")
    forward(executor, cache, tokens_of(bundle.config, 244), logits="none")
    executor.observe(lambda raw: events.append(native.Event.from_buffer_copy(raw)))
    forward(executor, cache, [5])
    executor.observe(None)
    attention = [event for event in events if event.operation == b"attention"]
    positions, row = 5 * 64 + (500 // 16) // 2, 2 * 2 * 64 * 2  # keys and values of 2 heads of 64 halves
    assert [event.bytes for event in attention] == [positions * row] * 2
    assert [event.operations for event in attention] == [2 * positions * 16 * 64] * 2


def test_a_tree_that_is_all_kept(executor, run_all, tokens_of, assert_close):
    """Without `keep` the rows of a chain are simply the next ones."""
    tokens = tokens_of(executor.config, N)
    chain = np.array([(1 << i + 1) - 1 for i in range(64)], np.uint64)
    cache, fed = executor.new_cache(), executor.new_cache()
    wanted = run_all(executor, fed, tokens)
    run_all(executor, cache, tokens[:400])
    found = forward(executor, cache, tokens[400:464], tree=chain, logits="all").logits
    np.testing.assert_array_equal(found, wanted[400:464])
    np.testing.assert_array_equal(run_all(executor, cache, tokens[464:]), wanted[464:])


def test_the_mode_follows_model_and_context(open_native, bundle):
    """A network with a sparse_config is dense where it is asked to be, and where no query could be sparse."""
    assert open_native(bundle, attention="dense").info.sparse is None
    assert open_native(bundle, context=200).info.sparse is None  # never beyond dense_len


def test_summaries_take_little_memory(bundle):
    """A row of keys for every 16 tokens, and one for every 64: the fine and the coarse windows."""
    row = bundle.config.num_hidden_layers * bundle.config.num_key_value_heads * bundle.config.head_dim
    for kv_type, size in (("float32", 4), ("float16", 2)):
        dense, sparse = (
            memory_plan(bundle, 1024, kv_type, sparse=constants).kv_cache for constants in (None, SPARSE)
        )
        assert sparse - dense == (1024 // 16 + 1024 // 64) * row * size < dense / 10


@pytest.mark.parametrize(
    "sparse, named",
    [
        (replace(SPARSE, block_size=32, window_size=64), "block_size of 64"),
        (replace(SPARSE, kernel_size=24, kernel_stride=8), "multiples of 16"),
    ],
)
def test_what_cannot_run_is_refused(minicpm, make_bundle, open_native, sparse: SparseConfig, named: str):
    odd = make_bundle(minicpm(sparse=sparse))
    assert open_native(odd).info.sparse is None
    with pytest.raises(ConfigError, match=named):
        open_native(odd, attention="sparse")
