"""Executors over tiny bundles, and the one table of tolerances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edge.executors.native.executor import NativeExecutor
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.formats.bundle.reader import Bundle
from edge.model.executor import TorchExecutor
from edge.model.network.decoder import Decoder
from edge.model.weights.checkpoint import reference_from_bundle
from tests.steps import forward

Floats = npt.NDArray[np.float32]

# Largest difference from the truth, in units of the truth's standard deviation, by activations and KV type.
# int8 activations round every input of every matrix to 1 part in 127 of its block's largest value, int16 ones
# to a 254th of that.
TOLERANCES = {
    "float32 float32": 5e-5,
    "float32 float16": 5e-3,
    "float32 int16": 5e-3,
    "int16 float32": 2e-3,
    "int16 float16": 5e-3,
    "int16 int16": 5e-3,
    "int16 int8": 0.15,
    "int8 float32": 0.2,
    "int8 float16": 0.2,
    "int8 int16": 0.2,
    "float32 int8": 0.15,
    "int8 int8": 0.25,
    "float32 int4": 1.0,
    "int8 int4": 1.0,
    "int16 int4": 1.0,
}


@pytest.fixture
def open_native() -> Iterator[Callable[..., NativeExecutor]]:
    """`open_native(bundle, **options)`: exact activations and float32 KV by default; closed at the end."""
    opened: list[NativeExecutor] = []

    def open_one(bundle: Bundle, **options: Any) -> NativeExecutor:
        defaults = {"activations": "float32", "kv_type": "float32", "threads": 2}
        opened.append(open_executor(bundle, RunOptions(**{**defaults, **options})))
        return opened[-1]

    yield open_one
    for executor in opened:
        executor.close()


@pytest.fixture
def open_reference() -> Callable[..., TorchExecutor]:
    """`open_reference(bundle, context=None, max_batch=256)`: the PyTorch network behind the same protocol."""

    def open_one(bundle: Bundle, context: int | None = None, max_batch: int = 256) -> TorchExecutor:
        return TorchExecutor(reference_from_bundle(bundle, context), max_batch)

    return open_one


@pytest.fixture(scope="session")
def reference() -> Callable[..., Decoder]:
    """`reference(bundle, context=None)`: the PyTorch decoder over the bundle's dequantized weights."""
    return reference_from_bundle


@pytest.fixture(scope="session")
def run_all() -> Callable[..., Floats]:
    """`run_all(executor, cache, tokens, chunks=None)`: logits of every token, fed in such chunks."""

    def run(
        executor: NativeExecutor, cache: Any, tokens: Sequence[int], chunks: Sequence[int] | None = None
    ) -> Floats:
        chunks = chunks or (executor.max_batch,)
        parts, at, turn = [], 0, 0
        while at < len(tokens):
            size = chunks[turn % len(chunks)]
            result = forward(executor, cache, tokens[at : at + size], logits="all")
            assert result.logits is not None
            parts.append(result.logits)
            at, turn = at + size, turn + 1
        return np.concatenate(parts)

    return run


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """`assert_close(found, wanted, row="float32 float32")`: by that row of the table of tolerances."""

    def check(found: Floats, wanted: torch.Tensor | Floats, row: str = "float32 float32") -> None:
        truth = np.asarray(wanted)
        assert found.shape == truth.shape
        assert np.isfinite(found).all()
        error = np.abs(found - truth).max() / truth.std()
        assert error <= TOLERANCES[row], (
            f"off by {error:.1e} standard deviations, allowed {TOLERANCES[row]} ({row})"
        )

    return check
