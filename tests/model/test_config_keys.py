"""Every key of config.json that the reader knows: as transformers has it, refused, or without effect.

The tests go over the declarations (what the reader asks for, its tables, transformers' own fields), so that a
new key, which is in none of these lists, fails.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import RopeParameters
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edge.config import ModelConfig, RopeType
from edge.config.families import FIXED
from edge.config.huggingface import config_from_hf, config_to_hf
from edge.config.rope import rope_parameters
from edge.config.rope_entry import READ, WITHOUT_EFFECT, override_rope
from edge.errors import ConfigError
from edge.model.network.decoder import Decoder
from edge.model.network.rope import rope_frequencies
from edge.system.notices import EdgeWarning
from tests.configs import Recorded

pytestmark = pytest.mark.filterwarnings("ignore::edge.system.notices.EdgeWarning")
LENGTH = "original_max_position_embeddings"
BASE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-2,
    "max_position_embeddings": 64,
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENTRIES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {
        "factor": 4.0,
        LENGTH: 32,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 1.5,
        "mscale_all_dim": 0.7,
    },
    "longrope": {LENGTH: 32, "short_factor": [1.5] * 16, "long_factor": [2.5] * 16},
    "llama3": {"factor": 8.0, LENGTH: 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
OTHER_VALUES: dict[str, Any] = {
    "factor": 3.0,
    LENGTH: 20,
    "attention_factor": 1.7,
    "beta_fast": 2.0,
    "beta_slow": 0.25,
    "mscale": 0.9,
    "mscale_all_dim": 1.3,
    "truncate": False,
    "short_factor": [1 + 0.1 * i for i in range(16)],
    "long_factor": [2 + 0.3 * i for i in range(16)],
    "low_freq_factor": 0.5,
    "high_freq_factor": 6.0,
    "rope_theta": 7000.0,
    **dict.fromkeys(WITHOUT_EFFECT, True),
}
CONTEXTS = (16, 28, 96)  # within every original length, beyond the changed one, beyond all


def theirs(data: dict[str, Any], context: int) -> tuple[torch.Tensor, float]:
    """transformers' inverse frequencies at the end of `context` tokens, and its factor on cos and sin."""
    rotary = LlamaRotaryEmbedding(LlamaConfig.from_dict(data))
    rotary(torch.zeros(1), torch.arange(context)[None])
    return rotary.inv_freq, rotary.attention_scaling


def ours(data: dict[str, Any], context: int) -> tuple[np.ndarray, float]:
    """The runtime's; the reference's are checked against them."""
    config = config_from_hf(data)
    inverse, scale = rope_parameters(config.rope, config.head_dim, context, config.max_position_embeddings)
    reference, reference_scale = rope_frequencies(config, context)
    np.testing.assert_allclose(reference.numpy(), inverse, rtol=3e-7)
    assert math.isclose(scale, reference_scale, rel_tol=1e-6)
    return inverse, scale


def check_rope(data: dict[str, Any]) -> list[float]:
    """Ours equal transformers' at every context; returns all numbers, to tell whether something changed."""
    numbers: list[float] = []
    for context in CONTEXTS:
        (inverse, scale), (wanted, wanted_scale) = ours(data, context), theirs(data, context)
        np.testing.assert_allclose(inverse, wanted.numpy(), rtol=5e-7)
        assert math.isclose(scale, wanted_scale, rel_tol=1e-6)
        numbers += [*inverse.tolist(), scale]
    return numbers


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", READ)
def test_every_key_of_every_rope_type(kind: str, place: str) -> None:
    entry = {"rope_type": kind, **ENTRIES[kind]}
    before = check_rope({**BASE, place: entry})
    for name, value in OTHER_VALUES.items():
        assert entry.get(name) != value
        changed = check_rope({**BASE, place: {**entry, name: value}}) != before
        assert changed == (name in READ[kind] or name == "rope_theta"), name
    top = check_rope({**BASE, place: entry, LENGTH: OTHER_VALUES[LENGTH]}) != before
    assert top == (LENGTH in READ[kind])


def test_no_rope_key_is_forgotten() -> None:
    keys = frozenset().union(*READ.values())
    assert set(READ) == set(ENTRIES) == set(get_args(RopeType))
    assert set(OTHER_VALUES) == {*keys, "rope_theta", *WITHOUT_EFFECT}
    refused = {"partial_rotary_factor", "mrope_section"}
    assert set(RopeParameters.__annotations__) == {*keys, "rope_type", "rope_theta", *refused}
    for name in (*refused, "alpha"):
        with pytest.raises(ConfigError, match=f"'{name}'"):
            config_from_hf({**BASE, "rope_scaling": {"rope_type": "linear", "factor": 2.0, name: [4, 4]}})


@pytest.mark.parametrize(
    ("head_dim", "theta", "entry"),
    [
        (64, 1e4, {"factor": 4.0, LENGTH: 65536}),  # the ramp ends beyond the last pair
        (64, 1e4, {"factor": 4.0, LENGTH: 64}),  # begins before the first
        (128, 1e6, {"factor": 8.0, LENGTH: 4096}),
        (32, 1e4, {"factor": 2.0, LENGTH: 2048, "beta_fast": 1.0, "truncate": False}),  # begins where it ends
        (32, 1e4, {"factor": 2.0, LENGTH: 2048, "beta_fast": 1.0, "beta_slow": 32.0}),  # ends where it begins
        (32, 1e4, {"factor": None, LENGTH: 16}),
        (32, 1e4, {"factor": 1.0, LENGTH: 64, "mscale": 2.0, "mscale_all_dim": 1.0}),
    ],
)
def test_the_ends_of_yarns_ramp(head_dim: int, theta: float, entry: dict[str, Any]) -> None:
    data = {**BASE, "head_dim": head_dim, "rope_theta": theta, "rope_scaling": {"rope_type": "yarn", **entry}}
    check_rope(data)


def test_a_known_ramp() -> None:
    """By hand: the pairs up to 20 turn at least 32 times over 65536 tokens; the ramp would end at pair 33."""
    entry = {"rope_type": "yarn", "factor": 4.0, LENGTH: 65536}
    inverse, scale = ours({**BASE, "head_dim": 64, "rope_theta": 1e4, "rope_scaling": entry}, 16)
    plain = 1e4 ** (-np.arange(32) / 32)
    kept = np.clip((33 - np.arange(32)) / 13, 0, 1)
    np.testing.assert_allclose(inverse, plain * kept + plain / 4 * (1 - kept), rtol=1e-6)
    assert math.isclose(scale, 0.1 * math.log(4) + 1, rel_tol=1e-6)


# What becomes of the keys at the top level -----------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "vocab_size": 70,
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "rms_norm_eps": 0.3,
    "rope_theta": 50.0,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, LENGTH: 16, "rope_theta": 1000.0},
    "tie_word_embeddings": True,
}
"""Keys that change the logits, and a value."""
IDLE: dict[str, Any] = {
    "max_position_embeddings": 128,
    LENGTH: 32,
    "bos_token_id": 3,
    "eos_token_id": [4, 5],
    "pad_token_id": 6,
    "use_sliding_window": False,
    "no_rope_layers": [1, 1],
    "initializer_range": 0.5,
    "use_cache": False,
    "pretraining_tp": 2,
    "attention_dropout": 0.5,
    "torch_dtype": "bfloat16",
    "dtype": "float16",
    "transformers_version": "4.0",
    "output_hidden_states": True,
    "return_dict": True,
    "chunk_size_feed_forward": 4,
    "mup_denominator": 32,
    "auto_map": {"AutoModel": "other.Model"},
    "max_window_layers": 1,
}
"""Keys that change no logits: limits and lengths of other rope types, token ids, training, the type of the
weights (which stands in their files), the draft model's scale, and what programs write about themselves."""
TEXT_ONLY = {"is_encoder_decoder", "id2label", "label2id", "problem_type"}
"""Fields of every config of transformers that say nothing about a language model."""
ELSEWHERE = {
    "scale_emb": "MiniCPM's: test_decoder.py",
    "scale_depth": "MiniCPM's: test_decoder.py",
    "dim_model_base": "MiniCPM's: test_decoder.py",
    "sparse_config": "MiniCPM4's: test_sparse_attention.py",
    "num_experts": "refused where it would run; test_moe.py",
    "num_local_experts": "the same under Mixtral's name",
    "num_experts_per_tok": "test_moe.py",
    "no_rope_layer_interval": "refused here, SmolLM3's: tests/export/test_families.py",
    "model_type": "names the family",
    "architectures": "names the family",
}


def logits(data: dict[str, Any]) -> torch.Tensor:
    """Ours, which equal transformers' on the same random weights; equal shapes have equal ones."""
    torch.manual_seed(3)
    peer = LlamaForCausalLM(LlamaConfig.from_dict({**data, "attn_implementation": "eager"})).eval().float()
    for name, tensor in peer.named_parameters():
        low, high = (0.5, 1.5) if "norm" in name else (-0.2, 0.2)
        torch.nn.init.uniform_(tensor, low, high)
    config = config_from_hf(data)
    weights = {name: tensor for name, tensor in peer.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    tokens = torch.arange(40) * 7 % 61
    found = Decoder.from_tensors(config, weights, context=40)(tokens)
    with torch.no_grad():
        torch.testing.assert_close(
            found, peer(tokens[None], return_dict=True).logits[0], rtol=1e-4, atol=5e-5
        )
    return found


def test_every_key_of_a_config() -> None:
    before = logits(BASE)
    for name, value in CHANGES.items():
        data = {**BASE, name: value}
        if name == "rope_parameters":
            del data["rope_theta"]
        after = logits(data)
        assert after.shape != before.shape or (after - before).abs().max() > 0.01, name
    for name, value in IDLE.items():
        assert torch.equal(logits({**BASE, name: value}), before), name


def test_no_key_of_a_config_is_forgotten() -> None:
    data = Recorded(BASE)
    config_from_hf(data)
    data["num_experts"] = 4
    with pytest.raises(ConfigError, match="num_experts_per_tok"):
        config_from_hf(data)
    known = {*CHANGES, *IDLE, *FIXED, *ELSEWHERE}
    assert data.asked <= known
    assert {field.name for field in dataclasses.fields(LlamaConfig)} <= known | TEXT_ONLY


@pytest.mark.parametrize("name", FIXED)
def test_what_is_fixed_is_refused_by_name(name: str) -> None:
    plain = config_from_hf(BASE)
    for value in (None, *FIXED[name]):
        assert config_from_hf({**BASE, name: value}) == plain
    for value in ("other", 0.25, 4096, [4096], {"a": 1}, True not in FIXED[name]):
        with pytest.raises(ConfigError, match=f"'{name}'"):
            config_from_hf({**BASE, name: value})


def test_a_window_that_is_off_is_none() -> None:
    assert config_from_hf({**BASE, "sliding_window": 4096, "use_sliding_window": False}) == config_from_hf(
        BASE
    )
    with pytest.raises(ConfigError, match="'sliding_window'"):
        config_from_hf({**BASE, "sliding_window": 4096, "use_sliding_window": True})
    for layers in ([1, 0], [0, 0]):
        with pytest.raises(ConfigError, match="'no_rope_layers'"):
            config_from_hf({**BASE, "no_rope_layers": layers})


# Facts that stand twice ------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, LENGTH: 16}
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_parameters": PLAIN}, None),
        ({"rope_scaling": YARN, "rope_parameters": PLAIN}, None),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}, "rope_parameters": PLAIN}, None),
        ({"rope_scaling": YARN, "rope_parameters": {**YARN, "factor": 2.0}}, "'factor' of the second"),
        (
            {"rope_scaling": {"rope_type": "default"}, "rope_parameters": YARN},
            "'rope_scaling' and 'rope_param",
        ),
        ({"rope_scaling": {}, "rope_parameters": YARN}, None),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 4.0}}, "'type' says linear"),
        ({"rope_scaling": {**YARN, "rope_theta": 77.0}}, r"rope_theta twice: 77\.0 .* 1000\.0"),
        ({"rope_parameters": {**YARN, "rope_theta": 77.0}}, r"rope_theta twice: 77\.0 .* 1000\.0"),
        ({"rope_scaling": YARN, LENGTH: 32}, f"{LENGTH} twice: 32 .* 16"),
        (
            {"rope_parameters": {**ENTRIES["llama3"], "rope_type": "llama3"}, LENGTH: 20},
            f"{LENGTH} twice: 20",
        ),
        (
            {"rope_scaling": {**ENTRIES["longrope"], "rope_type": "longrope"}, LENGTH: 48},
            f"{LENGTH} twice: 48",
        ),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0, LENGTH: 16}}, None),
    ],
)
def test_transformers_rules_for_what_stands_twice(changes: dict[str, Any], told: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config_from_hf({**BASE, **changes})
    notices = [str(warning.message) for warning in caught if warning.category is EdgeWarning]
    if told is None:
        assert notices == []
    else:
        assert len(notices) == 1
        with pytest.warns(EdgeWarning, match=told):
            config_from_hf({**BASE, **changes})
    check_rope({**BASE, **changes})


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        (
            {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_scaling",
            "rope_parameters",
        ),
        (
            {"num_experts": 4, "num_local_experts": 8, "num_experts_per_tok": 2},
            "num_experts",
            "num_local_experts",
        ),
        ({"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32}, "scale_emb", "llama"),
        ({"model_type": "minicpm"}, "model_type", "architectures"),
    ],
)
def test_contradictions_are_refused_by_both_names(changes: dict[str, Any], first: str, second: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_hf({**BASE, **changes})
    assert first in str(caught.value) and second in str(caught.value)


def test_minicpm_without_its_scales_is_refused() -> None:
    minicpm = {**BASE, "model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"]}
    scales = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32}
    with pytest.raises(ConfigError, match="lacks 'scale_emb', 'scale_depth' and 'dim_model_base'"):
        config_from_hf(minicpm)
    for name in scales:
        with pytest.raises(ConfigError, match=f"lacks '{name}',"):
            config_from_hf({**minicpm, **scales, name: None})
    assert config_from_hf({**minicpm, **scales}).scale_depth == 1.4


def test_networks_are_written_as_what_they_are(tiny_config: Any) -> None:
    """Without scales as a Llama, with some as a MiniCPM that has all three."""
    plain: ModelConfig = tiny_config()
    data = config_to_hf(plain)
    assert plain.model_type == "minicpm" and data["model_type"] == "llama" and "scale_emb" not in data
    some = config_from_hf(config_to_hf(tiny_config(scale_depth=0.8)))
    assert (some.embedding_scale, some.scale_depth, some.logit_scale) == (1.0, 0.8, 1.0)
    assert some.model_type == "minicpm"


def test_a_stretched_dynamic_config_is_written_for_transformers() -> None:
    longer = override_rope(config_from_hf(BASE), {"rope_type": "dynamic", "factor": 4.0})
    assert longer.max_position_embeddings == 256
    inverse, _ = rope_parameters(longer.rope, longer.head_dim, 200, longer.max_position_embeddings)
    wanted, _ = theirs(config_to_hf(longer), 200)
    np.testing.assert_allclose(inverse, wanted.numpy(), rtol=5e-7)
    assert abs(inverse - theirs(BASE, 200)[0].numpy()).max() > 0.01
