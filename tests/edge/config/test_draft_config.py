"""The shape of a draft: its tensors, its JSON form, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edge.checkpoints.synthetic_draft import draft_shape
from edge.config import RopeConfig
from edge.config.draft import DraftConfig, DraftKind, draft_tensors, usual_taps
from edge.config.draft_huggingface import DraftParts, draft_from_hf
from edge.config.presets import preset
from edge.errors import ConfigError
from tests.drafts import draft_fields, llama_target, minicpm_target

HALF = tuple(float(i) for i in range(1, 17))
PARTS = DraftParts(input_norms=True, attention_norm=True, fc_bias=False)


@pytest.fixture
def config() -> DraftConfig:
    return draft_shape(minicpm_target(), num_hidden_layers=2, head_rows=50)


def test_tensors_in_the_order_of_use(config: DraftConfig) -> None:
    tensors = draft_tensors(config)
    layer = ("input_layernorm", *(f"self_attn.{name}_proj" for name in "qkvo"))
    layer += ("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    names = [f"layers.{index}.{name}.weight" for index in range(2) for name in layer]
    ends = ["input_norm1.weight", "input_norm2.weight", "fc.weight"], ["lm_head.weight"]
    assert list(tensors) == [*ends[0], *names, *ends[1]]
    shapes = {name: tensors[name].shape for name in ("fc.weight", "lm_head.weight", names[2])}
    assert shapes == {"fc.weight": (144, 288), "lm_head.weight": (50, 144), names[2]: (64, 144)}
    assert (tensors[names[1]].layer, tensors[names[1]].role) == (0, "self_attn.q_proj.weight")
    assert tensors[names[1]].native == 4 and tensors["fc.weight"].native is None  # edge_role of a decoder
    plain = replace(config, attention_norm=False, input_norms=False, fc_bias=True).with_head(None)
    assert {*tensors} - {*draft_tensors(plain)} == {
        *("input_norm1.weight", "input_norm2.weight", "layers.0.input_layernorm.weight", "lm_head.weight")
    }
    assert draft_tensors(plain)["fc.bias"].shape == (144,)


def test_json_and_back(config: DraftConfig) -> None:
    assert DraftConfig.from_json(config.to_json()) == config
    rope = RopeConfig("longrope", short_factor=HALF, long_factor=HALF, original_max_position_embeddings=64)
    for changed in (replace(config, rope=None, window=None, head_rows=None), replace(config, rope=rope)):
        assert DraftConfig.from_json(changed.to_json()) == changed


def test_other_kinds(config: DraftConfig) -> None:
    target = minicpm_target(num_hidden_layers=8)
    joined, chained = draft_shape(target, "eagle3", head_rows=50), draft_shape(target, "mtp")
    assert (joined.taps, joined.hidden_columns, joined.logit_scale) == ((1, 3, 4), 3 * 144, 1.0)
    assert (chained.taps, chained.hidden_columns) == ((7,), 144)
    for each in (joined, chained):
        each.check_target(target, "it")
        assert DraftConfig.from_json(each.to_json()) == each
    assert {"taps", "output_norm"}.isdisjoint(config.to_json())  # which older programs read
    tensors = draft_tensors(joined)
    assert tensors["fc.weight"].shape == (144, 3 * 144)
    assert {tensors[f"layers.0.self_attn.{name}_proj.weight"].shape[1] for name in "qkv"} == {2 * 144}
    assert tensors["layers.0.self_attn.o_proj.weight"].shape == (144, 128)
    assert [*tensors][-2:] == ["norm.weight", "lm_head.weight"] and tensors["norm.weight"].native == 2
    assert {*draft_tensors(chained)} - {*draft_tensors(config)} == {"norm.weight"}


def test_block_drafts() -> None:
    target = minicpm_target(num_hidden_layers=8)
    config = draft_shape(target, "dspark")
    assert (config.hidden_columns, config.fc_columns, config.guessed_rows) == (5 * 144, 5 * 144, 7)
    assert replace(config, anchor_tells=False).guessed_rows == 6
    assert (config.rows_seen, replace(config, window=3).rows_seen) == (1017, 1)
    assert replace(config, window=None).rows_seen is None
    config.check_target(target, "it")
    assert DraftConfig.from_json(config.to_json()) == config
    tensors = draft_tensors(config.with_head(50))
    assert tensors["markov_head.markov_w1.weight"].shape == (203, 256)
    assert tensors["markov_head.markov_w2.weight"].shape == (50, 256)
    assert tensors["confidence_head.proj.weight"].shape == (144 + 256,)
    assert tensors["layers.4.self_attn.k_norm.weight"].shape == (32,)
    flash = replace(config, anchor_tells=False, markov_rank=0, confidence=False, mask_token=0)
    assert DraftConfig.from_json(flash.to_json()) == flash
    assert not any("head" in name for name in draft_tensors(flash))


def test_the_shape_of_a_public_block_draft() -> None:
    """MiniCPM5-2B-DSpark has 323,776,001 parameters, and reads layers 1, 10, 20, 30 and 39 of 42."""
    target = minicpm_target(
        **{"vocab_size": 130560, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 42},
        **{"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128},
    )
    config = draft_shape(target, "dspark")
    assert config.taps == (1, 10, 20, 30, 39)
    assert sum(math.prod(tensor.shape) for tensor in draft_tensors(config).values()) == 323_776_001


@pytest.mark.parametrize("layers", range(1, 40))
def test_usual_taps_are_layers(layers: int) -> None:
    taps = usual_taps(layers)
    assert taps == tuple(sorted(set(taps))) and taps[0] >= 0 and taps[-1] < layers
    assert layers < 7 or taps == (1, layers // 2 - 1, layers - 4)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("eagle2", {"output_norm": True}, "output_norm of a draft of the kind 'eagle2' is False, not True"),
        ("eagle2", {"taps": (1,)}, r"taps of a draft of the kind 'eagle2' is \(\), not \(1,\)"),
        ("eagle3", {"taps": ()}, "are 1 to 16 different numbers of layers"),
        ("eagle3", {"taps": (1, -1)}, "are 1 to 16 different numbers of layers"),
        ("eagle3", {"taps": (1, 0, 1)}, "are 1 to 16 different numbers of layers"),
        ("eagle3", {"num_hidden_layers": 2}, "num_hidden_layers of a draft of the kind 'eagle3' is 1, not 2"),
        ("eagle3", {"head_rows": None}, "has a head of its own: give its head_rows"),
        ("mtp", {"taps": (0, 1)}, "are the number of one layer"),
        ("mtp", {"fc_bias": True}, "fc_bias of a draft of the kind 'mtp' is False"),
        ("mtp", {"block_size": 3}, "A draft of the kind 'mtp' has no block_size"),
        ("eagle2", {"confidence": True}, "A draft of the kind 'eagle2' has no confidence"),
        ("dspark", {"taps": ()}, "are 1 to 16 different numbers of layers"),
        ("dspark", {"input_norms": True}, "input_norms of a draft of the kind 'dspark' is False"),
        ("dspark", {"block_size": 0}, "block_size must be a positive whole number"),
        ("dspark", {"block_size": 1, "anchor_tells": False}, "block_size is 1, but a block has 2 to 64 rows"),
        ("dspark", {"mask_token": -1}, "mask_token of a draft must be a whole number up to 202, not -1"),
        ("dspark", {"markov_rank": 5000}, "markov_rank of a draft must be a whole number up to 4096"),
    ],
)
def test_kinds_that_cannot_be(kind: DraftKind, change: dict[str, Any], says: str) -> None:
    shape = draft_shape(minicpm_target(), kind)
    with pytest.raises(ConfigError, match=says):
        replace(shape, **change)


@pytest.mark.parametrize(("kind", "layers"), [("eagle3", 4), ("mtp", 7), ("mtp", 9)])
def test_taps_belong_to_a_depth(kind: DraftKind, layers: int) -> None:
    draft = draft_shape(minicpm_target(num_hidden_layers=8), kind)
    with pytest.raises(
        ConfigError, match=rf"reads the model after layer \d, but the last .* is {layers - 1};"
    ):
        draft.check_target(minicpm_target(num_hidden_layers=layers), "it")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "eagle9"}, "Unknown kind of draft 'eagle9'"),
        ({"num_hidden_layers": 17}, "at most 16"),
        ({"hidden_size": 0}, "hidden_size must be a positive whole number"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads"),
        ({"head_dim": 24}, "multiples of 16"),
        ({"window": 0}, "window must be a positive whole number"),
        ({"head_rows": 1000}, "head_rows is 1000, more than the 203 tokens"),
        ({"residual_scale": float("inf")}, "residual_scale must be a positive number"),
        (
            {
                "rope": RopeConfig(
                    "longrope", short_factor=HALF * 2, long_factor=HALF, original_max_position_embeddings=64
                )
            },
            "'short_factor' has 32 values",
        ),
    ],
)
def test_shapes_that_cannot_be(config: DraftConfig, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(config, **change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("window"), r"'draft\.window' is missing"),
        (lambda data: data.update(depths=[1, 2]), r"Unknown field 'draft\.depths'"),
        (lambda data: data.update(taps=1), r"'draft\.taps' must be a list of layers"),
        (lambda data: data.update(output_norm=1), r"'draft\.output_norm' must be true or false"),
        (lambda data: data.update(fc_bias=1), r"'draft\.fc_bias' must be true or false"),
        (lambda data: data["rope"].update(x=1), r"Unknown field 'draft\.rope\.x'"),
    ],
)
def test_json_of_others(config: DraftConfig, change: Callable[[Any], Any], says: str) -> None:
    data = config.to_json()
    change(data)
    with pytest.raises(ConfigError, match=says):
        DraftConfig.from_json(data)


def test_public_configs() -> None:
    target = minicpm_target()
    found = draft_from_hf(draft_fields(target), PARTS, target, "config.json")
    assert found == draft_shape(target)  # RoPE and scales of CPM.cu: the target's, with one layer more
    assert found.residual_scale == pytest.approx(0.8 / 3**0.5)
    assert found.window == 1024

    vllm = replace(PARTS, named_by_vllm=True)
    said = draft_fields(target, mup_denominator=32, rope_theta=1e4)
    named = draft_from_hf(said, vllm, target, "config.json")
    assert named.residual_scale == pytest.approx(0.8 / 32**0.5)
    assert named.rope == RopeConfig(theta=1e4)
    assert draft_from_hf(said, PARTS, target, "c").residual_scale == found.residual_scale

    llama = llama_target(hidden_size=128)
    data = draft_fields(llama, head_dim=None)
    eagle = draft_from_hf(
        {**data, "bias": True, "sliding_window": 4096},
        DraftParts(input_norms=False, attention_norm=False, fc_bias=True),
        llama,
        "config.json",
    )
    assert eagle == draft_shape(llama, rope=RopeConfig())  # EAGLE's own default, not the target's theta
    older = {"model_type": "eagle", "model": {**data, "rope_theta": 5e5}}
    assert draft_from_hf(older, replace(PARTS, fc_bias=True), llama, "c").rope == llama.rope


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "EAGLE-3 draft .field 'architectures'., but the wei"),
        ({"architectures": ["DeepSeekMTPModel"]}, "a multi-token draft of another program"),
        ({"num_nextn_predict_layers": 1}, "a model with multi-token layers inside it"),
        (
            {"architectures": ["DFlashDraftModel"]},
            "DFlash or DSpark draft .field 'architectures'., but the wei",
        ),
        ({"draft_vocab_size": 32000}, "an EAGLE-3 draft .field 'draft_vocab_size'., but the weights"),
        ({"target_layer_ids": [1, 10]}, "a DFlash or DSpark draft .field 'target_layer_ids'., but the"),
        ({"speculators_model_type": "eagle"}, "speculators"),
        ({"hidden_size": 160}, "whose hidden_size is 160, not 144 as here"),
        ({"vocab_size": 204}, "whose vocab_size is 204, not 203 as here"),
        ({"scale_depth": 1.4}, "whose scale_depth is 1.4, not 0.8"),
        ({"hidden_act": "gelu"}, "'hidden_act' of config.json is 'gelu', which is not supported"),
        ({"qkv_bias": True}, "'qkv_bias' of config.json is True"),
        ({"num_experts": 8}, "a draft with experts"),
        ({"num_attention_heads": "8"}, "'num_attention_heads' of the config must be an integer"),
        ({"num_hidden_layers": 30}, "at most 16"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], says: str) -> None:
    target = minicpm_target()
    with pytest.raises(ConfigError, match=says) as caught:
        draft_from_hf(draft_fields(target, **changes), PARTS, target, "the config")
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_shape_of_a_preset() -> None:
    target = preset("minicpm4-8b")
    config = draft_shape(target)
    assert (config.input_norms, config.attention_norm, config.fc_bias) == (True, True, False)
    assert config.residual_scale == pytest.approx(1.4 / 33**0.5)
    assert config.embedding_scale == 12 and config.logit_scale == 256 / 4096
    assert config.kv_bytes_per_token() == 2 * 2 * 128 * 2
    config.check_target(target, "it")
    with pytest.raises(ConfigError, match="whose logit_scale is"):
        config.check_target(replace(target, dim_model_base=128.0), "it")
