"""Every key of GGUF's metadata that llama.cpp has: read with an effect, refused, or listed as without one."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

from edge.config import ModelConfig
from edge.config.gguf import config_from_gguf
from edge.config.gguf_keys import FIXED, READ, WITHOUT_EFFECT
from edge.config.rope import rope_parameters
from edge.errors import ConfigError
from edge.system.notices import EdgeWarning
from tests.configs import Recorded

KEYS: dict[str, Any] = {
    "vocab_size": 100,
    "context_length": 4096,
    "embedding_length": 256,
    "block_count": 2,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "embedding_scale": 12.0,
    "residual_scale": 0.5,
    "logit_scale": 4.0,
    "rope.freq_base": 1e4,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 1024,
}
OTHERS: dict[str, Any] = {
    "vocab_size": 101,
    "context_length": 8192,
    "embedding_length": 512,
    "block_count": 3,
    "feed_forward_length": [640, 640],
    "attention.head_count": 8,
    "attention.head_count_kv": [4, 4],
    "attention.key_length": 128,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "embedding_scale": 1.0,
    "residual_scale": 0.25,
    "logit_scale": 2.0,
    "rope.freq_base": 5e5,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 512,
    "rope.scaling.attn_factor": 0.5,
    "rope.scaling.yarn_beta_fast": 16.0,
    "rope.scaling.yarn_beta_slow": 2.0,
}
MUST_FIT = {
    "attention.value_length": 32,
    "rope.dimension_count": 32,
    "rope.scaling.yarn_ext_factor": 0.0,
    "rope.scale_linear": 2.0,
    "expert_count": 8,
    "expert_used_count": 2,
    "attention.sliding_window": 4096,
}
"""Keys with tests of their own below."""
OTHER_ARCHITECTURES = {
    "features_length",
    "decoder_start_token_id",
    "decoder_block_count",
    "expert_chunk_feed_forward_length",
    "expert_group_scale",
    "experts_per_group",
    "moe_latent_size",
    "n_deepstack_layers",
    "time_mix_extra_dim",
    "time_decay_extra_dim",
    "token_shift_count",
    "altup.active_idx",
    "altup.num_inputs",
    "embedding_length_per_layer_input",
    "{dense}_feat_in",
    "{dense}_feat_out",
    "attention.decay_lora_rank",
    "attention.iclr_lora_rank",
    "attention.value_residual_mix_lora_rank",
    "attention.gate_lora_rank",
    "attention.relative_buckets_count",
}
"""Of encoders, recurrences and others that come with tensors of their own; here they are only said."""


def metadata(changes: dict[str, Any] | None = None, arch: str = "minicpm", **general: Any) -> dict[str, Any]:
    keys = {**KEYS, **(changes or {})}
    data = {f"{arch}.{name}": value for name, value in keys.items() if value is not None}
    return {"general.architecture": arch, **general, **data}


def read(changes: dict[str, Any] | None = None, **options: Any) -> ModelConfig:
    return config_from_gguf(metadata(changes), **options)


def test_no_key_is_forgotten() -> None:
    from gguf.constants import Keys

    data = Recorded(metadata({"expert_count": 8, "expert_used_count": 2}))
    config_from_gguf(data)
    asked = {key.removeprefix("minicpm.") for key in data.asked if key.startswith("minicpm.")}
    assert asked == {*READ, *FIXED}
    assert {*OTHERS, *MUST_FIT} == set(READ)
    assert not {*READ, *FIXED} & {*WITHOUT_EFFECT} and not {*READ} & {*FIXED}
    known = {*READ, *FIXED, *WITHOUT_EFFECT, *OTHER_ARCHITECTURES}
    for group in (Keys.LLM, Keys.Attention, Keys.Rope, Keys.Classifier):
        names = [value for name, value in inspect.getmembers(group) if name.isupper()]
        assert {name.removeprefix("{arch}.") for name in names} <= known


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_read_makes_the_network(name: str) -> None:
    assert read({name: OTHERS[name]}) != read()


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_has_no_effect(name: str) -> None:
    assert read({name: 7}) == read()


@pytest.mark.parametrize("name", FIXED)
def test_what_is_fixed_is_refused_by_name(name: str) -> None:
    for value in FIXED[name]:
        assert read({name: value}) == read()
    for value in ("x", 0.125, 3, [3, 3]):
        with pytest.raises(ConfigError, match=rf"'minicpm\.{name}'"):
            read({name: value})


def test_what_nobody_knows_is_said() -> None:
    with pytest.warns(EdgeWarning, match=r"ignored: minicpm\.attention\.magic and minicpm\.zeal"):
        assert read({"zeal": 1, "attention.magic": 2.0}) == read()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention.value_length": 32}, r"minicpm\.attention\.value_length"),
        ({"rope.dimension_count": 32}, r"minicpm\.rope\.dimension_count"),
        ({"attention.sliding_window": 4096}, r"minicpm\.attention\.sliding_window"),
        ({"rope.scaling.yarn_ext_factor": 0.0}, r"yarn_ext_factor.*yarn"),
        ({"rope.scaling.type": "linear", "rope.scaling.yarn_ext_factor": 1.0}, "yarn_ext_factor.*linear"),
        ({"rope.scaling.type": "linear", "rope.scaling.attn_factor": 0.5}, "attn_factor.*linear"),
        ({"rope.scaling.type": "none", "rope.scaling.attn_factor": 0.5}, "attn_factor.*none"),
        ({"rope.scaling.type": "dynamic"}, r"rope\.scaling\.type' is 'dynamic'"),
        ({"rope.scaling.type": "llama3"}, "llama3"),
        ({"rope.scaling.type": 1}, r"rope\.scaling\.type' is 1"),
        ({"residual_scale": None}, r"lacks 'minicpm\.residual_scale'"),
        (
            dict.fromkeys(("embedding_scale", "residual_scale", "logit_scale")),
            r"lacks 'minicpm\.embedding_scale', 'minicpm\.residual_scale' and 'minicpm\.logit_scale'",
        ),
    ],
)
def test_what_must_fit(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read(changes)


def test_neutral_values_fit() -> None:
    fitting = {
        "attention.key_length": 64,
        "attention.value_length": 64,
        "rope.dimension_count": 64,
        "expert_count": 0,
        "rope.scale_linear": 4.0,
        "rope.scaling.attn_factor": 1.0,
    }
    for extrapolation in (1.0, -1.0):
        same = read({**fitting, "rope.scaling.yarn_ext_factor": extrapolation})
        assert rope_parameters(same.rope, 64, 64, 4096)[1] == pytest.approx(0.1 * math.log(4) + 1)
        assert same.head_dim == read().head_dim


def test_a_factor_under_two_names() -> None:
    """llama.cpp reads `rope.scale_linear` where there is no `rope.scaling.factor`."""
    with pytest.warns(
        EdgeWarning, match=r"4\.0 in 'minicpm\.rope\.scaling\.factor'.* 2\.0 in 'minicpm\.rope\.sc"
    ):
        assert read({"rope.scale_linear": 2.0}) == read()
    older = {"rope.scaling.type": None, "rope.scaling.factor": None, "rope.scale_linear": 2.0}
    assert (read(older).rope.type, read(older).rope.factor) == ("linear", 2.0)
    none = {"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}
    assert read(none).rope.factor == 1.0


def test_rotary_factors_beside_a_scaling_factor() -> None:
    """llama.cpp divides by both."""
    factors = {"short_factor": [2.0] * 32, "long_factor": [2.0] * 32}
    for kind in ("linear", "yarn", "longrope"):
        with pytest.raises(ConfigError, match=r"'minicpm\.rope\.scaling\.factor' is 4\.0 .* tensors"):
            read({"rope.scaling.type": kind}, **factors)
    for changes, wanted in (({}, 1.0), ({"rope.scaling.attn_factor": 1.25}, 1.25)):
        keys = {"rope.scaling.type": "longrope", "rope.scaling.factor": None, **changes}
        inverse, scale = rope_parameters(read(keys, **factors).rope, 64, 64, 4096)
        np.testing.assert_allclose(inverse, 1e4 ** (-np.arange(32) / 32) / 2, rtol=1e-6)
        assert scale == wanted  # llama.cpp takes it from the key alone


def test_a_llama_with_scales_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'llama\.embedding_scale'.*type llama have no muP scales"):
        config_from_gguf(metadata(arch="llama"))


def test_what_only_some_architectures_have() -> None:
    """Phi's file from llama.cpp's converter: 0 for no window, and three quarters of a head are rotated."""
    keys = {"embedding_scale": None, "residual_scale": None, "logit_scale": None, "rope.dimension_count": 48}
    for window, context in ((0, 4096), (2047, 2047), (262144, 4096)):
        config = config_from_gguf(metadata({**keys, "attention.sliding_window": window}, "phi3"))
        assert (config.model_type, config.rope.rotary_dim) == ("phi3", 48)
        assert (config.sliding_window or 0, config.longest_context) == (window, context)
    assert read({"attention.sliding_window": 0}) == read()
