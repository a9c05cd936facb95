"""Hugging Face's `config.json`: read and written.

Only networks that the decoder computes exactly are let through. Whatever would change the arithmetic and is
not known to the family (biases, another activation, sliding windows, lightning attention) is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.config.families import Family, every_last, family_from_hf, family_of
from edge.config.fields import Fields, head_size, mup_scales
from edge.config.rope_entry import read_rope, write_rope
from edge.errors import ConfigError

_WHERE = "config.json"
_MUP = ("scale_emb", "scale_depth", "dim_model_base")


def config_from_hf(data: Mapping[str, Any]) -> ModelConfig:
    """Read the contents of a `config.json`; ConfigError names what is wrong.

    Fields that may be absent have the defaults of transformers' LlamaConfig and of the family: rope_theta
    10000, num_key_value_heads = num_attention_heads, head_dim = hidden_size / num_attention_heads;
    tie_word_embeddings is true for MiniCPM and false for Llama (a checkpoint that has a head of its own is
    not tied).
    """
    plain = Fields(data, _WHERE)
    model_type = plain.text("model_type")
    family = family_from_hf(model_type, plain.texts("architectures"))
    source = Fields(data, _WHERE, names=family.fields, defaults=family.defaults)
    _check_fixed(data, family)

    hidden_size = source.integer("hidden_size")
    layers = source.integer("num_hidden_layers")
    heads = source.integer("num_attention_heads")
    max_positions = source.integer("max_position_embeddings")
    scales = mup_scales(source, _MUP)
    pad = source.optional_integer("pad_token_id")
    experts = source.integer("num_experts", source.optional_integer("num_local_experts") or 0)
    config = ModelConfig(
        model_type=model_type,
        vocab_size=source.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=source.integer("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=source.integer("num_key_value_heads", heads),
        head_dim=head_size(source.optional_integer("head_dim"), hidden_size, heads),
        rms_norm_eps=source.number("rms_norm_eps"),
        max_position_embeddings=max_positions,
        rope=_rope(source, max_positions),
        tie_word_embeddings=source.boolean("tie_word_embeddings", False),
        bos_token_id=source.optional_integer("bos_token_id"),
        eos_token_ids=tuple(token for token in source.ids("eos_token_id") if token >= 0),  # -1 for "none"
        # Llama writes -1 for "none", and fine-tunes a token that the embedding does not have.
        pad_token_id=pad if pad is not None and 0 <= pad < source.integer("vocab_size") else None,
        scale_emb=scales[0],
        scale_depth=scales[1],
        dim_model_base=scales[2],
        sparse=_sparse(source.get("sparse_config")),
        num_experts=experts,
        num_experts_per_tok=source.integer("num_experts_per_tok") if experts else 0,
    )
    return replace(config, layers_without_rope=_layers_without_rope(source, family, layers))


def config_to_hf(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The contents of a `config.json`; dtype: what most weights are stored in, in torch's words."""
    family = family_of(config)
    values: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope.theta,
        "rope_scaling": write_rope(config.rope),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "scale_emb": config.scale_emb,
        "scale_depth": config.scale_depth,
        "dim_model_base": config.dim_model_base,
        "sparse_config": None if config.sparse is None else asdict(config.sparse),
    }
    if config.num_experts:
        values |= {"num_experts": config.num_experts, "num_experts_per_tok": config.num_experts_per_tok}
    if family.rope_interval is not None:
        without = config.layers_without_rope
        values["no_rope_layers"] = [int(layer not in without) for layer in range(config.num_hidden_layers)]
    return {family.fields.get(name, name): value for name, value in values.items() if value is not None}


def _check_fixed(data: Mapping[str, Any], family: Family) -> None:
    """Refuse fields that change the arithmetic and have other values than the family's."""
    for name, values in family.fixed.items():
        value = data.get(name)
        if value is not None and value not in values:
            raise ConfigError(f"The field '{name}' of config.json is {value!r}, which is not supported.")
    if any(kind != "full_attention" for kind in Fields(data, _WHERE).texts("layer_types")):
        raise ConfigError("The field 'layer_types' of config.json has other layers than 'full_attention'.")


def _rope(source: Fields, max_positions: int) -> RopeConfig:
    name = "rope_parameters" if source.get("rope_parameters") is not None else "rope_scaling"
    where, entry = source.key(name), source.get(name) or {}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"The field '{where}' of config.json must be an object, not {entry!r}.")
    if any(isinstance(value, Mapping) for value in entry.values()):
        raise ConfigError(f"The field '{where}' of config.json differs between kinds of layers.")
    entry = {**entry}
    if entry.get("original_max_position_embeddings") is None:  # older files keep it at the top
        entry["original_max_position_embeddings"] = source.get("original_max_position_embeddings")
    if entry.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ConfigError("The field 'partial_rotary_factor' of config.json is not supported.")
    theta = source.number("rope_theta", 10000.0)
    return read_rope(entry, f"'{where}' of config.json", theta, max_positions)


def _layers_without_rope(source: Fields, family: Family, layers: int) -> tuple[int, ...]:
    """SmolLM3's fields: a list with 0 for every layer that does not rotate, or an interval between them."""
    if family.rope_interval is None:
        return ()
    rotates = source.numbers("no_rope_layers")
    if not rotates:
        interval = source.integer("no_rope_layer_interval", family.rope_interval)
        if interval <= 0:
            raise ConfigError(f"no_rope_layer_interval must be a positive number, not {interval}.")
        return every_last(interval, layers)
    if len(rotates) != layers:
        raise ConfigError(f"'no_rope_layers' has {len(rotates)} values for {layers} layers.")
    return tuple(layer for layer, value in enumerate(rotates) if not value)


def _sparse(data: Any) -> SparseConfig | None:
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise ConfigError(f"The field 'sparse_config' of config.json must be an object, not {data!r}.")
    known = {field.name for field in fields(SparseConfig)}
    for name in data:
        if name not in known:
            raise ConfigError(f"Unknown field 'sparse_config.{name}'; known are {', '.join(sorted(known))}.")
    source = Fields(data, "sparse_config")
    flags = ("use_nope", "exact_lse")
    values: dict[str, Any] = {
        name: source.boolean(name, False) if name in flags else source.integer(name) for name in data
    }
    return SparseConfig(**values)
