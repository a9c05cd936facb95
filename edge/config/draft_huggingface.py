"""The `config.json` of a public draft, read beside its target's.

It looks like the target's own, with fewer layers; which optional parts a draft has is told by its tensors.
Read in SafeAILab's EAGLE (cnets1.py), CPM.cu (speculative/eagle.py) and vLLM (minicpm_eagle.py,
llama_eagle.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.config.draft import DraftConfig
from edge.config.families import FIXED, family_of
from edge.config.fields import Fields, head_size, shown
from edge.config.huggingface import check_fixed, rope_from_hf
from edge.config.network import ModelConfig, RopeConfig
from edge.errors import ConfigError

_ONLY = "only EAGLE-2 drafts can be run"
_EPSILON = 1e-6  # EAGLE's default
_MUP = ("scale_emb", "scale_depth", "dim_model_base")
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_WITHOUT_EFFECT = ("sliding_window", "attention_bias", "layer_types")
"""Fields that a draft's config has from its target's, and which no program that runs drafts looks at."""
_OTHER_FIELDS: Mapping[str, str] = {
    "draft_vocab_size": "an EAGLE-3 draft",
    "eagle_aux_hidden_state_layer_ids": "an EAGLE-3 draft",
    "eagle_config": "an EAGLE-3 draft",
    "target_layer_ids": "a DFlash or DSpark draft",
    "dflash_config": "a DFlash or DSpark draft",
    "markov_rank": "a DFlash or DSpark draft",
    "block_size": "a DFlash or DSpark draft",
    "speculators_model_type": "a draft in the format of speculators",
    "medusa_num_heads": "a Medusa draft",
    "num_nextn_predict_layers": "a draft for several tokens at a time",
}
_OTHER_ARCHITECTURES: Mapping[str, str] = {
    "eagle3": "an EAGLE-3 draft",
    "dflash": "a DFlash draft",
    "dspark": "a DSpark draft",
    "medusa": "a Medusa draft",
    "mtp": "a draft for several tokens at a time",
}


@dataclass(frozen=True)
class DraftParts:
    """What the tensors of a draft tell: see the fields of `DraftConfig`.

    named_by_vllm: they have the names of vLLM's MiniCPM drafts (`eagle_layers`).
    """

    input_norms: bool
    attention_norm: bool
    fc_bias: bool
    named_by_vllm: bool = False


def plain_fields(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a draft's `config.json`, which vLLM's older form has one level further down."""
    inner = data.get("model")
    return inner if data.get("model_type") == "eagle" and isinstance(inner, Mapping) else data


def refuse_other_kinds(data: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError, naming the field, for the config of another kind of draft than EAGLE-2."""
    architectures = data.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        for part, words in _OTHER_ARCHITECTURES.items():
            if part in str(name).lower():
                raise ConfigError(f"{where} is {words} (field 'architectures': {shown(name)}); {_ONLY}.")
    for name, words in _OTHER_FIELDS.items():
        if data.get(name) is not None:
            raise ConfigError(f"{where} is {words} (field '{name}'); {_ONLY}.")


def draft_from_hf(data: Mapping[str, Any], parts: DraftParts, target: ModelConfig, where: str) -> DraftConfig:
    """A draft of `target` from the contents of its `config.json`; where: the file, in words.

    Fields that are absent have EAGLE's defaults. RoPE is the draft's own; a MiniCPM draft that says nothing
    of it has its target's, as in CPM.cu. A MiniCPM draft is trained as one layer more of its target, so that
    outputs are scaled with scale_depth / sqrt(layers of the target + 1), as in CPM.cu; vLLM's drafts say
    mup_denominator in place of that number. Raises ConfigError for another kind of draft, for fields that are
    wrong or not supported, and for those in which draft and target differ.
    """
    data = plain_fields(data)
    refuse_other_kinds(data, where)
    fixed = {**FIXED, **family_of(target).fixed, "partial_rotary_factor": (1,)}
    check_fixed(data, {name: values for name, values in fixed.items() if name not in _WITHOUT_EFFECT})
    source = Fields(data, where)
    if source.optional_integer("num_experts") or source.optional_integer("num_local_experts"):
        raise ConfigError(f"{where} is a draft with experts (field 'num_experts'), which can't be run.")
    for name in _MUP:
        own, wanted = source.optional_number(name), getattr(target, name)
        if own is not None and own != wanted:
            raise ConfigError(
                f"{where} is a draft for a model whose {name} is {own}, not {wanted} as here; take the draft "
                "that was trained for this model."
            )
    heads = source.integer("num_attention_heads")
    hidden_size = source.integer("hidden_size")
    rope, positions = _rope(source, target)
    config = DraftConfig(
        vocab_size=source.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=source.integer("intermediate_size"),
        num_hidden_layers=source.integer("num_hidden_layers", 1),
        num_attention_heads=heads,
        num_key_value_heads=source.integer("num_key_value_heads", heads),
        head_dim=head_size(source.optional_integer("head_dim"), hidden_size, heads),
        rms_norm_eps=source.number("rms_norm_eps", _EPSILON),
        max_position_embeddings=positions,
        rope=rope,
        embedding_scale=target.embedding_scale,
        residual_scale=_residual_scale(source, parts, target),
        logit_scale=target.logit_scale,
        input_norms=parts.input_norms,
        attention_norm=parts.attention_norm,
        fc_bias=parts.fc_bias,
    )
    config.check_target(target, where)
    return config


def _rope(source: Fields, target: ModelConfig) -> tuple[RopeConfig, int]:
    """The rotary embedding, and the length that it was made for."""
    if target.has_mup_scales and all(source.get(name) is None for name in _ROPE):
        return target.rope, target.max_position_embeddings
    positions = source.integer("max_position_embeddings", target.max_position_embeddings)
    return rope_from_hf(source, positions), positions


def _residual_scale(source: Fields, parts: DraftParts, target: ModelConfig) -> float:
    depth = source.optional_number("scale_depth")
    if depth is None:
        return 1.0
    layers = float(target.num_hidden_layers + 1)
    if parts.named_by_vllm:
        layers = source.number("mup_denominator", layers)
        if layers <= 0:
            raise ConfigError(f"mup_denominator of {source.where} must be a positive number, not {layers}.")
    return float(depth / layers**0.5)
