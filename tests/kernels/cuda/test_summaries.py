"""Key summaries on a simulated device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from edge.config import SparseConfig
from edge.errors import ConfigError
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.pages import CachePools
from edge.executors.cuda.operators.summaries import (
    COARSE,
    FINE,
    OWN,
    OWN_FINE,
    check_sparse,
    path_windows_bytes,
    summaries,
)
from edge.model.attention.key_summaries import KeySummaries
from tests.kernels.cuda.caches import DEAD, Array, Cache, Step
from tests.kernels.cuda.memory import fetched

SPARSE = SparseConfig()
TREE = (-1, 0, 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)  # to depth 20


def summarised(cache: Cache, steps: Sequence[Step], layer: int | None = None) -> Array:
    """Runs the kernel; the windows of paths float16 [rows, kv_heads, 5, d], NaN where it wrote none."""
    shape, tables = cache.pools.shape, cache.tables(steps)
    size = path_windows_bytes(tables.rows, shape.kv_heads, shape.head_dim)
    of_paths = cache.device.allocate(size)
    cache.device.upload(of_paths, np.full(size // 2, np.nan, np.float16))
    pools: CachePools = cache.pools if layer is None else cache.pools.layer(layer)
    summaries(cache.device, tables, pools, of_paths)
    return fetched(cache.device, of_paths, (tables.rows, shape.kv_heads, OWN, shape.head_dim), np.float16)


@pytest.mark.parametrize("int8", [False, True], ids=["f16", "int8"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_windows_stand_in_the_page_where_they_end(device: Device, head_dim: int, int8: bool) -> None:
    lengths = [330, 65, 300]
    cache = Cache.of(
        device, lengths, layers=2, kv_heads=2, head_dim=head_dim, int8=int8, summaries=True, seed=head_dim
    )
    before = [200, 31, 255]  # the rows after them are of this pass
    summarised(cache, [DEAD, *(Step(s, first, lengths[s] - first) for s, first in enumerate(before))])
    for sequence in range(3):
        cache.summarise(sequence, before[sequence], lengths[sequence])
    for name, found in cache.download().items():
        assert np.array_equal(found, cache.arrays[name], equal_nan=True), name


@pytest.mark.parametrize("before", [5, 100, 250])
def test_a_path_has_the_windows_of_the_same_tokens_in_a_row(device: Device, before: int) -> None:
    cache = Cache.of(device, [before + len(TREE)], layers=2, kv_heads=2, summaries=True)
    step = Step(0, before, len(TREE), TREE)
    of_paths = summarised(cache, [step, DEAD], layer=1)
    for row in range(step.n):
        keys = torch.from_numpy(cache.rows("keys", 0, step.rows_seen(row), layer=1)).double()
        whole = KeySummaries.of(keys, SPARSE)
        expected = np.full((2, OWN, 64), np.nan, np.float16)
        for first, windows, means in ((0, FINE, whole.fine), (OWN_FINE, COARSE, whole.coarse)):
            for j in range(means.shape[1]):
                end = j * windows.stride + windows.size
                if end > before:
                    expected[:, first + end // windows.stride - 1 - before // windows.stride] = means[:, j]
        assert np.array_equal(of_paths[row], expected, equal_nan=True), row
    assert np.isnan(of_paths[-1]).all()
    assert all(np.isnan(cache.download()[name]).all() for name in ("fine", "coarse"))


@pytest.mark.parametrize(
    "sparse", [SparseConfig(kernel_size=64), SparseConfig(block_size=128), SparseConfig(use_nope=True)]
)
def test_other_constants_are_refused(sparse: SparseConfig) -> None:
    check_sparse(SPARSE, 16)
    with pytest.raises(ConfigError, match="kernel_size 32"):
        check_sparse(sparse, 1)


def test_larger_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="not 17"):
        check_sparse(SPARSE, 17)
