"""A small network with a tokenizer, texts to calibrate with, and exported folders of tiny networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.artifact import Artifact
from edge.bundle.reader import Bundle
from edge.checkpoints.synthetic import RandomCheckpoint
from edge.config import ModelConfig, RopeConfig
from edge.executors.base import Executor
from edge.scheme import QuantScheme
from export.artifact import export_model
from export.options import ExportOptions
from export.source import Source
from model.executor import TorchExecutor
from model.loading import reference_from_bundle


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
        truth = reference.forward(reference.new_cache(), tokens, want_logits="all").logits
        cache, rows, at = executor.new_cache(), [], 0
        while at < len(tokens):
            size = chunks[len(rows) % len(chunks)]
            rows.append(executor.forward(cache, tokens[at : at + size], want_logits="all").logits)
            at += size
        found = np.concatenate(rows)
        assert found.shape == truth.shape
        return float(np.abs(found - truth).max() / truth.std())

    return measure
