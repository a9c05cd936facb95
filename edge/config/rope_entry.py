"""A `rope_scaling` or `rope_parameters` entry as Hugging Face's tools write it: read, written, overridden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edge.config import ModelConfig, RopeConfig
from edge.config.fields import Fields
from edge.config.rope import longrope_scale
from edge.errors import ConfigError
from edge.system.notices import notice

_LENGTH = "original_max_position_embeddings"
READ: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset(
        {"factor", _LENGTH, "attention_factor", "beta_fast", "beta_slow"}
        | {"mscale", "mscale_all_dim", "truncate"}
    ),
    "longrope": frozenset({"factor", _LENGTH, "attention_factor", "short_factor", "long_factor"}),
    "llama3": frozenset({"factor", _LENGTH, "low_freq_factor", "high_freq_factor"}),
}
"""The keys of an entry by rope type, beside the type and `rope_theta`: those that transformers computes with.

An entry may carry the keys of other types; they have no effect, there and here. Dynamic NTK, for one, grows
from `max_position_embeddings`, whatever the original length is said to be.
"""
WITHOUT_EFFECT: Mapping[str, str] = {
    "finetuned": "a remark: whether the model was trained further at its new length",
    "comment": "a remark",
}
"""Keys of an entry that nothing computes with, and what they say."""
_KEYS = frozenset().union(*READ.values())
_ALIASES = {"su": "longrope", "ntk": "dynamic", "none": "default"}
_OVERRIDE = "the RoPE override"


def read_rope(
    entry: Mapping[str, Any], where: str, theta: float, max_positions: int, rotary_dim: int | None = None
) -> RopeConfig:
    """A RopeConfig from the keys of a Hugging Face `rope_scaling` or `rope_parameters` entry.

    theta: where the entry has none. rotary_dim: see RopeConfig; an entry that says it itself is refused.
    Raises ConfigError for a key that is missing, unknown or of a wrong kind.
    """
    for name in entry:
        if name not in {*_KEYS, *WITHOUT_EFFECT, "type", "rope_type", "rope_theta", "partial_rotary_factor"}:
            raise ConfigError(
                f"Unknown field '{name}' in {where}; known are {', '.join(sorted(_KEYS))}, and another one "
                "may change what is computed."
            )
    if entry.get("partial_rotary_factor") not in (None, 1):
        raise ConfigError(f"The field 'partial_rotary_factor' in {where} is not supported.")
    kind = _type(entry, where)
    read = READ.get(kind, _KEYS)  # RopeConfig refuses unknown types
    source = Fields({name: value for name, value in entry.items() if name in read}, where)
    original = None
    if _LENGTH in read:
        original = source.integer(_LENGTH, max_positions)
    factor = source.optional_number("factor")
    if factor is None and kind == "yarn" and original:
        factor = max_positions / original
    if factor is None and kind in ("linear", "dynamic", "llama3"):
        raise ConfigError(f"rope_type {kind} in {where} lacks the required field 'factor'.")
    attention_factor = source.optional_number("attention_factor")
    if kind == "longrope" and factor is not None:
        if attention_factor is None and original is not None and original > 1:
            attention_factor = longrope_scale(original, factor * original)
        factor = None  # it has no other use
    fast, slow = ("high_freq_factor", "low_freq_factor") if kind == "llama3" else ("beta_fast", "beta_slow")
    return RopeConfig(
        type=kind,  # type: ignore[arg-type]  # RopeConfig refuses unknown ones
        theta=Fields(entry, where).number("rope_theta", theta),
        factor=1.0 if factor is None else factor,
        original_max_position_embeddings=original,
        short_factor=source.numbers("short_factor"),
        long_factor=source.numbers("long_factor"),
        attention_factor=attention_factor,
        beta_fast=source.number(fast) if kind == "llama3" else source.optional_number(fast) or 32.0,
        beta_slow=source.number(slow) if kind == "llama3" else source.optional_number(slow) or 1.0,
        mscale=source.optional_number("mscale"),
        mscale_all_dim=source.optional_number("mscale_all_dim"),
        truncate=source.boolean("truncate", True),
        rotary_dim=rotary_dim,
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
    entry["attention_factor"] = rope.attention_factor
    if _LENGTH in READ[rope.type]:
        entry[_LENGTH] = rope.original_max_position_embeddings
    return {name: value for name, value in entry.items() if value is not None}


def override_rope(config: ModelConfig, override: Mapping[str, Any]) -> ModelConfig:
    """A config whose rotary embedding is changed on purpose, for prompts beyond the trained context.

    override: an object with the keys of a Hugging Face `rope_scaling` entry, plus
    `rope_theta` and `max_position_embeddings` (the new context). Keys that it leaves out keep their value
    when the type stays the same. Examples:

    * `{"rope_type": "yarn", "factor": 4}` on a plain Llama of 32768 tokens: 131072 tokens;
    * `{"long_factor": [...], "max_position_embeddings": 131072}` on MiniCPM4: replaces both factor lists,
      and leaves the factor on cos and sin as it was trained;
    * `{"max_position_embeddings": 131072}`: extrapolates with unchanged frequencies.

    Raises ConfigError for anything it does not understand.
    """
    data = {name: value for name, value in override.items() if name not in WITHOUT_EFFECT}
    source = Fields(data, _OVERRIDE)
    wanted = source.optional_integer("max_position_embeddings")
    data.pop("max_position_embeddings", None)
    old = config.rope
    kind = _type(data, _OVERRIDE) if "type" in data or "rope_type" in data else old.type
    for name in data:
        if name not in READ.get(kind, _KEYS) | {"type", "rope_type", "rope_theta", _LENGTH}:
            raise ConfigError(
                f"The field '{name}' in {_OVERRIDE} has no meaning for rope_type {kind}; it takes "
                f"{', '.join(sorted({*READ.get(kind, _KEYS), _LENGTH, 'rope_theta'}))} and "
                "max_position_embeddings."
            )
    trained = old.original_max_position_embeddings or config.max_position_embeddings
    if kind == "longrope":
        for one, other in (("long_factor", "short_factor"), ("short_factor", "long_factor")):
            data.setdefault(one, data.get(other))  # one list serves every length
            if data[one] is None:
                del data[one]
    if kind == old.type:
        merged = write_rope(old) or {}
        if kind == "longrope":
            # The factor on cos and sin belongs to training: other lists or a longer context leave it alone.
            merged.setdefault("attention_factor", longrope_scale(trained, config.max_position_embeddings))
            if "factor" in data:  # says what it is to be
                del merged["attention_factor"]
        data = {**merged, **data}
    data["rope_type"] = kind
    data.pop("type", None)
    data.setdefault("rope_theta", old.theta)
    if data.get(_LENGTH) is None:
        data[_LENGTH] = trained
    if wanted is None:
        entry = Fields(data, _OVERRIDE)
        stretched = kind in ("linear", "yarn", "dynamic") and "factor" in override
        wanted = round(entry.integer(_LENGTH) * entry.number("factor")) if stretched else None
    max_positions = config.max_position_embeddings if wanted is None else wanted
    rope = read_rope(data, _OVERRIDE, old.theta, max_positions, old.rotary_dim)
    if kind == "dynamic":
        # A config grows the base from its max_position_embeddings, which is the new context here.
        trained = Fields(data, _OVERRIDE).integer(_LENGTH)
        rope = replace(rope, original_max_position_embeddings=trained)
    return replace(config, rope=rope, max_position_embeddings=max_positions)


def _type(entry: Mapping[str, Any], where: str) -> str:
    """The entry's type by the name used here; `rope_type` counts more than the older `type`."""
    kinds = [
        _ALIASES.get(kind, kind) if isinstance(kind, str) else repr(kind)
        for kind in (entry.get("rope_type"), entry.get("type"))
        if kind
    ]
    if len(set(kinds)) > 1:
        notice(
            f"In {where} 'rope_type' says {kinds[0]} and 'type' says {kinds[1]}: {kinds[0]} is used, as "
            "transformers does."
        )
    return kinds[0] if kinds else "default"
