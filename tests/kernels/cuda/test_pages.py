"""Pages of the KV cache that are copied, and rows that move, on a simulated device."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import ConfigError, ContextError
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.pages import CachePools, CacheShape, copy_page, move
from edge.executors.cuda.operators.tables import PAGE, TREE
from tests.kernels.cuda.caches import Cache
from tests.kernels.cuda.memory import sent


@pytest.mark.parametrize("int8", [False, True], ids=["f16", "int8"])
def test_a_page_is_copied_in_every_pool_and_layer(device: Device, int8: bool) -> None:
    random = np.random.default_rng(1)
    cache = Cache.of(device, [600, 30], layers=3, kv_heads=3, int8=int8, summaries=True)
    for name in ("fine", "coarse"):
        cache.arrays[name][:] = random.standard_normal(cache.arrays[name].shape)
    cache.upload()
    source, target = int(cache.page_table[0, 1]), int(cache.page_table[1, 0])
    copy_page(device, cache.pools, source, target)
    for name, found in cache.download().items():
        cache.arrays[name][:, target] = cache.arrays[name][:, source]
        assert np.array_equal(found.view(np.int8), cache.arrays[name].view(np.int8)), name


@pytest.mark.parametrize("int8", [False, True], ids=["f16", "int8"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_kept_rows_move_together(device: Device, head_dim: int, int8: bool) -> None:
    cache = Cache.of(device, [300, 90, 90], layers=2, kv_heads=2, head_dim=head_dim, int8=int8)
    # Over the border of a page; rows that overwrite others that move; nothing; all of them.
    keeps = [(0, 250, [250, 253, 254, 256, 290]), (2, 5, []), (-1, 0, [3, 4]), (1, 20, list(range(26, 90)))]
    kept = np.full((len(keeps), TREE), -1, np.int32)
    for i, (_, _, rows) in enumerate(keeps):
        kept[i, : len(rows)] = rows
    columns = [
        np.array(values, np.int32)
        for values in ([k[0] for k in keeps], [k[1] for k in keeps], [len(k[2]) for k in keeps])
    ]
    sequences, before, counts = (sent(device, column) for column in columns)
    move(
        device,
        cache.pools,
        sent(device, cache.page_table),
        sequences,
        before,
        sent(device, kept),
        counts,
        moves=len(keeps),
        max_pages=cache.page_table.shape[1],
    )
    expected = {name: array.copy() for name, array in cache.arrays.items()}
    for sequence, first, rows in keeps:
        if sequence < 0:
            continue
        for i, row in enumerate(rows):
            source, target = (cache.page_table[sequence, at // PAGE] for at in (row, first + i))
            for name, array in expected.items():
                if array.shape[3] == PAGE:  # rows and their scales, not summaries
                    array[:, target, :, (first + i) % PAGE] = cache.arrays[name][:, source, :, row % PAGE]
    for name, found in cache.download().items():
        assert np.array_equal(found.view(np.int8), expected[name].view(np.int8)), name


def test_pools_say_what_a_page_takes(device: Device) -> None:
    shape = CacheShape(layers=3, kv_heads=2, head_dim=64, int8=True, summaries=True)
    free = device.free_memory
    pools = CachePools.allocate(device, shape, pages=5)
    taken = free - device.free_memory
    assert 0 <= taken - 5 * shape.page_bytes < 6 * 512  # each pool is aligned
    pools.free(device)
    assert device.free_memory == free


def test_pools_without_room_leave_nothing_behind(device: Device) -> None:
    free = device.free_memory
    shape = CacheShape(layers=1, kv_heads=1, head_dim=64)
    with pytest.raises(ContextError):
        CachePools.allocate(device, shape, pages=free // shape.page_bytes)
    assert device.free_memory == free


def test_a_head_that_no_kernel_is_made_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="64 or 128, not 96"):
        CacheShape(layers=1, kv_heads=1, head_dim=96)
