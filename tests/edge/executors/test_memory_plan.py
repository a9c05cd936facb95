"""The plan of a model's memory, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edge.config import SparseConfig
from edge.executors.memory import memory_plan, workspace_bytes
from edge.quant.scheme import QuantScheme

ROW = 2 * 2 * 16  # layers, heads of keys, their size


@pytest.fixture
def files(tiny_config):
    tensors = {
        "a": SimpleNamespace(bytes=4096, rows=20, columns=40),
        "b": SimpleNamespace(bytes=64, rows=1, columns=16),
    }
    return SimpleNamespace(config=tiny_config, tensors=tensors)


def test_the_workspace(tiny_config):
    """Three times 40 and 100 and the 4 + 2 x 2 heads of 16 per token, and 77 logits, in float32."""
    assert workspace_bytes(tiny_config, 8) == 4 * (8 * (3 * 40 + 128 + 3 * 100) + 77)


def test_the_defaults(files):
    plan = memory_plan(files, 100)
    assert (plan.weights, plan.context, plan.mapped_weights) == (4160, 100, False)
    assert plan.kv_cache == 100 * files.config.kv_bytes_per_token("int16")
    assert plan.workspace == workspace_bytes(files.config, 256)
    assert plan.committed == plan.total == plan.weights + plan.kv_cache + plan.workspace


def test_what_is_asked_for_counts(files):
    plan = memory_plan(files, 100, "float32", 8, mapped_weights=True)
    assert plan.kv_cache == 100 * 2 * ROW * 4
    assert plan.workspace == workspace_bytes(files.config, 8)
    assert plan.committed == plan.kv_cache + plan.workspace
    weights = memory_plan(files, 100, weights=QuantScheme("f16")).weights
    assert weights == 2 * (32 * 64 + 16 * 32)  # tiles of 16 rows, columns by 32


@pytest.mark.parametrize(
    ("kv_type", "size"), [("float32", 4), ("float16", 2), ("int16", 2), ("int8", 2), ("int4", 2)]
)
def test_key_summaries(files, kv_type, size):
    """Of whole strides only: 6 fine ones of 16 in 100 tokens, and a coarse one of 64."""
    sparse = SparseConfig()
    assert (sparse.kernel_stride, sparse.coarse_stride) == (16, 64)
    dense, found = (memory_plan(files, 100, kv_type, sparse=each).kv_cache for each in (None, sparse))
    assert found - dense == (6 + 1) * ROW * size
