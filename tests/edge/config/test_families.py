"""The declarations of families and roles: consistent in themselves, with edge.h, and with older manifests."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.config import ModelConfig, RopeConfig
from edge.config.families import FAMILIES, Family, family_from_gguf, family_of, register_family, scaled_family
from edge.config.gguf import gguf_architecture
from edge.config.huggingface import config_from_hf, config_to_hf
from edge.config.presets import PRESETS, preset
from edge.config.roles import DECODER, MOE, QK_NORMS, QKV_BIASES
from edge.config.tensors import EMBEDDING, FINAL_NORM, HEAD, beyond_llama, network_tensors
from edge.errors import ConfigError, ContextError, EdgeError

HEADER = Path(__file__).resolve().parents[3] / "kernels" / "include" / "edge.h"
SMALL, MOE_NETWORK = preset("smollm2-135m"), preset("minicpm-moe-8x2b")


def test_native_numbers_are_those_of_the_header():
    """Read from edge.h; every role of the header is declared once, under the name that says the same."""
    text = HEADER.read_text(encoding="utf-8")
    body = text[text.rindex("typedef enum", 0, text.index("} edge_role;")) : text.index("} edge_role;")]
    numbers = {name: int(number) for name, number in re.findall(r"EDGE_(\w+) = (\d+)", body)}
    assert {
        role.name.removesuffix(".weight"): role.native for role in (*DECODER, *QKV_BIASES, *QK_NORMS)
    } == {
        "model.embed_tokens": numbers["EMBEDDING"],
        "lm_head": numbers["HEAD"],
        "model.norm": numbers["FINAL_NORM"],
        "input_layernorm": numbers["ATTENTION_NORM"],
        "self_attn.q_proj": numbers["Q"],
        "self_attn.k_proj": numbers["K"],
        "self_attn.v_proj": numbers["V"],
        "self_attn.o_proj": numbers["O"],
        "post_attention_layernorm": numbers["MLP_NORM"],
        "mlp.gate_proj": numbers["GATE"],
        "mlp.up_proj": numbers["UP"],
        "mlp.down_proj": numbers["DOWN"],
        "self_attn.q_proj.bias": numbers["Q_BIAS"],
        "self_attn.k_proj.bias": numbers["K_BIAS"],
        "self_attn.v_proj.bias": numbers["V_BIAS"],
        "self_attn.q_norm": numbers["Q_NORM"],
        "self_attn.k_norm": numbers["K_NORM"],
    }
    assert len(numbers) == len({*DECODER, *QKV_BIASES, *QK_NORMS})
    assert all(role.native is None for role in MOE)


def test_tensors_in_the_order_of_decoding():
    config = replace(SMALL, num_hidden_layers=2, tie_word_embeddings=False)
    tensors = network_tensors(config)
    names = list(tensors)
    assert names[0] == EMBEDDING and names[-2:] == [FINAL_NORM, HEAD] and len(names) == 3 + 2 * 9
    assert names[1:10] == [name.replace("layers.1.", "layers.0.") for name in names[10:19]]
    assert tensors["model.layers.1.self_attn.k_proj.weight"].gguf == "blk.1.attn_k.weight"
    assert {name for name, tensor in tensors.items() if tensor.hf != name} == set()
    assert HEAD not in network_tensors(SMALL)


def test_experts_stand_in_for_the_mlp():
    layer = [name for name in network_tensors(MOE_NETWORK) if name.startswith("model.layers.39.mlp.")]
    assert [name.removeprefix("model.layers.39.mlp.") for name in layer] == [
        "gate.weight",
        *(f"experts.{expert}.w{part}.weight" for expert in range(8) for part in (1, 3, 2)),
    ]
    assert beyond_llama(MOE_NETWORK) == ("a mixture of experts",)
    assert beyond_llama(SMALL) == beyond_llama(preset("minicpm4-8b")) == ()


def test_what_joins_the_residual_stream():
    for config, outputs in ((SMALL, {"o_proj", "down_proj"}), (MOE_NETWORK, {"o_proj", "w2"})):
        tensors = network_tensors(config)
        assert {
            name.split(".")[-2] for name, tensor in tensors.items() if tensor.role.joins_stream
        } == outputs


def test_muP_scales_decide_between_llama_and_minicpm():
    small = preset("minicpm4-0.5b")
    plain = replace(small, scale_emb=None, scale_depth=None, dim_model_base=None)
    scaled = replace(SMALL, scale_emb=2.0, scale_depth=1.0, dim_model_base=64.0)
    found = [gguf_architecture(config) for config in (small, plain, SMALL, scaled)]
    assert found == ["minicpm", "llama", "llama", "minicpm"]
    assert scaled_family(plain) is FAMILIES.get("llama") and family_of(plain) is FAMILIES.get("minicpm")


def test_the_first_family_of_a_gguf_architecture_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FAMILIES, "_found", dict(FAMILIES._found))
    register_family(Family("sapling", "SaplingForCausalLM", gguf="llama", gguf_pairs=True))
    assert family_from_gguf("llama").model_type == "llama"
    with pytest.raises(EdgeError, match="a model family 'llama' already"):
        register_family(Family("llama", "OtherForCausalLM"))


def test_unknown_family_is_named():
    with pytest.raises(
        ConfigError, match=r"family 'perceptron' is unknown here; known are minicpm, llama, .*phi3"
    ):
        network_tensors(replace(SMALL, model_type="perceptron"))


def test_manifests_of_older_programs_say_the_same():
    data = SMALL.to_json()
    assert "layers_without_rope" not in data
    assert ModelConfig.from_json(data) == ModelConfig.from_json({**data, "layers_without_rope": []}) == SMALL
    config = replace(SMALL, layers_without_rope=(3, 7))
    assert config.to_json()["layers_without_rope"] == [3, 7]
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("value", [[30], [-1], [3, 2], [1, 1], 5, None, "x", [[1]], [True], [0.0], {}])
def test_layers_without_rope_are_numbers_of_layers(value: Any):
    with pytest.raises(ConfigError, match="layers_without_rope must be"):
        ModelConfig.from_json({**SMALL.to_json(), "layers_without_rope": value})


def test_parts_of_newer_families_in_a_manifest():
    """Left out where they say nothing, so that older programs read it; refused where they fit no network."""
    data = SMALL.to_json()
    assert not {"sliding_window", "sliding_layers"} & data.keys() and "rotary_dim" not in data["rope"]
    newer = {"sliding_window": 64, "sliding_layers": [1, 3], "rope": {**data["rope"], "rotary_dim": 48}}
    config = ModelConfig.from_json({**data, **newer})
    assert (config.sliding_window, config.sliding_layers, config.rope.rotary_dim) == (64, (1, 3), 48)
    assert config.to_json() == {**data, **newer} and config.longest_context == 64
    with pytest.raises(ContextError, match="65 tokens is beyond the model's sliding_window of 64"):
        config.check_context(65)
    for changes, named in (
        ({"sliding_window": 0}, "sliding_window"),
        ({"sliding_window": None}, "sliding_window and sliding_layers"),
        ({"sliding_layers": [30]}, "sliding_layers"),
        ({"rope": {**data["rope"], "rotary_dim": 0}}, "rotary_dim"),
        ({"rope": {**data["rope"], "rotary_dim": 80}}, "rotary_dim .* is 80"),
        ({"rope": {**data["rope"], "rotary_dim": 33}}, "rotary_dim .* is 33"),
    ):
        with pytest.raises(ConfigError, match=named):
            ModelConfig.from_json({**data, **newer, **changes})


QWEN = {"num_key_value_heads": 8, "rope_theta": 1000000, "rms_norm_eps": 1e-6, "use_sliding_window": False}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Qwen3-0.6B": (
        {
            **{**QWEN, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024},
            **{"num_attention_heads": 16, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936},
            **{"num_hidden_layers": 28, "max_position_embeddings": 40960, "max_window_layers": 28},
            **{"sliding_window": None, "rope_scaling": None, "attention_bias": False, "hidden_act": "silu"},
            **{"tie_word_embeddings": True, "bos_token_id": 151643, "eos_token_id": 151645},
        },
        {"head_dim": 128, "longest_context": 40960, "tie_word_embeddings": True, "sliding_window": None},
    ),
    "Phi-4-mini": (
        {
            **{"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 3072},
            **{"num_attention_heads": 24, "num_key_value_heads": 8, "intermediate_size": 8192},
            **{"vocab_size": 200064, "num_hidden_layers": 32, "max_position_embeddings": 131072},
            **{
                "original_max_position_embeddings": 4096,
                "partial_rotary_factor": 0.75,
                "rope_theta": 10000.0,
            },
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
            **{"sliding_window": 262144, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
            **{"attention_bias": False, "mlp_bias": False, "lm_head_bias": False, "full_attn_mod": 1},
            **{"bos_token_id": 199999, "eos_token_id": [200020, 199999], "pad_token_id": 199999},
        },
        {"head_dim": 128, "longest_context": 131072, "eos_token_ids": (200020, 199999)},
    ),
    "MiniCPM5-2B": (
        {
            **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048},
            **{"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 130560},
            **{"intermediate_size": 6144, "num_hidden_layers": 42, "max_position_embeddings": 131072},
            "rope_parameters": {"rope_theta": 5000000, "rope_type": "default"},
            **{"rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        },
        {"rope": RopeConfig(theta=5e6), "bos_token_id": 0, "tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fields(name: str):
    data, wanted = PUBLISHED[name]
    config = config_from_hf(data)
    assert {field: getattr(config, field) for field in wanted} == wanted
    assert config.rope.rotary_dim == (96 if name == "Phi-4-mini" else None)
    assert config_from_hf(config_to_hf(config)) == config == ModelConfig.from_json(config.to_json())


def test_a_preset_can_be_added(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PRESETS, "_found", dict(PRESETS._found))
    PRESETS.register("sapling-1m", replace(SMALL, num_hidden_layers=1))
    assert preset("sapling-1m").num_hidden_layers == 1
