"""Every field of every family's config: as transformers has it, or refused by its name.

The fields are those of the config classes of transformers, so a new one, which stands in no list here, fails.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError

from edge.config.families import FAMILIES
from edge.config.huggingface import config_from_hf
from edge.errors import ConfigError, ContextError
from edge.model.weights.checkpoint import load_decoder

pytestmark = pytest.mark.filterwarnings("ignore::edge.system.notices.EdgeWarning")
LENGTH = 40
TOKENS = torch.arange(LENGTH) * 7 % 61
ORIGINAL = "original_max_position_embeddings"
BASE: dict[str, Any] = {
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
    "pad_token_id": 3,
}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "smollm3": {"no_rope_layer_interval": 2},
    "phi3": {ORIGINAL: 64},
}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"} | {
    "smollm3": "SmolLM3",
    "phi3": "Phi3",
}
YARN = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 16, "rope_theta": 1000.0}
LISTS = {"short_factor": [1.5] * 12, "long_factor": [2.5] * 12}
LONGROPE = {"rope_type": "longrope", **LISTS, "rope_theta": 1000.0, "partial_rotary_factor": 0.75}
LLAMA3 = {"factor": 8.0, ORIGINAL: 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SOME = ["full_attention", "sliding_attention"]

CHANGES: dict[str, list[dict[str, Any]]] = {
    "vocab_size": [{"vocab_size": 70}],
    "hidden_size": [{"hidden_size": 96}],
    "intermediate_size": [{"intermediate_size": 112}],
    "num_hidden_layers": [{"num_hidden_layers": 3}],
    "num_attention_heads": [{"num_attention_heads": 4}],
    "num_key_value_heads": [{"num_key_value_heads": 2}, {"num_key_value_heads": None}],
    "head_dim": [{"head_dim": 48}, {"head_dim": 16}],
    "hidden_act": [{"hidden_act": "gelu"}, {"hidden_act": "relu"}],
    "rms_norm_eps": [{"rms_norm_eps": 0.3}],
    "tie_word_embeddings": [{"tie_word_embeddings": True}],
    "rope_theta": [{"rope_theta": 50.0}],
    "rope_parameters": [
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 9.0}},
        {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "rope_theta": 1000.0}},
        {"rope_parameters": YARN},
        {"rope_parameters": {**YARN, "attention_factor": 1.7}},
        {"rope_parameters": {**LONGROPE, "partial_rotary_factor": 1.0}},
        {"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}},
        {"rope_parameters": LONGROPE},
        {"rope_parameters": LONGROPE, ORIGINAL: 32},
        {"rope_parameters": {**LONGROPE, "attention_factor": 1.7}, ORIGINAL: 32},
        {"rope_parameters": {**LONGROPE, ORIGINAL: 32}},
    ],
    "rope_scaling": [
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "su", **LISTS, ORIGINAL: 64}, "partial_rotary_factor": 0.75},
        {"rope_scaling": {"type": "longrope", **LISTS}, "partial_rotary_factor": 0.75, ORIGINAL: 32},
    ],
    "partial_rotary_factor": [
        {"partial_rotary_factor": 0.75},
        {"partial_rotary_factor": 0.25},
        {"partial_rotary_factor": 0.4},
        {"partial_rotary_factor": 0.75, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
        {"partial_rotary_factor": 0.3, "rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.5}},
    ],
    ORIGINAL: [{ORIGINAL: 8, "rope_parameters": {**YARN, ORIGINAL: 16}}],
    "attention_bias": [{"attention_bias": True}],
    "mlp_bias": [{"mlp_bias": True}],
    "sliding_window": [{"sliding_window": 16}, {"sliding_window": LENGTH}, {"sliding_window": 4096}],
    "use_sliding_window": [
        {"use_sliding_window": True, "sliding_window": 16},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": LENGTH, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": None},
        {"use_sliding_window": True, "max_window_layers": 0},
    ],
    "max_window_layers": [{"max_window_layers": 0}],
    "layer_types": [
        {"layer_types": SOME},
        {"layer_types": ["full_attention"] * 2},
        {"use_sliding_window": True, "sliding_window": 16, "layer_types": SOME},
        {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"] * 2},
        {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["chunked_attention"] * 2},
        {"use_sliding_window": True, "sliding_window": 16, "layer_types": SOME[:1]},
    ],
    "no_rope_layers": [{"no_rope_layers": [0, 1]}, {"no_rope_layers": [1, 1]}, {"no_rope_layers": [1]}],
    "no_rope_layer_interval": [{"no_rope_layer_interval": 1}, {"no_rope_layer_interval": 3}],
}
"""Fields that change the arithmetic of some family, with what else has to be there for it."""
IDLE: dict[str, tuple[Any, str]] = {
    "max_position_embeddings": (128, "a limit"),
    "bos_token_id": (4, "a token's number"),
    "eos_token_id": ([5, 6], "a token's number"),
    "pad_token_id": (7, "a token's number"),
    "initializer_range": (0.5, "of training"),
    "attention_dropout": (0.5, "of training"),
    "resid_pdrop": (0.5, "of training"),
    "embd_pdrop": (0.5, "of training"),
    "use_cache": (False, "how a pass is run"),
    "pretraining_tp": (2, "how a pass is run"),
}
"""Fields that change no logits: a value, and why."""
OF_EVERY_CONFIG = {
    *("transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type"),
}
"""Fields of all configs of transformers: what programs write about themselves, and what does not exist for a
language model."""


def fields_of(family: str) -> set[str]:
    """What the family's own class has beside those of every config."""
    config = getattr(transformers, f"{CLASSES[family]}Config")
    return {field.name for field in dataclasses.fields(config)} - OF_EVERY_CONFIG


def base(family: str, **changes: Any) -> dict[str, Any]:
    architecture = FAMILIES.get(family).architecture
    names = {"model_type": family, "architectures": [architecture]}
    return copy.deepcopy({**names, **BASE, **OF_FAMILY[family], **changes})


def theirs(data: dict[str, Any], folder: Path) -> torch.Tensor:
    """Logits of transformers on random weights, which are left in the folder beside the config."""
    name = CLASSES[data["model_type"]]
    config = getattr(transformers, f"{name}Config").from_dict(copy.deepcopy(data))
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)
    for parameter, tensor in model.named_parameters():
        torch.nn.init.uniform_(tensor, *((0.5, 1.5) if "norm" in parameter else (-0.2, 0.2)))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(data))
    return model(TOKENS[None]).logits[0]


def outcome(data: dict[str, Any], folder: Path) -> torch.Tensor | str:
    """The logits, which are equal to those of transformers, or the sentence of a refusal, ours or theirs."""
    folder.mkdir(exist_ok=True)
    try:
        config = config_from_hf(copy.deepcopy(data))
        config.check_context(LENGTH)
    except (ConfigError, ContextError) as error:
        return str(error)
    try:
        wanted = theirs(data, folder)
    except StrictDataclassFieldValidationError as error:
        return str(error)
    except AssertionError as error:  # of an embedding without a row for the class's own pad_token_id
        return f"{error}: pad_token_id"
    found = load_decoder(folder, LENGTH)(TOKENS)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-5)
    return wanted


@pytest.mark.parametrize("family", CLASSES)
def test_every_field_is_as_in_transformers_or_refused(tmp_path: Path, family: str) -> None:
    plain = outcome(base(family), tmp_path / "plain")
    assert isinstance(plain, torch.Tensor)
    seen: dict[str, int] = {}
    for name in sorted((fields_of(family) | {"rope_theta", "rope_scaling", "head_dim"}) - {*IDLE}):
        for changes in CHANGES[name]:
            found = outcome(base(family, **changes), tmp_path / "changed")
            if isinstance(found, str):
                assert any(field in found for field in changes) or re.search("head_dim|rope_type", found), (
                    found
                )
            seen[name] = seen.get(name, 0) + isinstance(found, torch.Tensor)
    assert {"vocab_size", "num_hidden_layers", "rms_norm_eps", "tie_word_embeddings"} <= seen.keys()
    for name in fields_of(family) & {*IDLE}:
        found = outcome(base(family, **{name: IDLE[name][0]}), tmp_path / "changed")
        assert isinstance(found, torch.Tensor) and torch.equal(found, plain), name


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": LENGTH}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16}),  # of layers from the 28th on
        ("qwen3", {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"] * 2}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 16, "no_rope_layers": [1, 1]}),
        ("smollm3", {"no_rope_layers": [0, 1]}),
        ("phi3", {"partial_rotary_factor": 0.75}),
        ("phi3", {"rope_parameters": LONGROPE}),
        ("phi3", {"rope_parameters": LONGROPE, ORIGINAL: 32}),
    ],
)
def test_what_may_not_be_refused(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    assert isinstance(outcome(base(family, **changes), tmp_path / "changed"), torch.Tensor)


@pytest.mark.parametrize("family", CLASSES)
def test_an_absent_field_is_what_transformers_takes(tmp_path: Path, family: str) -> None:
    """Or it has to be there: sizes, and what has a number of its own in each class. The same for null."""
    for name in base(family):
        absent = base(family)
        del absent[name]
        null = {**base(family), name: None}
        for data in (absent, null)[
            : 1 if name == "rope_theta" else 2
        ]:  # their classes fail with a null theta
            found = outcome(data, tmp_path / "changed")
            assert isinstance(found, torch.Tensor) or name in found
