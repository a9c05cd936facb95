"""Frequencies and scales of every rope type against transformers' own functions."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from edge.config import RopeConfig
from edge.config.huggingface import config_from_hf
from edge.config.rope import rope_parameters
from edge.config.rope_entry import override_rope, write_rope
from edge.config.rope_regime import with_regime
from edge.errors import ConfigError

FACTORS = [1.0 + 0.37 * i for i in range(32)]

# name -> (rope_parameters entry, head_dim, max_position_embeddings)
CASES = {
    "default": ({"rope_type": "default"}, 64, 2048),
    "default-128": ({"rope_type": "default", "rope_theta": 100000.0}, 128, 8192),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 64, 8192),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, 64, 4096),
    "dynamic-128": ({"rope_type": "dynamic", "factor": 2.5, "rope_theta": 1000000.0}, 128, 65536),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 64, 16384),
    "yarn-mscale": (
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 4096,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "beta_fast": 24,
            "beta_slow": 2,
        },
        128,
        32768,
    ),
    "yarn-attention": (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
            "attention_factor": 0.9,
            "truncate": False,
        },
        64,
        8192,
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        128,
        131072,
    ),
    "longrope": (
        {
            "rope_type": "longrope",
            "short_factor": FACTORS,
            "long_factor": [2 * factor for factor in FACTORS],
            "original_max_position_embeddings": 4096,
        },
        64,
        16384,
    ),
    "longrope-attention": (
        {
            "rope_type": "longrope",
            "short_factor": FACTORS,
            "long_factor": [2 * factor for factor in FACTORS],
            "original_max_position_embeddings": 4096,
            "attention_factor": 1.3,
        },
        64,
        16384,
    ),
    "longrope-equal": (
        {
            "rope_type": "longrope",
            "short_factor": FACTORS,
            "long_factor": FACTORS,
            "original_max_position_embeddings": 4096,
        },
        64,
        4096,
    ),
}


def config_json(entry: dict, head_dim: int, max_positions: int) -> dict:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 256,
        "hidden_size": 4 * head_dim,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": max_positions,
        "rope_parameters": {"rope_theta": 10000.0, **entry},
    }


def reference(entry: dict, head_dim: int, max_positions: int, context: int) -> tuple[np.ndarray, float]:
    """What a transformers Llama of this config uses for a sequence of `context` tokens."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    data = config_json(entry, head_dim, max_positions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LlamaConfig(
            **{name: data[name] for name in data if name not in ("model_type", "architectures")}
        )
        if entry["rope_type"] == "default":
            frequencies, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            frequencies, scale = ROPE_INIT_FUNCTIONS[entry["rope_type"]](config, None, seq_len=context)
    return frequencies.numpy(), float(scale)


@pytest.mark.parametrize("context", [512, 4096, 4097, 20000, 131072])
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, context: int) -> None:
    entry, head_dim, max_positions = CASES[case]
    config = config_from_hf(config_json(entry, head_dim, max_positions))
    frequencies, scale = rope_parameters(config.rope, head_dim, context, max_positions)
    expected, expected_scale = reference(entry, head_dim, max_positions, context)
    assert frequencies.dtype == np.float32 and frequencies.shape == (head_dim // 2,)
    # torch's float32 pow may be off by a unit in the last place; two roundings follow it.
    np.testing.assert_allclose(frequencies, expected, rtol=3e-7, atol=0)
    assert scale == pytest.approx(expected_scale, rel=1e-12)


def test_longrope_list_follows_the_context() -> None:
    rope = RopeConfig("longrope", 10000.0, 1.0, 100, (1.0,) * 32, (2.0,) * 32)
    short, _ = rope_parameters(rope, 64, 100, 100)
    long, _ = rope_parameters(rope, 64, 101, 100)
    np.testing.assert_allclose(short, 2 * long, rtol=1e-7)


def test_a_fixed_regime_holds_at_every_length() -> None:
    rope = RopeConfig("longrope", 10000.0, 1.0, 100, (1.0,) * 32, (2.0,) * 32)
    for regime, context in (("short", 100), ("long", 101)):
        wanted, scale = rope_parameters(rope, 64, context, 200)
        fixed = replace(rope, regime=regime)
        for length in (1, 100, 101, 5000):
            found, its_scale = rope_parameters(fixed, 64, length, 200)
            np.testing.assert_array_equal(found, wanted)
            assert its_scale == scale
        # Formats that know no regime get the same list twice.
        factors = list(rope.short_factor if regime == "short" else rope.long_factor)
        entry = write_rope(fixed)
        assert entry is not None and entry["short_factor"] == entry["long_factor"] == factors
    for wrong in (RopeConfig(theta=1e6), rope):
        with pytest.raises(ConfigError, match=f"rope_type {wrong.type} has no regime 'middle'"):
            replace(wrong, regime="middle")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rope_type default has no regime 'long'"):
        RopeConfig(regime="long")


def test_an_override_keeps_the_regime_and_both_lists() -> None:
    entry, head_dim, length = CASES["longrope"]
    config = with_regime(config_from_hf(config_json(entry, head_dim, length)), "long")
    longer = override_rope(config, {"max_position_embeddings": 4 * length})
    assert longer.rope.regime == "long" and longer.rope.short_factor == config.rope.short_factor
    assert with_regime(longer, "short").rope.factor_lists == (config.rope.short_factor,) * 2
    assert override_rope(config, {"rope_type": "default"}).rope.regime is None


def test_longrope_scale_depends_on_the_config_and_not_on_the_context() -> None:
    rope = RopeConfig("longrope", 10000.0, 1.0, 4096, (1.0,) * 32, (2.0,) * 32)
    expected = math.sqrt(1 + math.log(4) / math.log(4096))
    for context in (512, 65536):
        assert rope_parameters(rope, 64, context, 16384)[1] == pytest.approx(expected)
        assert rope_parameters(rope, 64, context, 4096)[1] == 1.0
        assert rope_parameters(replace(rope, attention_factor=1.5), 64, context, 16384)[1] == 1.5


def test_dynamic_stretches_from_the_original_length_if_it_is_given() -> None:
    rope = RopeConfig("dynamic", 10000.0, 2.0, 4096)
    plain, _ = rope_parameters(RopeConfig(), 64, 4096, 4096)
    at_trained, _ = rope_parameters(rope, 64, 4096, 32768)
    beyond, _ = rope_parameters(rope, 64, 8192, 32768)
    np.testing.assert_array_equal(at_trained, plain)
    assert beyond[0] == plain[0] and (beyond[1:] < plain[1:]).all()
