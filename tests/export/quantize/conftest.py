"""A small network with a tokenizer, and texts to calibrate with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.checkpoints.synthetic import RandomCheckpoint
from edge.checkpoints.weights import read_float32
from edge.config import ModelConfig, RopeConfig
from edge.export.quantize import QuantizeOptions
from edge.quant.scheme import QuantScheme
from tests.export.tiny import ArrayCheckpoint

SMALL: dict[str, Any] = {"sequences": 6, "length": 64, "threads": 1}


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """Three layers with grouped queries, muP scales, and columns that are no multiple of the groups."""
    return ModelConfig(
        model_type="minicpm",
        vocab_size=320,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_position_embeddings=256,
        rope=RopeConfig(),
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(2,),
        scale_emb=12.0,
        scale_depth=1.4,
        dim_model_base=32,
    )


@pytest.fixture(scope="session")
def checkpoint(config: ModelConfig) -> RandomCheckpoint:
    """Random float16 weights of that shape, with a byte-level tokenizer."""
    return RandomCheckpoint(config, QuantScheme("f16"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of some 3,000 tokens."""
    path = tmp_path_factory.mktemp("calibration") / "text.txt"
    lines = (f"{number} sheep and {number * number % 97} dogs cross the river." for number in range(80))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def options(text: Path) -> Callable[..., QuantizeOptions]:
    """`options(quantize, field=value, ...)` over the small text."""
    return lambda quantize="int4-g32", **changes: QuantizeOptions(
        quantize, **{"calibration": text, **SMALL, **changes}
    )


@pytest.fixture
def oak_checkpoint(oak, config: ModelConfig) -> ArrayCheckpoint:
    """With biases that are not 0 and loud channels of v, so that scales are folded into both."""
    plain, random = RandomCheckpoint(oak(config), QuantScheme("f16")), np.random.default_rng(0)
    weights = {info.name: read_float32(plain, info.name) for info in plain.tensors}
    for name, values in weights.items():
        if name.endswith(".bias"):
            weights[name] = random.standard_normal(values.shape, np.float32)
        if ".v_proj." in name:
            weights[name][::5] *= 15
    return ArrayCheckpoint(plain.config, weights, plain.tokenizer_files)
