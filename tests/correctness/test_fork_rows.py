"""Caches that share the rows of a common beginning: each goes on as if it were alone, and memory is had
once.
"""

from __future__ import annotations

import numpy as np
import pytest

from edge.config import SparseConfig
from edge.errors import NativeError
from edge.executors.protocol import SequenceStep, SharesRows
from edge.quant.scheme import QuantScheme
from tests.steps import forward, memory_of

SPARSE = SparseConfig(dense_len=128, window_size=128, init_blocks=1, topk=2)
KV_TYPES = ["float32", "float16", "int16", "int8", "int4"]


@pytest.fixture(params=["dense", "sparse"])
def bundle(request, minicpm, make_bundle):
    sparse = SPARSE if request.param == "sparse" else None
    config = minicpm(num_attention_heads=16, sparse=sparse, max_position_embeddings=6000)
    return make_bundle(config, QuantScheme("int4", 32))


@pytest.fixture(params=KV_TYPES)
def executor(request, open_native, bundle):
    return open_native(bundle, activations="int8", kv_type=request.param, max_batch=320)


@pytest.mark.parametrize("shared", [1, 100, 256, 511, 600])
def test_both_go_on_as_if_alone(executor, run_all, tokens_of, shared: int):
    """In one pass and by turns, also after the older one was cut back into what they share."""
    config = executor.config
    prefix, mine, yours = tokens_of(config, 600), tokens_of(config, 300, 2), tokens_of(config, 300, 3)
    old = executor.new_cache()
    run_all(executor, old, prefix)
    new = executor.fork(old, shared)
    assert (old.length, new.length) == (600, shared)
    executor.truncate(old, shared)
    parts = [
        executor.forward(
            [
                SequenceStep(old, mine[at : at + 100], logits="all"),
                SequenceStep(new, yours[at : at + 100], logits="all"),
            ]
        )
        for at in range(0, 300, 100)
    ]
    for index, text in enumerate((mine, yours)):
        found = np.concatenate([part[index].logits for part in parts])
        alone = executor.new_cache()
        wanted = run_all(executor, alone, np.concatenate([prefix[:shared], text]))[shared:]
        np.testing.assert_array_equal(found, wanted)


def test_shared_rows_are_had_once(executor, run_all, tokens_of):
    """A page more for what is written, of rows and of summaries; all of it is given back."""
    assert isinstance(executor, SharesRows) and executor.cache_bytes == 0
    tokens = tokens_of(executor.config, 1300)
    first = executor.new_cache()
    run_all(executor, first, tokens)
    alone = executor.cache_bytes
    forks = [executor.fork(first, 1300) for _ in range(10)]
    assert executor.cache_bytes == alone
    before = memory_of(executor, first)
    page = memory_of(executor, executor.fork(first, 1)).nbytes
    forward(executor, forks[0], [5])
    most = alone + 2 * page + (0 if executor.info.sparse is None else alone // 2)
    assert alone < executor.cache_bytes <= most
    np.testing.assert_array_equal(memory_of(executor, first), before)
    for other in forks[1:]:
        np.testing.assert_array_equal(memory_of(executor, other), before)
    del first, forks, other
    assert executor.cache_bytes == 0


def test_pages_come_back(executor, run_all, tokens_of):
    cache = executor.new_cache()
    sizes = []
    for length in (300, 200, 600, 0):
        if length > cache.length:
            run_all(executor, cache, tokens_of(executor.config, length - cache.length))
        executor.truncate(cache, length)
        sizes.append(executor.cache_bytes)
    assert sizes[0] == 2 * sizes[1] or executor.info.sparse is not None
    assert sizes[2] > sizes[0] > sizes[1] > sizes[3] == 0


def test_what_can_not_be_shared(executor, open_native, bundle):
    cache = executor.new_cache()
    forward(executor, cache, [5, 6, 7])
    for n in (-1, 4):
        with pytest.raises(NativeError, match="can't become another's"):
            executor.fork(cache, n)
    other = open_native(bundle, activations="int8", kv_type=executor.info.kv_type)
    with pytest.raises(NativeError, match="different models"):
        other.fork(cache, 2)
    assert other.cache_bytes == 0
