"""The choice of blocks on a simulated device, against the reference on the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.config import SparseConfig
from edge.errors import ContextError
from edge.executors.cuda.device import Device
from edge.executors.cuda.operators.selection import Selection, check_blocks, select, selected_blocks
from edge.executors.cuda.operators.tables import StepTables
from edge.model.attention.sparse import chosen_blocks
from tests.kernels.cuda.caches import Array
from tests.kernels.cuda.memory import fetched, sent

SPARSE = SparseConfig(init_blocks=1, window_size=128, topk=6, dense_len=256)
CASES = [
    SPARSE,
    SparseConfig(init_blocks=0, window_size=64, topk=3, dense_len=-1),
    SparseConfig(init_blocks=3, window_size=256, topk=3, dense_len=0),  # nothing is chosen by score
]


def chosen(device: Device, sparse: SparseConfig, scores: Array, lengths: list[int]) -> list[list[list[int]]]:
    """Blocks by row and head, [-1] where all are read; scores float32 [rows, kv_heads, blocks]."""
    rows, kv_heads, blocks = scores.shape
    capacity = selected_blocks(sparse)
    into = Selection(
        device.allocate(rows * kv_heads * capacity * 4), device.allocate(rows * kv_heads * 4), capacity
    )
    path = sent(device, np.array(lengths, np.int32) - 1)
    sequences = sent(device, np.where(np.array(lengths) > 0, 0, -1).astype(np.int32))
    tables = StepTables(rows, 0, sequences, 0, 0, path, 0, 0, 0, blocks // 4)
    select(device, tables, sparse, sent(device, scores), into, kv_heads=kv_heads)
    ids = fetched(device, into.blocks, (rows, kv_heads, capacity), np.int32)
    counts = fetched(device, into.counts, (rows, kv_heads), np.int32)
    return [
        [
            ids[row, head, :count].tolist() if (count := counts[row, head]) >= 0 else [-1]
            for head in range(kv_heads)
        ]
        for row in range(rows)
    ]


@pytest.mark.parametrize("sparse", CASES)
@pytest.mark.parametrize("kind", ["all different", "ties", "zeros"])
def test_selections_are_the_references_on_the_same_scores(
    device: Device, sparse: SparseConfig, kind: str
) -> None:
    random = np.random.default_rng(len(kind))
    lengths = [1, 64, 256, 257, 320, 641, 1000, 2048]
    shape = (len(lengths), 2, 32)
    scores = {
        "all different": lambda: random.lognormal(0, 9, shape),
        "ties": lambda: random.integers(0, 3, shape) * 1e-30,  # some are not normal numbers
        "zeros": lambda: np.zeros(shape),
    }[kind]().astype(np.float32)
    found = chosen(device, sparse, scores, lengths)
    for row, length in enumerate(lengths):
        for head in range(2):
            blocks = chosen_blocks(torch.from_numpy(scores[row, head]), length, sparse)
            assert found[row][head] == ([-1] if length <= sparse.dense_len else blocks), (length, head)


def test_dead_rows_select_nothing(device: Device) -> None:
    assert chosen(device, SPARSE, np.ones((2, 1, 8), np.float32), [0, 500])[0] == [[]]


def test_a_context_that_no_kernel_reaches_is_refused() -> None:
    check_blocks(8192)
    with pytest.raises(ContextError, match="reaches 524288 positions, not 524352"):
        check_blocks(8193)


def test_long_contexts_have_kernels_of_their_own(device: Device) -> None:
    random = np.random.default_rng(0)
    for blocks in (2048, 2052):
        scores = random.integers(0, 500, (1, 1, blocks)).astype(np.float32)
        found = chosen(device, SPARSE, scores, [blocks * 64 - 5])
        wanted = chosen_blocks(torch.from_numpy(scores[0, 0]), blocks * 64 - 5, SPARSE)
        assert found[0][0] == wanted
