"""Hugging Face's `config.json`: read and written.

Only networks that the decoder computes exactly are let through. Whatever would change the arithmetic and is
not known to the family (biases, another activation, sliding windows, lightning attention) is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.config.families import Family, every_last, family_from_hf, mup_scales, scaled_family
from edge.config.fields import Fields, head_size, listed, refuse_two, shown
from edge.config.rope_entry import read_rope, write_rope
from edge.config.windows import sliding_layers_from_hf, sliding_layers_to_hf
from edge.errors import ConfigError
from edge.system.notices import notice

_WHERE = "config.json"
_MUP = ("scale_emb", "scale_depth", "dim_model_base")
_LENGTH = "original_max_position_embeddings"


def config_from_hf(data: Mapping[str, Any]) -> ModelConfig:
    """Read the contents of a `config.json`; ConfigError names what is wrong.

    Fields that may be absent have the defaults of transformers' LlamaConfig and of the family: rope_theta
    10000, num_key_value_heads = num_attention_heads, head_dim = hidden_size / num_attention_heads;
    tie_word_embeddings is true for MiniCPM and false for Llama (a checkpoint that has another head is not
    tied).

    A fact that stands twice counts where transformers takes it from, and a notice says so if the two differ;
    where transformers has no rule, the contradiction is refused.
    """
    plain = Fields(data, _WHERE)
    model_type = plain.text("model_type")
    family = family_from_hf(model_type, plain.texts("architectures"))
    source = Fields(data, _WHERE, names=family.fields, defaults=family.defaults)
    check_fixed(data, family.fixed)
    for name in family.required:
        if source.key(name) not in data:
            raise ConfigError(f"config.json lacks the required field '{source.key(name)}'.")

    hidden_size = source.integer("hidden_size")
    layers = source.integer("num_hidden_layers")
    heads = source.integer("num_attention_heads")
    max_positions = source.integer("max_position_embeddings")
    scales = mup_scales(source, _MUP, family)
    pad = None if source.is_null("pad_token_id") else source.optional_integer("pad_token_id")
    experts = _experts(source)
    head_dim = head_size(source.optional_integer("head_dim"), hidden_size, heads)
    rope = rope_from_hf(source, max_positions, head_dim if family.partial_rotary else None)
    if rope.type not in family.rope_types:
        raise ConfigError(
            f"config.json has the rope_type {rope.type}, but models of type {family.model_type} have only "
            f"{listed(family.rope_types)}."
        )
    without_rope = _layers_without_rope(source, family, layers)
    window, sliding = sliding_layers_from_hf(source, family, layers, without_rope)
    return ModelConfig(
        model_type=model_type,
        vocab_size=source.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=source.integer("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=source.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        rms_norm_eps=source.number("rms_norm_eps"),
        max_position_embeddings=max_positions,
        rope=rope,
        tie_word_embeddings=source.boolean("tie_word_embeddings", False),
        bos_token_id=next(iter(_known_ids(source, "bos_token_id")), None),
        eos_token_ids=_known_ids(source, "eos_token_id"),
        # Llama writes -1 for "none", and fine-tunes a token that the embedding does not have.
        pad_token_id=pad if pad is not None and 0 <= pad < source.integer("vocab_size") else None,
        scale_emb=scales[0],
        scale_depth=scales[1],
        dim_model_base=scales[2],
        sparse=_sparse(source.get("sparse_config")),
        num_experts=experts,
        num_experts_per_tok=source.integer("num_experts_per_tok") if experts else 0,
        layers_without_rope=without_rope,
        sliding_window=window,
        sliding_layers=sliding,
    )


def config_to_hf(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The contents of a `config.json`; dtype: what most weights are stored in, in torch's words."""
    family = scaled_family(config)
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
        "max_position_embeddings": _written_positions(config),
        "rope_theta": config.rope.theta,
        "rope_scaling": write_rope(config.rope),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "sparse_config": None if config.sparse is None else asdict(config.sparse),
    }
    if config.has_mup_scales:  # all three: a reader takes none for granted
        neutral = (1.0, math.sqrt(config.num_hidden_layers), float(config.hidden_size))
        values |= {name: getattr(config, name) or one for name, one in zip(_MUP, neutral, strict=True)}
    if config.num_experts:
        values |= {"num_experts": config.num_experts, "num_experts_per_tok": config.num_experts_per_tok}
    if family.rope_interval is not None:
        without = config.layers_without_rope
        values["no_rope_layers"] = [int(layer not in without) for layer in range(config.num_hidden_layers)]
    if config.rope.rotary_dim is not None:
        values["partial_rotary_factor"] = _rotary_factor(config.rope.rotary_dim, config.head_dim)
    if _LENGTH in family.defaults:
        values[_LENGTH] = config.rope.original_max_position_embeddings
    # An absent token is that of the class in transformers, and null is none.
    kept = ("bos_token_id", "pad_token_id")
    values = {name: value for name, value in values.items() if value is not None or name in kept}
    values |= sliding_layers_to_hf(config, family)
    return {family.fields.get(name, name): value for name, value in values.items()}


def check_fixed(data: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse fields that change the arithmetic and have other values than `fixed` says: ConfigError."""
    for name, values in fixed.items():
        if name == "sliding_window" and data.get("use_sliding_window") is False:
            continue  # Qwen's way of saying that there is none
        value = data.get(name)
        found = value if isinstance(value, list) and values else [value]
        if any(each is not None and each not in values for each in found):
            raise ConfigError(f"The field '{name}' of config.json is {shown(value)}, which is not supported.")


def _known_ids(source: Fields, name: str) -> tuple[int, ...]:
    """Token ids of a field; one that the network does not have is left out, with a notice."""
    size = source.integer("vocab_size")
    if source.is_null(name):
        return ()
    for token in (ids := source.ids(name)):
        if token >= size:
            notice(f"config.json names the {name} {token}, but has only {size} tokens: it is ignored.")
    return tuple(token for token in ids if token < size)


def _experts(source: Fields) -> int:
    names = ("num_experts", "num_local_experts")
    refuse_two(_WHERE, {name: source.optional_integer(name) for name in names})
    return source.integer(names[0], source.optional_integer(names[1]) or 0)


def rope_from_hf(source: Fields, max_positions: int, head_dim: int | None = None) -> RopeConfig:
    """A config's rotary embedding by transformers' rules: `rope_scaling` stands in for the whole of
    `rope_parameters`, theta counts inside before outside, the original length outside before inside.

    head_dim: of a family whose `partial_rotary_factor` is computed, None for others.
    """
    scaling, parameters = (_object(source, name) for name in ("rope_scaling", "rope_parameters"))
    name, entry = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters)
    where = f"'{source.key(name)}' of config.json"
    theta = source.data.get(source.key("rope_theta"))
    _say_which("rope_theta", (where, entry.get("rope_theta")), ("the top level", theta))
    length = source.optional_integer(_LENGTH)
    if length is not None:
        _say_which(_LENGTH, ("the top level", length), (where, entry.get(_LENGTH)))
        entry[_LENGTH] = length
    rotary_dim = None if head_dim is None else _rotary_dim(source, entry, where, head_dim)
    rope = read_rope(entry, where, source.number("rope_theta", 10000.0), max_positions, rotary_dim)
    if scaling and parameters:
        _check_replaced(rope.theta, scaling, parameters)
    return rope


def _rotary_dim(source: Fields, entry: dict[str, Any], where: str, head_dim: int) -> int | None:
    """How many rows of a head are rotated, None for all; the factor counts inside of the entry first."""
    name = "partial_rotary_factor"
    outside = source.optional_number(name)
    _say_which(name, (where, entry.get(name)), ("the top level", outside))
    inside = Fields(entry, where).optional_number(name)
    entry.pop(name, None)
    factor = next((each for each in (inside, outside) if each is not None), 1.0)
    rotated = int(head_dim * factor)
    return None if rotated == head_dim else rotated


def _rotary_factor(rotary_dim: int, head_dim: int) -> float:
    """A factor that readers, who cut the fraction off, take for rotary_dim."""
    factor = rotary_dim / head_dim
    return factor if int(head_dim * factor) == rotary_dim else math.nextafter(factor, 1.0)


def _object(source: Fields, name: str) -> dict[str, Any]:
    """The entry of that name, empty if there is none."""
    where, entry = source.key(name), source.get(name) or {}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"The field '{where}' of config.json must be an object, not {shown(entry)}.")
    if any(isinstance(value, Mapping) for value in entry.values()):
        raise ConfigError(f"The field '{where}' of config.json differs between kinds of layers.")
    return {**entry}


def _check_replaced(theta: float, scaling: Mapping[str, Any], parameters: dict[str, Any]) -> None:
    """What becomes of `rope_parameters` beside the `rope_scaling` that transformers takes instead."""
    replaced = parameters.pop("rope_theta", None)
    if replaced not in (None, theta):
        raise ConfigError(
            f"config.json contradicts itself: with 'rope_scaling', which replaces 'rope_parameters', "
            f"rope_theta is {theta}, but 'rope_parameters' says {shown(replaced)}; write the right one into "
            "'rope_scaling' and remove the other."
        )
    lost = [name for name, value in parameters.items() if value not in (None, scaling.get(name))]
    if lost and parameters.get("rope_type", parameters.get("type")) not in (None, "default"):
        notice(
            "config.json has both 'rope_scaling' and 'rope_parameters': the first is used, as transformers "
            f"does, and {listed(map(repr, lost))} of the second not."
        )


def _say_which(what: str, used: tuple[str, Any], other: tuple[str, Any]) -> None:
    """A notice if both places have a value, and not the same; each is given as (where, value)."""
    if None not in (used[1], other[1]) and used[1] != other[1]:
        notice(
            f"config.json says {what} twice: {shown(used[1])} in {used[0]} is used, as transformers does, "
            f"and {shown(other[1])} in {other[0]} is not."
        )


def _written_positions(config: ModelConfig) -> int:
    """Others let dynamic NTK's base grow from there; the longer context of a RoPE override would hide it."""
    original = config.rope.original_max_position_embeddings
    return original if config.rope.type == "dynamic" and original else config.max_position_embeddings


def _layers_without_rope(source: Fields, family: Family, layers: int) -> tuple[int, ...]:
    """SmolLM3's fields: a list with 0 for every layer that does not rotate, or an interval between them."""
    rotates = source.numbers("no_rope_layers")
    if family.rope_interval is None:
        if not all(rotates) or source.get("no_rope_layer_interval") is not None:
            raise ConfigError(
                f"config.json has layers without RoPE (fields 'no_rope_layers', 'no_rope_layer_interval'), "
                f"which models of type {family.model_type} do not have."
            )
        return ()
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
