"""The KV cache: how a sequence got into it must not matter.

The native decoder computes every token in the same order alone, in a batch or in a tree, so these are bit
for bit equal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.engine.session import Session
from edge.errors import NativeError
from edge.quant.scheme import QuantScheme
from tests.steps import TREE, forward, memory_of, paths, tree_masks

INT4 = QuantScheme("int4", 32)
MODES = [
    ("float32", "float32"),
    ("float32", "int16"),
    ("int16", "int16"),
    ("int8", "int16"),
    ("int8", "float16"),
    ("int8", "int8"),
    ("float32", "int8"),
    ("int8", "int4"),
]


@pytest.fixture
def bundle(minicpm, make_bundle):
    return make_bundle(minicpm(num_attention_heads=16), INT4)


@pytest.fixture(params=MODES, ids="-".join)
def executor(request, open_native, bundle):
    activations, kv_type = request.param
    return open_native(bundle, activations=activations, kv_type=kv_type, max_batch=320)


@pytest.mark.parametrize("chunks", [(1,), (7,), (16,), (64,), (255, 2), (1, 2, 3, 100), (320,)], ids=str)
def test_any_chunking_equals_token_by_token(executor, run_all, tokens_of, chunks: Sequence[int]):
    tokens = tokens_of(executor.config, 300)
    whole = run_all(executor, executor.new_cache(), tokens, (1,))
    np.testing.assert_array_equal(run_all(executor, executor.new_cache(), tokens, chunks), whole)


def test_last_logits_are_those_of_all(executor, tokens_of):
    tokens = tokens_of(executor.config, 37)
    every = forward(executor, executor.new_cache(), tokens, logits="all").logits
    last = forward(executor, executor.new_cache(), tokens, logits="last").logits
    np.testing.assert_array_equal(last, every[-1:])


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_thread_count_does_not_matter(open_native, bundle, run_all, tokens_of, threads: int, mode):
    activations, kv_type = mode
    options = {"activations": activations, "kv_type": kv_type}
    tokens = tokens_of(bundle.config, 90)
    one = open_native(bundle, threads=1, **options)
    many = open_native(bundle, threads=threads, **options)
    wanted = run_all(one, one.new_cache(), tokens, (50, 1, 1, 17))
    np.testing.assert_array_equal(run_all(many, many.new_cache(), tokens, (50, 1, 1, 17)), wanted)


@pytest.mark.parametrize("shared", [1, 63, 64, 256, 299])
def test_prompt_reuse_equals_cold_start(executor, run_all, tokens_of, shared: int):
    """A cache cut back to a shared prefix goes on like a cache that never held anything else."""
    first, second = tokens_of(executor.config, 300, seed=1), tokens_of(executor.config, 300, seed=2)
    second[:shared] = first[:shared]
    used = executor.new_cache()
    run_all(executor, used, first)
    executor.truncate(used, shared)
    assert used.length == shared
    cold = run_all(executor, executor.new_cache(), second)
    np.testing.assert_array_equal(run_all(executor, used, second[shared:], (41,)), cold[shared:])


def test_session_reuse_equals_cold_start(executor, tokens_of):
    """The same through a session, which finds the shared prefix by itself and computes only the rest."""
    first, second = tokens_of(executor.config, 200, seed=1), tokens_of(executor.config, 150, seed=2)
    second[:123] = first[:123]
    used, cold = Session(executor), Session(executor)
    used.prefill(first)
    before = used.computed_tokens
    np.testing.assert_array_equal(used.prefill(second), cold.prefill(second))
    assert used.computed_tokens - before == 150 - 123
    np.testing.assert_array_equal(used.step(7), cold.step(7))


def test_borders_of_a_cache(open_native, minicpm, make_bundle):
    """The first number beyond each is refused and changes nothing; the last one within is taken."""
    executor = open_native(make_bundle(minicpm(max_position_embeddings=256)))
    cache, same = executor.new_cache(), executor.new_cache()
    for each in (cache, same):
        forward(executor, each, [1, 2, 3, 4, 5])
    two_pages = np.zeros(2 * memory_of(executor, cache).nbytes, np.uint8)
    calls = [
        *(lambda n=n: executor.truncate(cache, n) for n in (-1, 6)),
        *(lambda rows=rows: executor.keep(cache, 2, rows) for rows in ([5], [1], [2, 2], [3, 2], [2, 5])),
        *(lambda n=n: executor.keep(cache, n, []) for n in (-1, 6)),
        *(lambda n=n: executor.repeat(cache, n) for n in (4, 257)),
        lambda: executor.restore(cache, 257, two_pages),
        lambda: executor.restore(cache, 256, two_pages),
    ]
    for call in calls:
        with pytest.raises(NativeError):
            call()
        assert cache.length == 5
    executor.repeat(cache, 256)
    executor.truncate(cache, 255)
    executor.keep(cache, 0, [250, 251, 252, 253, 254])  # the fifty-first time
    wanted = forward(executor, same, [6]).logits
    np.testing.assert_array_equal(forward(executor, cache, [6]).logits, wanted)


def test_caches_are_independent(executor, run_all, tokens_of):
    """Two sequences in turn give what each gives alone."""
    texts = [tokens_of(executor.config, 40, seed=seed) for seed in (1, 2)]
    alone = [run_all(executor, executor.new_cache(), text) for text in texts]
    caches = [executor.new_cache(), executor.new_cache()]
    parts: list[list[np.ndarray]] = [[], []]
    for start in range(0, 40, 8):
        for index, text in enumerate(texts):
            parts[index].append(run_all(executor, caches[index], text[start : start + 8]))
    for index in range(2):
        np.testing.assert_array_equal(np.concatenate(parts[index]), alone[index])


def random_parents(n: int) -> list[int]:
    generator = np.random.default_rng(5)
    return [-1, *(int(generator.integers(max(0, node - 9), node)) for node in range(1, n))]


@pytest.mark.parametrize(
    "parents", [TREE, random_parents(64), list(range(-1, 63))], ids=["small", "64", "chain"]
)
@pytest.mark.parametrize("prefix", [0, 5, 192, 250, 256])  # across, before and at the border of a chunk
def test_tree_equals_each_path(executor, run_all, tokens_of, prefix: int, parents: list[int]):
    before = tokens_of(executor.config, prefix)
    tree = tokens_of(executor.config, len(parents), seed=3)
    cache = executor.new_cache()
    if prefix:
        run_all(executor, cache, before)
    positions = np.array([prefix + len(path) - 1 for path in paths(parents)], np.int32)
    found = forward(executor, cache, tree, positions=positions, tree=tree_masks(parents), logits="all").logits
    assert cache.length == prefix + len(parents)
    for node, path in list(enumerate(paths(parents)))[:: max(1, len(parents) // 12)]:
        alone = executor.new_cache()
        wanted = run_all(executor, alone, np.concatenate([before, tree[path]]))[-1]
        np.testing.assert_array_equal(found[node], wanted)


def test_causal_tree_equals_no_tree(executor, tokens_of):
    tokens = tokens_of(executor.config, 64)
    chain = tree_masks(range(-1, 63))
    plain = forward(executor, executor.new_cache(), tokens, logits="all").logits
    tree = forward(executor, executor.new_cache(), tokens, tree=chain, logits="all").logits
    np.testing.assert_array_equal(tree, plain)


@pytest.mark.parametrize("prefix", [1, 130])
def test_keep_an_accepted_path(executor, run_all, tokens_of, prefix: int):
    """After a tree, keeping one path and going on equals having fed that path."""
    path = paths(TREE)[5]
    before, tree = tokens_of(executor.config, prefix), tokens_of(executor.config, len(TREE), seed=3)
    after = tokens_of(executor.config, 20, seed=4)
    cache = executor.new_cache()
    run_all(executor, cache, before)
    positions = np.array([prefix + len(p) - 1 for p in paths(TREE)], np.int32)
    forward(executor, cache, tree, positions=positions, tree=tree_masks(TREE), logits="none")
    executor.keep(cache, prefix, [prefix + node for node in path])
    assert cache.length == prefix + len(path)
    found = run_all(executor, cache, after)
    wanted = run_all(executor, executor.new_cache(), np.concatenate([before, tree[path], after]))[-20:]
    np.testing.assert_array_equal(found, wanted)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell resident memory")
@pytest.mark.parametrize("kv_type", ["int16", "float16", "int8", "int4"])
def test_memory_grows_with_the_tokens(minicpm, make_bundle, open_native, tokens_of, kv_type: str):
    """A long context costs what is used of it, within a page of 256 positions and two huge pages."""
    config = minicpm(max_position_embeddings=1 << 18)
    executor = open_native(make_bundle(config, INT4), kv_type=kv_type)
    forward(executor, executor.new_cache(), tokens_of(config, 8))  # touches the workspace
    row, slack = config.kv_bytes_per_token(kv_type), 4 << 20
    cache, before = executor.new_cache(), resident_bytes()
    for length in (8, 60_000):
        forward(executor, cache, tokens_of(config, 8)) if length == 8 else executor.repeat(cache, length)
        pages = -(-length // 256) * 256
        assert pages * row - slack < resident_bytes() - before < pages * row + slack


def test_restored_rows_continue_like_the_original(executor, run_all, tokens_of):
    tokens = tokens_of(executor.config, 300)
    original, restored = executor.new_cache(), executor.new_cache()
    run_all(executor, original, tokens[:270])
    run_all(executor, restored, tokens_of(executor.config, 100, seed=2))  # all gone afterwards
    executor.restore(restored, 270, memory_of(executor, original))
    assert restored.length == 270
    np.testing.assert_array_equal(
        run_all(executor, restored, tokens[270:]), run_all(executor, original, tokens[270:])
    )


def test_many_pages_are_restored_by_two_threads(minicpm, make_bundle, open_native, tokens_of):
    """More than 16 MB, an odd number of pages, every one with its own content."""
    config = minicpm(max_position_embeddings=1 << 18)
    executor = open_native(make_bundle(config, INT4), kv_type="float16")
    source, copied = executor.new_cache(), executor.new_cache()
    forward(executor, source, tokens_of(config, 8))
    length = 256 * 300 + 5
    executor.repeat(source, length)
    memory = memory_of(executor, source)
    assert memory.nbytes > 32 << 20
    memory[:] = np.random.default_rng(0).integers(0, 256, memory.size, np.uint8)
    executor.restore(copied, length, memory)
    np.testing.assert_array_equal(memory_of(executor, copied), memory)


@pytest.mark.parametrize("length", [10, 256, 257])
def test_memory_of_another_size_is_not_restored(executor, run_all, tokens_of, length: int):
    """Whole pages of 256 positions, not a byte less or more; else the cache stays as it is."""
    tokens = tokens_of(executor.config, 300)
    source, cache, untouched = (executor.new_cache() for _ in range(3))
    run_all(executor, source, tokens[:length])
    for each in (cache, untouched):
        run_all(executor, each, tokens[:20])
    memory = memory_of(executor, source)
    page = memory.size // -(-length // 256)
    longer = np.concatenate([memory, memory[:page]])
    for wrong in (memory[:-1], memory[:-64], longer[: memory.size + 1], longer, memory[:0]):
        with pytest.raises(NativeError, match=f"{length} rows of this cache take {memory.size} bytes, not"):
            executor.restore(cache, length, wrong)
    for rows in (-1, executor.context + 1):
        with pytest.raises(NativeError, match="can't be restored"):
            executor.restore(cache, rows, memory)
    assert cache.length == 20
    np.testing.assert_array_equal(
        run_all(executor, cache, tokens[20:40]), run_all(executor, untouched, tokens[20:40])
    )


def test_keep_nothing_is_truncate(executor, run_all, tokens_of):
    tokens = tokens_of(executor.config, 30)
    kept, cut = executor.new_cache(), executor.new_cache()
    for cache in (kept, cut):
        run_all(executor, cache, tokens)
    executor.keep(kept, 12, [])
    executor.truncate(cut, 12)
    assert kept.length == cut.length == 12
    np.testing.assert_array_equal(run_all(executor, kept, tokens), run_all(executor, cut, tokens))


def test_tree_against_the_reference(bundle, open_native, reference, run_all, tokens_of, assert_close):
    """The same tree as a mask in PyTorch, prefix included."""
    executor = open_native(bundle)
    prefix, n = 11, len(TREE)
    tokens = tokens_of(executor.config, prefix + n)
    mask = torch.ones(prefix + n, prefix + n, dtype=torch.bool).tril()
    mask[prefix:, prefix:] = False
    for node, path in enumerate(paths(TREE)):
        mask[prefix + node, [prefix + seen for seen in path]] = True
    positions = np.array([*range(prefix), *(prefix + len(path) - 1 for path in paths(TREE))], np.int32)
    wanted = reference(bundle)(torch.from_numpy(tokens).long(), torch.from_numpy(positions), mask)
    cache = executor.new_cache()
    run_all(executor, cache, tokens[:prefix])
    found = forward(
        executor, cache, tokens[prefix:], positions=positions[prefix:], tree=tree_masks(TREE), logits="all"
    ).logits
    assert_close(found, wanted[prefix:])
