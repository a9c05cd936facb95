"""Exported folders of tiny networks, and how near an executor's logits must be to the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge.config import ModelConfig
from edge.executors.protocol import Executor
from edge.export.artifact import export_model
from edge.export.options import ExportOptions
from edge.export.source import Source
from edge.formats.artifact.folder import Artifact
from edge.formats.bundle.reader import Bundle
from edge.model.executor import TorchExecutor
from edge.model.weights.checkpoint import reference_from_bundle
from tests.oak import OAK, registered
from tests.oak import oak as oak_of
from tests.steps import forward


@pytest.fixture(scope="module")
def oak() -> Iterator[Callable[[ModelConfig], ModelConfig]]:
    """`oak(config)`: the same network with biases, norms of q and k, and a layer without RoPE."""
    with registered(OAK):
        yield oak_of


@pytest.fixture
def export_bundle(tmp_path: Any) -> Callable[..., Artifact]:
    """`export_bundle(bundle, target, **options)`: the exported folder."""

    def export(bundle: Bundle, target: str, **options: Any) -> Artifact:
        folder = tmp_path / f"{target}-{len(list(tmp_path.iterdir()))}"
        return export_model(Source(bundle), ExportOptions(target, **options), folder)

    return export


@pytest.fixture
def distance() -> Callable[..., float]:
    """`distance(executor, bundle, tokens, context, chunks=(256,))`: the largest error of a logit.

    Against PyTorch, in units of the truth's standard deviation, over all tokens, fed in such chunks.
    """

    def measure(
        executor: Executor, bundle: Bundle, tokens: Any, context: int, chunks: tuple[int, ...] = (256,)
    ) -> float:
        reference = TorchExecutor(reference_from_bundle(bundle, context))
        truth = forward(reference, reference.new_cache(), tokens, logits="all").logits
        cache, rows, at = executor.new_cache(), [], 0
        while at < len(tokens):
            size = chunks[len(rows) % len(chunks)]
            rows.append(forward(executor, cache, tokens[at : at + size], logits="all").logits)
            at += size
        found = np.concatenate(rows)
        assert found.shape == truth.shape
        return float(np.abs(found - truth).max() / truth.std())

    return measure
