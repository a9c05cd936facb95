"""Which pages a sequence on a device has."""

from __future__ import annotations

import gc

import pytest

from edge.errors import ContextError
from edge.executors.cuda.cache import CudaCache, PagePool


def filled(pool: PagePool, rows: int, capacity: int = 4096) -> CudaCache:
    """A cache of so many rows."""
    cache = CudaCache(pool, capacity)
    assert not cache.writable(0, rows)
    cache.length = rows
    return cache


def test_a_cache_takes_pages_as_it_grows_and_gives_them_back():
    pool = PagePool(4)
    cache = filled(pool, 1)
    assert pool.used == 1
    cache.writable(1, 256)
    assert pool.used == 1
    cache.writable(256, 600)
    cache.length = 600
    assert pool.used == len(set(cache.pages)) == 3
    cache.cut(256)
    assert pool.used == len(cache.pages) == 1
    del cache
    gc.collect()
    assert pool.used == 0


def test_shared_pages_are_copied_before_one_of_the_two_writes():
    pool = PagePool(8)
    first = filled(pool, 600)
    second = CudaCache(pool, 4096)
    first.share(300, second)
    assert second.length == 300 and second.pages == first.pages[:2] and pool.used == 3
    shared = second.pages[1]
    assert second.writable(300, 310) == [(shared, second.pages[1])]
    assert second.pages[0] == first.pages[0] and second.pages[1] != shared == first.pages[1]
    assert not first.writable(300, 310)  # nobody else has it any more
    assert first.writable(100, 101) == [(second.pages[0], first.pages[0])]
    assert pool.used == 5


def test_what_finds_no_page_changes_nothing():
    pool = PagePool(3)
    first = filled(pool, 500)
    second = CudaCache(pool, 4096)
    first.share(500, second)
    before = list(second.pages)
    with pytest.raises(ContextError, match="All 768 rows of the KV cache on the device are in use"):
        second.writable(200, 600)  # two copies and one more
    assert second.pages == before and pool.used == 2
    assert second.writable(500, 512) and pool.used == 3
    del first
    gc.collect()
    second.writable(512, 513)
    assert pool.used == 3
