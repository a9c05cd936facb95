"""Random tiny bundles, native executors over them, and the one table of tolerances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edge.bundle.manifest import BundleTensor
from edge.bundle.reader import Bundle
from edge.bundle.writer import BundleWriter
from edge.config import ModelConfig
from edge.executors.native import NativeExecutor
from edge.packing import pack
from edge.quantize import quantize
from edge.scheme import QuantScheme
from edge.tensors import EMBEDDING, HEAD, expected_tensors
from model.decoder import Decoder
from model.executor import TorchExecutor
from model.loading import reference_from_bundle

Floats = npt.NDArray[np.float32]
F16 = QuantScheme("f16")

# Largest difference from the truth, in units of the truth's standard deviation, by activations and KV type.
# int8 activations round every input of every matrix to 1 part in 127 of its block's largest value. A tree's
# rows lie elsewhere in the cache than a path's: sums run in another order, and int8 rounds a few inputs the
# other way.
TOLERANCES = {
    "float32 float32": 5e-5,
    "float32 float16": 5e-3,
    "int8 float32": 0.2,
    "int8 float16": 0.2,
    "float32 int8": 0.15,
    "int8 int8": 0.25,
    "tree: float32 float32": 1e-5,
    "tree: float32 int8": 2e-3,
    "tree: int8 float16": 0.05,
    "tree: int8 int8": 0.1,
}

MUP = {"scale_emb": 12.0, "scale_depth": 0.8, "dim_model_base": 32.0}


@pytest.fixture(scope="session")
def minicpm(tiny_config: Callable[..., ModelConfig]) -> Callable[..., ModelConfig]:
    """`minicpm(field=value, ...)`: a tiny MiniCPM4 with all muP scales on and odd sizes."""

    def make(**changes: Any) -> ModelConfig:
        fields: dict[str, Any] = {
            "vocab_size": 203,
            "hidden_size": 144,
            "intermediate_size": 272,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 1024,
            **MUP,
        }
        return tiny_config(**{**fields, **changes})

    return make


def random_weights(
    name: str, shape: tuple[int, ...], config: ModelConfig, generator: np.random.Generator
) -> Floats:
    """Weights that keep activations near 1, attention selective and logits near 1."""
    if len(shape) == 1:
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    spread = 1 / math.sqrt(shape[1])
    if name == EMBEDDING:
        spread = 1 / config.embedding_scale if not config.tie_word_embeddings else spread / config.logit_scale
    if name == HEAD:
        spread /= config.logit_scale
    if ".q_proj." in name or ".k_proj." in name:
        spread *= 1.5
    return (generator.standard_normal(shape, dtype=np.float32) * spread).astype(np.float32)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """`make_bundle(config, scheme, head=scheme, seed=0, change=None)`: random weights in these schemes.

    head: the scheme of embedding and head. change: called with (name, floats), may alter a tensor's values
    before they are stored.
    """
    made: dict[Any, Bundle] = {}

    def make(
        config: ModelConfig,
        scheme: QuantScheme = F16,
        head: QuantScheme | None = None,
        seed: int = 0,
        change: Callable[[str, Floats], None] | None = None,
    ) -> Bundle:
        key = (config, scheme, head, seed, change)
        if key in made:
            return made[key]
        generator = np.random.default_rng(seed)
        schemes = {
            name: QuantScheme("f32")
            if len(shape) == 1
            else (head or scheme)
            if name in (EMBEDDING, HEAD)
            else scheme
            for name, shape in expected_tensors(config).items()
        }
        tensors = [
            BundleTensor(name, shape, schemes[name], "random", True)
            for name, shape in expected_tensors(config).items()
        ]
        folder = tmp_path_factory.mktemp("bundle") / "model"
        with BundleWriter(folder, config, "random weights", tensors) as writer:
            for tensor in tensors:
                weights = random_weights(tensor.name, tensor.shape, config, generator)
                if change is not None:
                    change(tensor.name, weights)
                stored = weights if tensor.scheme.is_float else quantize(weights, tensor.scheme)
                if len(tensor.shape) == 1:
                    stored = weights.reshape(1, -1)
                writer.write(tensor.name, pack(stored, tensor.scheme))
        made[key] = Bundle.open(folder)
        return made[key]

    return make


@pytest.fixture
def open_native() -> Iterator[Callable[..., NativeExecutor]]:
    """`open_native(bundle, **options)`: exact activations and float32 KV by default; closed at the end."""
    opened: list[NativeExecutor] = []

    def open_one(bundle: Bundle, **options: Any) -> NativeExecutor:
        defaults = {"activations": "float32", "kv_type": "float32", "threads": 2}
        opened.append(NativeExecutor(bundle, **{**defaults, **options}))
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


def random_tokens(config: ModelConfig, n: int, seed: int = 1) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, n, dtype=np.int32)


@pytest.fixture(scope="session")
def tokens_of() -> Callable[..., npt.NDArray[np.int32]]:
    """`tokens_of(config, n, seed=1)`: random token ids, int32 [n]."""
    return random_tokens


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
            result = executor.forward(cache, tokens[at : at + size], want_logits="all")
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
