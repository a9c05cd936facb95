"""Fixtures for the runtime's tests: a tiny network and a checkpoint made of plain arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge.checkpoints.base import TensorInfo
from edge.config import ModelConfig
from edge.config.huggingface import config_from_hf
from edge.config.tensors import expected_tensors
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

if TYPE_CHECKING:
    from edge.executors.native.executor import NativeExecutor
    from edge.runtime import Model


JSON_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 10**12, 10**400, 0.5, -2.5, 1e300, math.nan, math.inf),
    *("", "x", "²", [], [0], [-1, "x"], ["x"], [[1]], [{}], {}, {"x": 1}, {"x": [None]}),
]


@pytest.fixture(scope="session")
def json_values() -> list[Any]:
    """Values of every JSON type, sensible and not: what a field of a damaged file may hold."""
    return JSON_VALUES


@dataclass
class ArrayCheckpoint:
    """A checkpoint in memory; `tensors` follows `weights`, so a test can change either."""

    config: ModelConfig
    weights: dict[str, Any]
    source: str = "arrays"
    tokenizer_files: dict[str, bytes] = field(default_factory=lambda: {"tokenizer.json": b"{}"})
    chat_template: str | None = "{{ messages[0].content }}"
    generation_config: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.8})

    @property
    def tensors(self) -> list[TensorInfo]:
        plain = QuantScheme("f16")
        return [
            TensorInfo(name, weight.shape, "F32", getattr(weight, "scheme", plain))
            for name, weight in self.weights.items()
        ]

    def read(self, name: str) -> Any:
        return self.weights[name]


@pytest.fixture
def tiny_config() -> ModelConfig:
    """A MiniCPM of two layers with odd sizes: 40 columns are no multiple of 32, 77 tokens none of 16."""
    return config_from_hf(
        {
            "model_type": "minicpm",
            "architectures": ["MiniCPMForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": [2, 3],
            "hidden_size": 40,
            "intermediate_size": 100,
            "max_position_embeddings": 512,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_hidden_layers": 2,
            "rms_norm_eps": 1e-5,
            "vocab_size": 77,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 16,
            "tie_word_embeddings": False,
        }
    )


@pytest.fixture
def array_checkpoint() -> Callable[..., ArrayCheckpoint]:
    """Makes a checkpoint of random float32 weights, or of weights quantized in `scheme`."""

    def make(config: ModelConfig, scheme: QuantScheme | None = None, seed: int = 0) -> ArrayCheckpoint:
        random = np.random.default_rng(seed)
        weights: dict[str, Any] = {}
        for name, shape in expected_tensors(config).items():
            values = random.standard_normal(shape, dtype=np.float32)
            weights[name] = values if scheme is None or len(shape) == 1 else quantize(values, scheme)
        return ArrayCheckpoint(config, weights)

    return make


@pytest.fixture
def tiny_executor(
    tiny_config: ModelConfig, array_checkpoint: Callable[..., ArrayCheckpoint], tmp_path: Path
) -> Iterator[NativeExecutor]:
    """The tiny network with random weights in exact arithmetic; context 48, at most 8 tokens per call."""
    from edge.executors.opening import open_executor
    from edge.executors.options import RunOptions
    from edge.formats.bundle.reader import Bundle
    from edge.hub.convert import convert

    convert(array_checkpoint(tiny_config), tmp_path / "tiny", quantize="f16")
    bundle = Bundle.open(tmp_path / "tiny")
    options = RunOptions(context=48, threads=1, activations="float32", kv_type="float32", max_batch=8)
    executor = open_executor(bundle, options)
    yield executor
    executor.close()


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Iterator[Model]:
    """SmolLM2-135M-Instruct on the native executor."""
    import edge

    with edge.load(smollm2_gguf, threads=2, prefix_memory=0) as model:
        yield model
