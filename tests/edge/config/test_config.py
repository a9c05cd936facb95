"""ModelConfig: every source it is read from, every refusal, the manifest form and the RoPE override."""

from __future__ import annotations

import copy
import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.config.fields import refuse_two
from edge.config.gguf import config_from_gguf
from edge.config.huggingface import config_from_hf
from edge.config.presets import PRESETS, preset
from edge.config.rope import rope_parameters
from edge.config.rope_entry import override_rope
from edge.config.tensors import check_dense, check_tensors, expected_tensors
from edge.errors import CheckpointError, ConfigError, ContextError
from edge.system.notices import EdgeWarning
from tests.configs import LLAMA

MINICPM = {**LLAMA, "model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"]}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
GGUF: dict[str, Any] = {
    "general.architecture": "minicpm",
    "minicpm.block_count": 24,
    "minicpm.context_length": 32768,
    "minicpm.embedding_length": 1024,
    "minicpm.feed_forward_length": 4096,
    "minicpm.attention.head_count": 16,
    "minicpm.attention.head_count_kv": 2,
    "minicpm.attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
    "minicpm.rope.freq_base": 10000.0,
    "minicpm.rope.dimension_count": 64,
    "minicpm.embedding_scale": 12.0,
    "minicpm.residual_scale": float(np.float32(1.4 / 24**0.5)),
    "minicpm.logit_scale": 4.0,
    "minicpm.rope.scaling.type": "longrope",
    "tokenizer.ggml.tokens": ["x"] * 73448,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 73440,
}


def llama(**changes: Any) -> ModelConfig:
    return config_from_hf({**LLAMA, **changes})


def gguf(**changes: Any) -> ModelConfig:
    ones = [1.0] * 32
    return config_from_gguf(
        {**GGUF, **changes}, tie_word_embeddings=True, short_factor=ones, long_factor=ones
    )


def test_real_minicpm4_files(shared_data: Path) -> None:
    small = config_from_hf(json.loads((shared_data / "minicpm4-0.5b" / "config.json").read_text()))
    large = config_from_hf(json.loads((shared_data / "minicpm4-8b" / "config.json").read_text()))
    assert (small.hidden_size, small.num_hidden_layers, small.head_dim) == (1024, 24, 64)
    assert (large.hidden_size, large.num_hidden_layers, large.head_dim) == (4096, 32, 128)
    assert small.tie_word_embeddings and not large.tie_word_embeddings
    for config in (small, large):
        assert config.eos_token_ids == (2, 73440)
        assert config.rope.type == "longrope" and len(config.rope.short_factor) == config.head_dim // 2
        assert config.rope.short_factor[0] != 1.0
        assert (config.scale_emb, config.scale_depth, config.dim_model_base) == (12, 1.4, 256)
        assert config.sparse is None and config.num_experts == 0
    assert small.embedding_scale == 12
    assert small.residual_scale == pytest.approx(1.4 / 24**0.5)
    assert (small.logit_scale, large.logit_scale) == (0.25, 0.0625)
    assert large.kv_bytes_per_token() == 2 * 32 * 2 * 128 * 2
    assert large.kv_bytes_per_token("float32") == 2 * large.kv_bytes_per_token("float16")
    assert small.kv_bytes_per_token() == 12288
    assert small.kv_bytes_per_token("int8") == 24 * 2 * 2 * (64 + 4)  # a float32 scale per row
    assert small.kv_bytes_per_token("int4") == 24 * 2 * 2 * (32 + 4)
    # 433.8 M parameters: the shapes are all there.
    count = sum(int(np.prod(shape)) for shape in expected_tensors(small).values())
    assert count / 1e6 == pytest.approx(433.8, abs=0.1)


def test_plain_llama_has_no_scales() -> None:
    config = llama()
    assert (config.embedding_scale, config.residual_scale, config.logit_scale) == (1.0, 1.0, 1.0)
    assert config.head_dim == 64 and config.pad_token_id is None and config.eos_token_ids == (2,)
    assert config.rope == RopeConfig() and not config.tie_word_embeddings


@pytest.mark.parametrize("values", [(1, 2), (1, 1, 2), (None, 1, None, 2), (1, None, 1, 2)])
def test_one_of_many_names_that_says_otherwise_is_found(values: tuple[int | None, ...]) -> None:
    said = dict(zip("abcd", values, strict=False))
    with pytest.raises(ConfigError, match=r"here contradicts itself: '.' is 1, but '.' is 2"):
        refuse_two("here", said)
    refuse_two("here", {name: value and 1 for name, value in said.items()})


def test_a_padding_token_is_one_of_the_vocabulary() -> None:
    """Llama writes -1 for none, and fine-tunes the first id beyond the embedding."""
    size = LLAMA["vocab_size"]
    for given, wanted in ((0, 0), (size - 1, size - 1), (size, None), (-1, None)):
        assert llama(pad_token_id=given).pad_token_id == wanted


def test_defaults_that_old_files_rely_on() -> None:
    data = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    assert config_from_hf(data).num_key_value_heads == 4
    assert config_from_hf(
        {**MINICPM, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}
    ).tie_word_embeddings


def test_head_dim_may_differ_from_hidden_over_heads() -> None:
    config = llama(head_dim=128)
    assert config.head_dim == 128
    assert expected_tensors(config)["model.layers.0.self_attn.q_proj.weight"] == (512, 256)
    assert expected_tensors(config)["model.layers.1.self_attn.o_proj.weight"] == (256, 512)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((None, ()), (2, (2,)), ([2, 7], (2, 7)), ([7, 7, 2], (7, 2)), (0, (0,))),
        *((2.0, (2,)), ([2, None, -1], (2,)), (-1, ())),
    ],
)
def test_eos(value: Any, expected: tuple[int, ...]) -> None:
    assert llama(eos_token_id=value).eos_token_ids == expected


def test_special_tokens_that_the_network_lacks_are_left_out() -> None:
    assert llama(bos_token_id=-1).bos_token_id is None
    with pytest.warns(EdgeWarning, match="names the eos_token_id 1000, but has only 1000 tokens"):
        assert llama(eos_token_id=[2, 1000]).eos_token_ids == (2,)
    with pytest.warns(EdgeWarning, match="names the bos_token_id 5000"):
        assert llama(bos_token_id=5000).bos_token_id is None
    with pytest.warns(EdgeWarning, match="names the eos token 99999"):
        assert gguf(**{"tokenizer.ggml.eos_token_id": 99999}).eos_token_ids == (73440,)


@pytest.mark.parametrize(
    "entry",
    [
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}},
    ],
)
def test_rope_spellings(entry: dict[str, Any]) -> None:
    rope = llama(**entry).rope
    assert (rope.type, rope.factor) == ("linear", 4.0)
    assert rope.theta == (5000.0 if "rope_parameters" in entry else 10000.0)


def test_rope_original_length_at_the_top_and_by_default() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    assert llama(rope_scaling=yarn).rope.original_max_position_embeddings == 2048
    top = llama(rope_scaling=yarn, original_max_position_embeddings=512)
    assert top.rope.original_max_position_embeddings == 512
    ratio = llama(rope_scaling={"rope_type": "yarn", "original_max_position_embeddings": 512})
    assert ratio.rope.factor == 4.0


@pytest.mark.parametrize(
    "name",
    [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "rms_norm_eps",
        "vocab_size",
    ],
)
def test_missing_field_is_named(name: str) -> None:
    data = {key: value for key, value in LLAMA.items() if key != name}
    for broken in (data, {**data, name: None}):
        with pytest.raises(ConfigError, match=f"'{name}'"):
            config_from_hf(broken)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gemma3"}, "gemma3"),
        ({"model_type": "minicpm3"}, "minicpm3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mixer_types": ["minicpm4", "lightning"]}, "mixer_types"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "abf", "factor": 8.0}}, "abf"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1}}, "high_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 32}}, "long_factor"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}},
            "short_factor",
        ),
        ({"rope_scaling": ["linear"]}, "rope_scaling"),
        ({"architectures": 5}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"layer_types": 3}, "layer_types"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": "256"}, "hidden_size"),
        ({"hidden_size": 256.5}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": -256}, "hidden_size"),
        ({"hidden_size": 255}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 24}, "head_dim"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"bos_token_id": "1"}, "bos_token_id"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"scale_emb": 12}, "scale_depth"),
        ({"scale_emb": 12, "scale_depth": 1.4}, "dim_model_base"),
        ({"sparse_config": {"kernel_sise": 32}}, "kernel_sise"),
        ({"sparse_config": 64}, "sparse_config"),
        ({"num_experts": 8}, "num_experts_per_tok"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok"),
    ],
)
def test_refusals_name_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        llama(**changes)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message


def test_the_context_has_a_limit() -> None:
    llama().check_context(2048)
    with pytest.raises(ContextError, match="2049 tokens is beyond the 2048"):
        llama().check_context(2049)


def test_sparse_config() -> None:
    assert llama(sparse_config={}).sparse == SparseConfig()
    sparse = llama(sparse_config={"topk": 32, "use_nope": True, "dense_len": -1}).sparse
    assert sparse == SparseConfig(topk=32, use_nope=True, dense_len=-1)


def test_experts_are_read_and_refused_where_they_would_run() -> None:
    config = llama(num_experts=8, num_experts_per_tok=2)
    assert (config.num_experts, config.num_experts_per_tok) == (8, 2)
    shapes = expected_tensors(config)
    assert shapes["model.layers.1.mlp.gate.weight"] == (8, 256)
    assert shapes["model.layers.1.mlp.experts.7.w2.weight"] == (256, 512)
    assert not any("down_proj" in name for name in shapes)
    with pytest.raises(ConfigError, match="num_experts"):
        check_dense(config)
    check_dense(llama())


def test_gguf_inverts_the_scales() -> None:
    config = gguf()
    assert (config.scale_emb, config.scale_depth, config.dim_model_base) == (12.0, 1.4, 256.0)
    assert (config.embedding_scale, config.logit_scale) == (12.0, 0.25)
    assert config.residual_scale == pytest.approx(GGUF["minicpm.residual_scale"], rel=1e-6)
    assert config.rms_norm_eps == 1e-6
    assert config.eos_token_ids == (2, 73440) and config.vocab_size == 73448
    assert config.rope.type == "longrope" and config.rope.original_max_position_embeddings == 32768
    assert config.tie_word_embeddings and config.head_dim == 64


def test_gguf_equals_hugging_face(shared_data: Path) -> None:
    original = config_from_hf(json.loads((shared_data / "minicpm4-0.5b" / "config.json").read_text()))
    converted = config_from_gguf(
        GGUF,
        tie_word_embeddings=True,
        short_factor=original.rope.short_factor,
        long_factor=original.rope.long_factor,
    )
    assert replace(converted, pad_token_id=original.pad_token_id) == original


def test_gguf_llama() -> None:
    data = {
        name.replace("minicpm.", "llama."): value
        for name, value in GGUF.items()
        if "_scale" not in name and "scaling" not in name
    }
    data["general.architecture"] = "llama"
    config = config_from_gguf(data)
    assert config.scale_emb is None and config.rope == RopeConfig() and not config.tie_word_embeddings
    linear = config_from_gguf({**data, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0})
    assert (linear.rope.type, linear.rope.factor) == ("linear", 2.0)
    yarn = config_from_gguf(
        {
            **data,
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 8192,
        }
    )
    assert (yarn.rope.type, yarn.rope.factor) == ("yarn", 4.0)
    assert yarn.rope.original_max_position_embeddings == 8192


def test_gguf_rope_factors_without_a_type() -> None:
    """`rope_freqs` of Llama 3: plain divisors of the frequencies."""
    data = {name: value for name, value in GGUF.items() if "scaling" not in name}
    divisors = tuple(float(value) for value in np.linspace(1, 8, 32, dtype=np.float32))
    config = config_from_gguf(data, short_factor=divisors, long_factor=divisors)
    frequencies, scale = rope_parameters(config.rope, 64, 1024, config.max_position_embeddings)
    plain, _ = rope_parameters(RopeConfig(), 64, 1024, 32768)
    np.testing.assert_allclose(frequencies, plain / np.asarray(divisors), rtol=3e-7)
    assert scale == 1.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general.architecture": "gemma3"}, "general.architecture"),
        ({"general.architecture": None}, "general.architecture"),
        ({"minicpm.block_count": None}, "minicpm.block_count"),
        ({"minicpm.attention.layer_norm_rms_epsilon": None}, "minicpm.attention.layer_norm_rms_epsilon"),
        ({"minicpm.embedding_scale": None}, "minicpm.embedding_scale"),
        ({"minicpm.residual_scale": None}, "minicpm.residual_scale"),
        ({"minicpm.attention.head_count_kv": [2, 4]}, "attention.head_count_kv"),
        ({"minicpm.rope.dimension_count": 32}, "rope.dimension_count"),
        ({"tokenizer.ggml.tokens": None}, "vocab_size"),
    ],
)
def test_gguf_refusals_name_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        gguf(**changes)


def test_smollm2_gguf(smollm2_gguf: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(smollm2_gguf)
    config = config_from_gguf(
        {name: field.contents() for name, field in reader.fields.items()}, tie_word_embeddings=True
    )
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert config.rms_norm_eps == 1e-5 and config.rope.theta == 100000.0
    assert config.scale_emb is None and 2 in config.eos_token_ids


def test_json_round_trip() -> None:
    for config in (llama(), gguf(), llama(sparse_config={"topk": 7}), *PRESETS.values()):
        text = json.dumps(config.to_json())
        assert ModelConfig.from_json(json.loads(text)) == config


@pytest.mark.parametrize("part", [(), ("rope",), ("sparse",)])
def test_json_refuses_every_missing_or_unknown_field(part: tuple[str, ...]) -> None:
    data = llama(sparse_config={}).to_json()
    inner = data[part[0]] if part else data
    prefix = ".".join(("config", *part))
    for name in list(inner):
        broken = copy.deepcopy(data)
        del (broken[part[0]] if part else broken)[name]
        with pytest.raises(ConfigError, match=rf"'{prefix}\.{name}'"):
            ModelConfig.from_json(broken)
    inner["surprise"] = 1
    with pytest.raises(ConfigError, match=rf"'{prefix}\.surprise'"):
        ModelConfig.from_json(data)


def test_frozen_and_replaceable() -> None:
    config = llama()
    with pytest.raises(FrozenInstanceError):
        config.hidden_size = 3  # type: ignore[misc]
    assert replace(config, eos_token_ids=(5,)).eos_token_ids == (5,)
    assert hash(config) == hash(llama())
    assert all(field.name for field in fields(config))


def test_override_replaces_both_lists_and_keeps_the_scale(shared_data: Path) -> None:
    config = config_from_hf(json.loads((shared_data / "minicpm4-8b" / "config.json").read_text()))
    override = json.loads((shared_data / "minicpm4-8b" / "longrope_128k.json").read_text())
    longer = override_rope(config, {**override, "max_position_embeddings": 131072})
    assert longer.max_position_embeddings == 131072
    assert longer.rope.long_factor == longer.rope.short_factor == tuple(override["long_factor"])
    assert longer.rope.original_max_position_embeddings == 32768
    for context in (1000, 131072):
        assert rope_parameters(longer.rope, 128, context, 131072)[1] == 1.0
    assert replace(longer, rope=config.rope, max_position_embeddings=32768) == config


def test_override_by_type() -> None:
    longer = override_rope(llama(), {"rope_type": "yarn", "factor": 4})
    assert longer.rope.type == "yarn" and longer.rope.original_max_position_embeddings == 2048
    assert longer.max_position_embeddings == 8192
    dynamic = override_rope(llama(), {"type": "dynamic", "factor": 2.0, "max_position_embeddings": 6000})
    assert dynamic.rope.original_max_position_embeddings == 2048 and dynamic.max_position_embeddings == 6000
    theta = override_rope(llama(), {"rope_theta": 5e5, "max_position_embeddings": 4096})
    assert theta.rope == RopeConfig(theta=5e5) and theta.max_position_embeddings == 4096
    twice = override_rope(longer, {"rope_type": "yarn", "factor": 8})
    assert twice.max_position_embeddings == 16384 and twice.rope.original_max_position_embeddings == 2048
    back = override_rope(longer, {"rope_type": "default", "max_position_embeddings": 2048})
    assert back == llama()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ({"rope_typ": "yarn"}, "rope_typ"),
        ({"rope_type": "magic"}, "magic"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "longrope", "long_factor": [1.0]}, "factor"),
        ({"rope_type": "longrope"}, "factor"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ],
)
def test_override_refusals(override: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        override_rope(llama(), override)


def test_presets() -> None:
    sizes = {}
    for name in PRESETS:
        config = preset(name)
        assert config.max_position_embeddings == 131072
        sizes[name] = sum(int(np.prod(shape)) for shape in expected_tensors(config).values()) / 1e9
    assert sizes["minicpm4-0.5b"] == pytest.approx(0.434, abs=0.001)
    assert sizes["minicpm4-8b"] == pytest.approx(8.19, abs=0.01)
    assert sizes["minicpm-1.2b"] == pytest.approx(1.36, abs=0.01)
    assert sizes["minicpm-moe-8x2b"] == pytest.approx(13.87, abs=0.01)
    assert sizes["smollm2-135m"] == pytest.approx(0.1345, abs=0.0001)
    assert sizes["minicpm-2.4b"] == pytest.approx(2.72, abs=0.01)
    with pytest.raises(ConfigError, match=r"minicpm4-0\.5b"):
        preset("minicpm4-0.5")


def test_check_tensors_names_the_tensor() -> None:
    config = llama(tie_word_embeddings=True)
    shapes = expected_tensors(config)
    check_tensors(config, shapes, "x")
    check_tensors(config, {**shapes, "a.rotary_emb.inv_freq": (32,)}, "x")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        check_tensors(config, {**shapes, "lm_head.weight": (1000, 256)}, "x")
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=name):
        check_tensors(config, {key: value for key, value in shapes.items() if key != name}, "x")
    with pytest.raises(CheckpointError, match=f"{name}.*511x256.*512x256"):
        check_tensors(config, {**shapes, name: (511, 256)}, "x")
    bias = "model.layers.1.self_attn.q_proj.bias"
    with pytest.raises(CheckpointError, match=bias):
        check_tensors(config, {**shapes, bias: (256,)}, "x")
