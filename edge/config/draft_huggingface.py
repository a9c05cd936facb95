"""The `config.json` of a public draft, read beside its target's.

It looks like the target's own, with fewer layers; which optional parts a draft has is told by its tensors.
Read for EAGLE-2 in SafeAILab's EAGLE (cnets1.py), CPM.cu (speculative/eagle.py) and vLLM (minicpm_eagle.py,
llama_eagle.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.config.draft import DraftConfig, DraftKind
from edge.config.draft_block import MARKS as BLOCK_MARKS
from edge.config.draft_block import block_fields
from edge.config.draft_eagle3 import MARKS, eagle3_fields
from edge.config.families import FIXED, family_of
from edge.config.fields import Fields, head_size, shown
from edge.config.huggingface import check_fixed, rope_from_hf
from edge.config.network import ModelConfig, RopeConfig
from edge.errors import ConfigError

ONLY = "only EAGLE-2, EAGLE-3, DSpark and DFlash drafts and multi-token layers in own files can be run"
_EPSILON = 1e-6  # EAGLE's default
_MUP = ("scale_emb", "scale_depth", "dim_model_base")
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_WITHOUT_EFFECT = ("sliding_window", "attention_bias", "layer_types")
"""Fields that a draft's config has from its target's, and which no program that runs drafts looks at."""
_OTHER_FIELDS: Mapping[str, str] = {
    "dspark_block_size": "a model with a DSpark draft inside it",
    "speculators_model_type": "a draft in the format of speculators",
    "medusa_num_heads": "a Medusa draft",
    "num_nextn_predict_layers": "a model with multi-token layers inside it",
}
_OTHER_ARCHITECTURES: Mapping[str, str] = {
    "dflash2": "a DFlash 2 draft",
    "domino": "a Domino draft",
    "medusa": "a Medusa draft",
    "mtp": "a multi-token draft of another program",
}


@dataclass(frozen=True)
class DraftParts:
    """What the tensors of a draft tell: see the fields of `DraftConfig`. Of other kinds than EAGLE-2 the
    first two are what they always are there.

    named_by_vllm: they have the names of vLLM's MiniCPM drafts (`eagle_layers`). confidence: a block draft
    has a head for chances.
    """

    input_norms: bool
    attention_norm: bool
    fc_bias: bool
    named_by_vllm: bool = False
    kind: DraftKind = "eagle2"
    confidence: bool = False


def plain_fields(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a draft's `config.json`, which vLLM's older form has one level further down."""
    inner = data.get("model")
    return inner if data.get("model_type") == "eagle" and isinstance(inner, Mapping) else data


def refuse_other_kinds(data: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError, naming the field, for the config of a kind of draft that can't be run."""
    architectures = data.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        for part, words in _OTHER_ARCHITECTURES.items():
            if part in str(name).lower():
                raise ConfigError(f"{where} is {words} (field 'architectures': {shown(name)}); {ONLY}.")
    for name, words in _OTHER_FIELDS.items():
        if data.get(name) is not None:
            raise ConfigError(f"{where} is {words} (field '{name}'); {ONLY}.")


_SHARED = (("dspark", "draft_vocab_size"),)
"""Marks of one kind of draft that others may have too."""


def _refuse_mixed(data: Mapping[str, Any], kind: DraftKind, where: str) -> None:
    """Raise ConfigError for the fields of another kind of draft than the tensors are of."""
    names = data.get("architectures")
    for other, own, fields, words in (
        ("eagle3", ("eagle3",), MARKS, "an EAGLE-3"),
        ("dspark", ("dspark", "dflash"), BLOCK_MARKS, "a DFlash or DSpark"),
    ):
        said = isinstance(names, list) and any(each in str(name).lower() for each in own for name in names)
        marks = ["architectures"] if said else []
        marks += [name for name in fields if data.get(name) is not None and (kind, name) not in _SHARED]
        if marks and kind != other:
            raise ConfigError(
                f"{where} is that of {words} draft (field '{marks[0]}'), but the weights beside it are not; "
                "they do not belong together."
            )


def draft_from_hf(data: Mapping[str, Any], parts: DraftParts, target: ModelConfig, where: str) -> DraftConfig:
    """A draft of `target` from the contents of its `config.json`; where: the file, in words.

    Fields that are absent have EAGLE's defaults. RoPE is the draft's own; a MiniCPM draft that says nothing
    of it has its target's, as in CPM.cu. A MiniCPM draft is trained as one layer more of its target, so that
    outputs are scaled with scale_depth / sqrt(layers of the target + 1), as in CPM.cu; vLLM's drafts say
    mup_denominator in place of that number. An EAGLE-3 draft has its own RoPE and no such scale
    (`edge.config.draft_eagle3`), nor has a block draft (`edge.config.draft_block`). A multi-token layer
    stands beside its target's own config. Raises ConfigError for another kind of draft, for fields that are
    wrong or not supported, and for those in which draft and target differ.
    """
    data = plain_fields(data)
    refuse_other_kinds(data, where)
    fixed = {**FIXED, **family_of(target).fixed, "partial_rotary_factor": (1,)}
    if parts.kind == "dspark":
        fixed |= {"is_causal": (False,)}
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
    rope, positions = _rope(source, parts.kind, target)
    layers = source.integer("num_hidden_layers", 1)
    of_kind: dict[str, Any] = {
        "num_hidden_layers": layers,
        "residual_scale": _residual_scale(source, parts, target),
        "logit_scale": target.logit_scale,
    }
    _refuse_mixed(data, parts.kind, where)
    if parts.kind == "eagle3":
        of_kind |= eagle3_fields(data, target, where)
    if parts.kind == "dspark":
        of_kind |= block_fields(data, parts.confidence, target, where)
    if parts.kind == "mtp":
        of_kind |= _multi_token_fields(layers, target, where)
    config = DraftConfig(
        vocab_size=source.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=source.integer("intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=source.integer("num_key_value_heads", heads),
        head_dim=head_size(source.optional_integer("head_dim"), hidden_size, heads),
        rms_norm_eps=source.number("rms_norm_eps", _EPSILON),
        max_position_embeddings=positions,
        rope=rope,
        embedding_scale=target.embedding_scale,
        input_norms=parts.input_norms,
        attention_norm=parts.attention_norm,
        fc_bias=parts.fc_bias,
        **of_kind,
    )
    config.check_target(target, where)
    return config


def _multi_token_fields(layers: int, target: ModelConfig, where: str) -> dict[str, Any]:
    if layers != target.num_hidden_layers:
        raise ConfigError(
            f"{where} is that of a model whose num_hidden_layers is {layers}, not "
            f"{target.num_hidden_layers} as here; take the layer that was trained with this model."
        )
    return {"kind": "mtp", "num_hidden_layers": 1, "taps": (layers - 1,), "output_norm": True}


def _rope(source: Fields, kind: DraftKind, target: ModelConfig) -> tuple[RopeConfig | None, int]:
    """The rotary embedding, and the length that it was made for."""
    if kind == "mtp" and 0 in target.layers_without_rope:
        return None, target.max_position_embeddings  # its layer is like the first
    own = kind in ("eagle3", "dspark")
    if not own and target.has_mup_scales and all(source.get(name) is None for name in _ROPE):
        return target.rope, target.max_position_embeddings
    positions = source.integer("max_position_embeddings", target.max_position_embeddings)
    return rope_from_hf(source, positions), positions


def _residual_scale(source: Fields, parts: DraftParts, target: ModelConfig) -> float:
    depth = source.optional_number("scale_depth")
    if parts.kind == "mtp":
        depth = target.scale_depth
    if depth is None:
        return 1.0
    layers = float(target.num_hidden_layers + 1)
    if parts.named_by_vllm:
        layers = source.number("mup_denominator", layers)
        if layers <= 0:
            raise ConfigError(f"mup_denominator of {source.where} must be a positive number, not {layers}.")
    return float(depth / layers**0.5)
