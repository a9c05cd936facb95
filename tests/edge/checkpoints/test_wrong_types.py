"""Fields of foreign files with values of every JSON type: they are read, or refused with one sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import ModelConfig
from edge.config.gguf import config_from_gguf
from edge.config.huggingface import config_from_hf
from edge.config.rope import rope_parameters
from edge.config.tensors import expected_tensors
from edge.errors import ConfigError, EdgeError, TokenizerError
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import convert
from edge.text.tokenizer import load_tokenizer, tokenizer_files_from_gguf
from tests.configs import LLAMA

pytestmark = pytest.mark.filterwarnings("ignore::edge.system.notices.EdgeWarning")
HUGGING_FACE: dict[str, Any] = {
    **LLAMA,
    "model_type": "minicpm",
    "architectures": ["MiniCPMForCausalLM"],
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
    "sparse_config": {"kernel_size": 32, "use_nope": False},
    **dict.fromkeys(("head_dim", "layer_types", "num_experts", "num_local_experts", "num_experts_per_tok")),
    **dict.fromkeys(("original_max_position_embeddings", "tie_word_embeddings", "rope_theta")),
    **dict.fromkeys(("rope_parameters", "sliding_window", "mixer_types")),
}
ROPE: dict[str, Any] = {
    "original_max_position_embeddings": 1024,
    "short_factor": [1.0] * 32,
    "long_factor": [2.0] * 32,
    **dict.fromkeys(("type", "attention_factor", "beta_fast", "beta_slow", "mscale")),
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    **dict.fromkeys(("mscale_all_dim", "truncate", "rope_theta", "partial_rotary_factor")),
}
GGUF: dict[str, Any] = {
    "general.architecture": "minicpm",
    "minicpm.block_count": 24,
    "minicpm.context_length": 32768,
    "minicpm.embedding_length": 1024,
    "minicpm.feed_forward_length": 4096,
    "minicpm.attention.head_count": 16,
    "minicpm.attention.head_count_kv": 2,
    "minicpm.attention.layer_norm_rms_epsilon": 1e-6,
    "minicpm.rope.freq_base": 10000.0,
    "minicpm.rope.dimension_count": 64,
    "minicpm.embedding_scale": 12.0,
    "minicpm.residual_scale": float(np.float32(1.4 / 24**0.5)),
    "minicpm.logit_scale": 4.0,
    "minicpm.rope.scaling.factor": 2.0,
    "minicpm.rope.scaling.attn_factor": 1.5,
    "minicpm.rope.scaling.original_context_length": 8192,
    "tokenizer.ggml.tokens": ["x"] * 100,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    **dict.fromkeys(("minicpm.expert_count", "minicpm.attention.key_length", "minicpm.vocab_size")),
    **dict.fromkeys(("minicpm.rope.scaling.yarn_beta_fast", "minicpm.rope.scale_linear")),
}


def changed(good: dict[str, Any], values: list[Any]) -> Iterator[dict[str, Any]]:
    """`good` with each of its fields, nested ones included, changed to each of the values."""
    for name, old in good.items():
        yield from ({**good, name: value} for value in values)
        if isinstance(old, dict):
            yield from ({**good, name: inner} for inner in changed(old, values))


def outcomes(read: Callable[[Any], object], inputs: Iterator[Any], error: type[EdgeError]) -> tuple[int, int]:
    """How many inputs were read and how many refused; anything but a sentence fails."""
    done = refused = 0
    for given in inputs:
        try:
            read(given)
            done += 1
        except error as reason:
            refused += 1
            assert str(reason).endswith(".") and "\n" not in str(reason)
    return done, refused


def test_config_json(json_values: list[Any]) -> None:
    def read(data: dict[str, Any]) -> None:
        config = config_from_hf(data)
        if config.head_dim < 10**6:  # that the weights have another shape is found before
            rope_parameters(config.rope, config.head_dim, 512, config.max_position_embeddings)
        expected_tensors(config)

    for kind in ("longrope", "yarn", "linear", "dynamic", "llama3", "default"):
        factor = None if kind == "longrope" else 2.0
        good = {**HUGGING_FACE, "rope_scaling": {**ROPE, "rope_type": kind, "factor": factor}}
        read(good)
        done, refused = outcomes(read, changed(good, json_values), ConfigError)
        assert done > 100 and refused > 400


def test_gguf_metadata(json_values: list[Any]) -> None:
    for kind in ("yarn", "linear", "none"):
        good = {**GGUF, "minicpm.rope.scaling.type": kind}
        if kind != "yarn":
            good["minicpm.rope.scaling.attn_factor"] = None
        config_from_gguf(good)
        done, refused = outcomes(config_from_gguf, changed(good, json_values), ConfigError)
        assert done > 40 and refused > 300


def test_gguf_tokenizers(json_values: list[Any]) -> None:
    common = {
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 3,
        **dict.fromkeys(("tokenizer.ggml.add_bos_token", "tokenizer.ggml.unknown_token_id")),
    }
    byte_level = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<end>"],
        "tokenizer.ggml.merges": ["a b"],
        **common,
    }
    pieces = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "a", "b", "<end>"],
        "tokenizer.ggml.scores": [0.0, -1.0, -2.0, 0.0],
        "tokenizer.ggml.add_space_prefix": None,
        "tokenizer.ggml.precompiled_charsmap": None,
        **common,
    }
    for good in (byte_level, pieces):
        tokenizer_files_from_gguf(good)
        done, refused = outcomes(tokenizer_files_from_gguf, changed(good, json_values), EdgeError)
        assert done > 20 and refused > 100


def test_files_beside_a_tokenizer(tiny_config: ModelConfig, json_values: list[Any]) -> None:
    main = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<end>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["a b"],
    }
    end = {"content": "<end>", "special": True, "lstrip": False}
    roles = {"bos_token": end, "eos_token": "<end>", "additional_special_tokens": ["<end>"]}
    beside: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {**roles, "add_bos_token": True, "added_tokens_decoder": {"3": end}},
        "special_tokens_map.json": roles,
        "added_tokens.json": {"<end>": 3},
    }
    files = tokenizer_files_from_gguf(main)
    for name, good in beside.items():

        def read(data: dict[str, Any], name: str = name) -> None:
            tokenizer = load_tokenizer({**files, name: json.dumps(data).encode()}, tiny_config)
            tokenizer.decode(tokenizer.encode("ab<end>", parse_special=True))

        read(good)
        assert sum(outcomes(read, changed(good, json_values), TokenizerError)) > 20


def test_manifest(
    tmp_path: Path, tiny_config: ModelConfig, array_checkpoint: Callable[..., Any], json_values: list[Any]
) -> None:
    """Under a checksum that is right, as a program that knows how to compute it would write."""
    convert(array_checkpoint(tiny_config), tmp_path / "b", quantize="int4")
    file = tmp_path / "b" / "manifest.json"
    good = json.loads(file.read_text())
    tensors = good["tensors"]
    kept = {name: tensors[name] for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight")}

    def read(data: dict[str, Any]) -> None:
        if isinstance(data["tensors"], dict) and data["tensors"] is not tensors:
            data = {**data, "tensors": {**tensors, **data["tensors"]}}
        body = {name: value for name, value in data.items() if name != "sha256"}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        file.write_text(json.dumps({**body, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
        Bundle.open(tmp_path / "b")

    read(good)
    done, refused = outcomes(read, changed({**good, "tensors": kept}, json_values), EdgeError)
    assert done > 50 and refused > 800
