"""Tiny networks with a real tokenizer, as the sources of targets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.checkpoints.base import TensorInfo
from edge.config import ModelConfig, RopeConfig
from edge.config.tensors import EMBEDDING, HEAD, expected_tensors
from edge.export.source import Source
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantScheme

VOCABULARY = 300  # 259 tokens of the tokenizer, and ids that stand for nothing
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
LONGROPE = RopeConfig(
    type="longrope",
    original_max_position_embeddings=64,
    short_factor=tuple(1 + i / 64 for i in range(32)),
    long_factor=tuple(1 + i / 8 for i in range(32)),
)
PARTIAL = replace(
    LONGROPE,
    rotary_dim=48,
    short_factor=LONGROPE.short_factor[:24],
    long_factor=LONGROPE.long_factor[:24],
)
"""The same for three quarters of the rows of a head of 64."""


@dataclass
class ArrayCheckpoint:
    """A checkpoint in memory. weights: floats, or matrices that are quantized already."""

    config: ModelConfig
    weights: dict[str, Any]
    tokenizer_files: dict[str, bytes]
    source: str = "/somewhere/tiny"
    chat_template: str | None = TEMPLATE
    generation_config: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.5, "top_k": 20})

    @property
    def tensors(self) -> list[TensorInfo]:
        plain = QuantScheme("f16")
        return [
            TensorInfo(name, weight.shape, "F32", getattr(weight, "scheme", plain))
            for name, weight in self.weights.items()
        ]

    def read(self, name: str) -> Any:
        return self.weights[name]


def minicpm_config(**changes: Any) -> ModelConfig:
    """Two layers whose rows are multiples of 256, MiniCPM's scales and LongRoPE; context 256."""
    fields: dict[str, Any] = {
        "model_type": "minicpm",
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "rope": LONGROPE,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_ids": (2, 258),
        "scale_emb": 12.0,
        "scale_depth": 1.4,
        "dim_model_base": 64.0,
    }
    return ModelConfig(**{**fields, **changes})


def llama_config(**changes: Any) -> ModelConfig:
    """A plain Llama with tied embeddings and the same sizes."""
    plain = {"scale_emb": None, "scale_depth": None, "dim_model_base": None}
    return minicpm_config(
        **{"model_type": "llama", "rope": RopeConfig(), "tie_word_embeddings": True, **plain, **changes}
    )


def byte_tokenizer_files() -> dict[str, bytes]:
    """A byte-level BPE with one token per byte, control tokens and a few merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("e", "r")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    return {
        "tokenizer.json": str(tokenizer.to_str()).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }


def make_checkpoint(
    config: ModelConfig,
    scheme: QuantScheme | None = None,
    *,
    head: QuantScheme | None = None,
    change: Callable[[dict[str, Any]], None] = lambda weights: None,
    tokenizer_files: dict[str, bytes] | None = None,
) -> ArrayCheckpoint:
    """A checkpoint of random weights in memory.

    scheme: of the layers' matrices; head: of embedding and head, by default the same. change: called with the
    dict of weights.
    """
    random = np.random.default_rng(0)
    scheme = scheme or QuantScheme("int4", 32)
    weights: dict[str, Any] = {}
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1:
            weights[name] = 1 + random.standard_normal(shape, dtype=np.float32) / 8
            continue
        values = random.standard_normal(shape, dtype=np.float32) / shape[1] ** 0.5
        kind = (head or scheme) if name in (EMBEDDING, HEAD) else scheme
        weights[name] = values if kind.is_float else quantize(values, kind)
    change(weights)
    files = byte_tokenizer_files() if tokenizer_files is None else tokenizer_files
    return ArrayCheckpoint(config, weights, files)


def make_source(
    folder: Path, config: ModelConfig, scheme: QuantScheme | None = None, **options: Any
) -> Source:
    """The bundle of `make_checkpoint` with the same arguments, written into a new folder below `folder`."""
    bundle = folder / f"bundle-{len(list(folder.iterdir()))}"
    convert(make_checkpoint(config, scheme, **options), bundle)
    return Source(Bundle.open(bundle))
