"""A `rope_scaling` or `rope_parameters` entry as Hugging Face's tools write it: read, written, overridden."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from edge.config import ModelConfig, RopeConfig
from edge.config.fields import Fields
from edge.config.rope import longrope_scale
from edge.errors import ConfigError

_KEYS = {
    "factor",
    "original_max_position_embeddings",
    "short_factor",
    "long_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "high_freq_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
}
_ALIASES = {"su": "longrope", "ntk": "dynamic", "none": "default"}
_OVERRIDE = "the RoPE override"


def read_rope(entry: Mapping[str, Any], where: str, theta: float, max_positions: int) -> RopeConfig:
    """A RopeConfig from the keys of a Hugging Face `rope_scaling` or `rope_parameters` entry."""
    source = Fields(entry, where)
    kind = _type(entry)
    original = source.optional_integer("original_max_position_embeddings")
    if kind in ("yarn", "longrope", "llama3"):
        original = source.integer("original_max_position_embeddings", max_positions)
    factor = source.optional_number("factor")
    if factor is None and kind == "yarn" and original:
        factor = max_positions / original
    if factor is None and kind in ("linear", "dynamic", "llama3"):
        raise ConfigError(f"rope_type {kind} in {where} lacks the required field 'factor'.")
    uses_scale = kind in ("yarn", "longrope")
    return RopeConfig(
        type=kind,  # type: ignore[arg-type]  # RopeConfig refuses unknown ones
        theta=source.number("rope_theta", theta),
        factor=1.0 if factor is None or kind in ("default", "longrope") else factor,
        original_max_position_embeddings=original if uses_scale or kind in ("dynamic", "llama3") else None,
        short_factor=source.numbers("short_factor"),
        long_factor=source.numbers("long_factor"),
        attention_factor=source.optional_number("attention_factor") if uses_scale else None,
        beta_fast=_ramp_end(source, kind, "beta_fast", "high_freq_factor", 32.0),
        beta_slow=_ramp_end(source, kind, "beta_slow", "low_freq_factor", 1.0),
        mscale=source.optional_number("mscale"),
        mscale_all_dim=source.optional_number("mscale_all_dim"),
        truncate=source.boolean("truncate", True),
    )


def write_rope(rope: RopeConfig) -> dict[str, Any] | None:
    """The entry for a `config.json`; None for the default type. theta stands outside of it."""
    if rope.type == "default":
        return None
    entry: dict[str, Any] = {"rope_type": rope.type}
    if rope.type != "longrope":
        entry["factor"] = rope.factor
    if rope.type == "longrope":
        entry |= {"short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
    if rope.type == "llama3":
        entry |= {"high_freq_factor": rope.beta_fast, "low_freq_factor": rope.beta_slow}
    if rope.type == "yarn":
        entry |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        entry |= {"mscale": rope.mscale, "mscale_all_dim": rope.mscale_all_dim}
    entry |= {
        "attention_factor": rope.attention_factor,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
    }
    return {name: value for name, value in entry.items() if value is not None}


def override_rope(config: ModelConfig, override: str | Mapping[str, Any]) -> ModelConfig:
    """A config whose rotary embedding is changed on purpose, for prompts beyond the trained context.

    override: a JSON object (or its text) with the keys of a Hugging Face `rope_scaling` entry, plus
    `rope_theta` and `max_position_embeddings` (the new context). Keys that it leaves out keep their value
    when the type stays the same. Examples:

    * `{"rope_type": "yarn", "factor": 4}` on a plain Llama of 32768 tokens: 131072 tokens;
    * `{"long_factor": [...], "max_position_embeddings": 131072}` on MiniCPM4: replaces both factor lists,
      and leaves the factor on cos and sin as it was trained;
    * `{"max_position_embeddings": 131072}`: extrapolates with unchanged frequencies.

    Raises ConfigError for anything it does not understand.
    """
    if isinstance(override, str):
        try:
            override = json.loads(override)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"The RoPE override is not valid JSON ({error}).") from None
    if not isinstance(override, Mapping):
        raise ConfigError(
            'The RoPE override must be a JSON object such as {"rope_type": "yarn", "factor": 4}.'
        )
    data = dict(override)
    data.pop("comment", None)
    source = Fields(data, _OVERRIDE)
    wanted = source.optional_integer("max_position_embeddings")
    data.pop("max_position_embeddings", None)
    known = _KEYS | {"type", "rope_type", "rope_theta"}
    for name in data:
        if name not in known:
            raise ConfigError(
                f"Unknown field '{name}' in the RoPE override; known are {', '.join(sorted(known))}."
            )

    old = config.rope
    kind = _type(data) if "type" in data or "rope_type" in data else old.type
    trained = old.original_max_position_embeddings or config.max_position_embeddings
    if kind == "longrope":
        for one, other in (("long_factor", "short_factor"), ("short_factor", "long_factor")):
            data.setdefault(one, data.get(other))  # one list serves every length
            if data[one] is None:
                del data[one]
    if kind == old.type:
        merged = {field.name: getattr(old, field.name) for field in fields(old) if field.name in _KEYS}
        data = {**merged, **data}
        if kind == "longrope" and data["attention_factor"] is None:
            # The factor on cos and sin belongs to training: other lists or a longer context leave it alone.
            data["attention_factor"] = longrope_scale(trained, config.max_position_embeddings)
    data["rope_type"] = kind
    data.setdefault("rope_theta", old.theta)
    if (
        kind in ("yarn", "dynamic", "longrope", "llama3")
        and data.get("original_max_position_embeddings") is None
    ):
        data["original_max_position_embeddings"] = trained
    if wanted is None:
        stretched = kind in ("linear", "yarn", "dynamic") and "factor" in override
        wanted = round(trained * Fields(data, _OVERRIDE).number("factor")) if stretched else None
    max_positions = config.max_position_embeddings if wanted is None else wanted
    rope = read_rope(data, _OVERRIDE, old.theta, max_positions)
    return replace(config, rope=rope, max_position_embeddings=max_positions)


def _ramp_end(source: Fields, kind: str, name: str, llama3_name: str, default: float) -> float:
    if kind == "llama3":
        return source.number(llama3_name, source.optional_number(name))
    return source.optional_number(name) or default


def _type(entry: Mapping[str, Any]) -> str:
    kind = entry.get("rope_type") or entry.get("type") or "default"
    return _ALIASES.get(kind, kind) if isinstance(kind, str) else repr(kind)
