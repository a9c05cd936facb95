"""Reads a `ModelConfig` from what others write: Hugging Face's `config.json`, GGUF metadata, a RoPE override.

Only networks that the decoder computes exactly are let through. Whatever would change the arithmetic and is
not known here (biases, another activation, sliding windows, lightning attention) is refused by name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from edge.config import ModelConfig, RopeConfig, SparseConfig
from edge.config.rope import longrope_scale
from edge.errors import ConfigError

_ARCHITECTURES = {"minicpm": "MiniCPMForCausalLM", "llama": "LlamaForCausalLM"}

# Keys that change the network, with the only values that mean "as in Llama".
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "sliding_window": (),
    "mixer_types": (),
    "lightning_nh": (),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "use_output_gate": (False,),
    "attn_use_output_gate": (False,),
    "attention_multiplier": (),
    "final_logit_softcapping": (),
    "q_lora_rank": (),
    "kv_lora_rank": (),
}

_ROPE_FIELDS = {
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
_ROPE_ALIASES = {"su": "longrope", "ntk": "dynamic", "none": "default"}


class _Fields:
    """Typed access to a mapping from outside; every failure names the field and where it was looked for."""

    def __init__(self, data: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self._data, self._where, self._prefix = data, where, prefix

    def get(self, name: str) -> Any:
        """The value, or None when it is absent or null."""
        return self._data.get(self._prefix + name)

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._required(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
            raise self._wrong(name, "an integer", value)
        return value

    def optional_integer(self, name: str) -> int | None:
        return None if self.get(name) is None else self.integer(name)

    def number(self, name: str, default: float | None = None) -> float:
        value = self._required(name, default)
        if not _is_number(value):
            raise self._wrong(name, "a number", value)
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return None if self.get(name) is None else self.number(name)

    def boolean(self, name: str, default: bool) -> bool:
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def text(self, name: str) -> str:
        value = self._required(name, None)
        if not isinstance(value, str):
            raise self._wrong(name, "a text", value)
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        values = self._list(name, "a list of numbers")
        if not all(_is_number(value) for value in values):
            raise self._wrong(name, "a list of numbers", values)
        return tuple(float(value) for value in values)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._list(name, "a list of texts")
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(name, "a list of texts", values)
        return values

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them."""
        value = self.get(name)
        values = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
            raise self._wrong(name, "a token id or a list of them", value)
        return _unique(values)

    def _list(self, name: str, wanted: str) -> tuple[Any, ...]:
        values = self.get(name)
        if values is not None and not isinstance(values, (list, tuple)):
            raise self._wrong(name, wanted, values)
        return tuple(values or ())

    def _required(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"{self._where} lacks the required field '{self._prefix}{name}'.")
        return value

    def _wrong(self, name: str, wanted: str, value: Any) -> ConfigError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return ConfigError(
            f"The field '{self._prefix}{name}' of {self._where} must be {wanted}, not {shown}."
        )


def config_from_hf(data: Mapping[str, Any]) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    source = _Fields(data, "config.json")
    model_type = source.text("model_type")
    supported = _ARCHITECTURES.get(model_type)
    architectures = source.texts("architectures") or (supported,)
    if supported is None or supported not in architectures:
        name = model_type if supported is None else architectures[0]
        raise ConfigError(
            f"The architecture '{name}' (fields 'model_type' and 'architectures') is not supported; "
            f"supported are {' and '.join(_ARCHITECTURES.values())}."
        )
    for name, neutral in _NEUTRAL.items():
        value = data.get(name)
        if value is not None and value not in neutral:
            raise ConfigError(f"The field '{name}' of config.json is {value!r}, which is not supported.")
    if any(kind != "full_attention" for kind in source.texts("layer_types")):
        raise ConfigError("The field 'layer_types' of config.json has other layers than 'full_attention'.")

    hidden_size = source.integer("hidden_size")
    heads = source.integer("num_attention_heads")
    max_positions = source.integer("max_position_embeddings")
    scales = _mup_scales(source, ("scale_emb", "scale_depth", "dim_model_base"))
    pad = source.optional_integer("pad_token_id")
    experts = source.integer("num_experts", source.optional_integer("num_local_experts") or 0)
    return ModelConfig(
        model_type=model_type,
        vocab_size=source.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=source.integer("intermediate_size"),
        num_hidden_layers=source.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=source.integer("num_key_value_heads", heads),
        head_dim=_head_dim(source.optional_integer("head_dim"), hidden_size, heads),
        rms_norm_eps=source.number("rms_norm_eps"),
        max_position_embeddings=max_positions,
        rope=_hf_rope(data, max_positions),
        tie_word_embeddings=source.boolean("tie_word_embeddings", model_type == "minicpm"),
        bos_token_id=source.optional_integer("bos_token_id"),
        eos_token_ids=source.ids("eos_token_id"),
        pad_token_id=pad if pad is None or pad >= 0 else None,  # Llama writes -1 for "none"
        scale_emb=scales[0],
        scale_depth=scales[1],
        dim_model_base=scales[2],
        sparse=_sparse(data.get("sparse_config")),
        num_experts=experts,
        num_experts_per_tok=source.integer("num_experts_per_tok") if experts else 0,
    )


def config_from_gguf(
    metadata: Mapping[str, Any],
    *,
    tie_word_embeddings: bool,
    short_factor: Sequence[float],
    long_factor: Sequence[float],
) -> ModelConfig:
    """See `ModelConfig.from_gguf`. Keys: the GGUF specification and llama.cpp's converter."""
    general = _Fields(metadata, "the GGUF metadata")
    architecture = general.text("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ConfigError(
            f"The GGUF architecture '{architecture}' (field 'general.architecture') is not supported; "
            f"supported are {' and '.join(_ARCHITECTURES)}."
        )
    source = _Fields(metadata, "the GGUF metadata", f"{architecture}.")
    hidden_size = source.integer("embedding_length")
    layers = source.integer("block_count")
    if layers <= 0:
        raise ConfigError(f"{architecture}.block_count must be a positive number, not {layers}.")
    heads = _same_in_all_layers(source, "attention.head_count")
    head_dim = _head_dim(source.optional_integer("attention.key_length"), hidden_size, heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if source.integer(name, head_dim) != head_dim:
            raise ConfigError(
                f"The GGUF field '{architecture}.{name}' is {source.get(name)}, but only the head size "
                f"({head_dim}) is supported there."
            )
    special = _Fields(metadata, "the GGUF metadata", "tokenizer.ggml.")
    tokens = special.texts("tokens")
    max_positions = source.integer("context_length")
    kv_heads = heads if source.get("attention.head_count_kv") is None else None
    experts = source.integer("expert_count", 0)
    embedding, residual, logit = _mup_scales(
        source, ("embedding_scale", "residual_scale", "logit_scale"), required=architecture == "minicpm"
    )
    stops = [special.optional_integer(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    return ModelConfig(
        model_type=architecture,
        vocab_size=source.integer("vocab_size", len(tokens) or None),
        hidden_size=hidden_size,
        intermediate_size=_same_in_all_layers(source, "feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or _same_in_all_layers(source, "attention.head_count_kv"),
        head_dim=head_dim,
        rms_norm_eps=_decimal(source.number("attention.layer_norm_rms_epsilon")),
        max_position_embeddings=max_positions,
        rope=_gguf_rope(source, max_positions, short_factor, long_factor),
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=special.optional_integer("bos_token_id"),
        eos_token_ids=_unique(stop for stop in stops if stop is not None),
        pad_token_id=special.optional_integer("padding_token_id"),
        scale_emb=None if embedding is None else _decimal(embedding),
        # llama.cpp stores the finished factors: depth / sqrt(layers), and hidden / base by which it divides.
        scale_depth=None if residual is None else _invert(residual, lambda scale: scale * math.sqrt(layers)),
        dim_model_base=None if logit is None else _invert(logit, lambda scale: hidden_size / scale),
        num_experts=experts,
        num_experts_per_tok=source.integer("expert_used_count") if experts else 0,
    )


def override_rope(config: ModelConfig, override: Mapping[str, Any]) -> tuple[RopeConfig, int]:
    """The rotary embedding and context that `ModelConfig.with_rope_override` asks for."""
    data = dict(override)
    data.pop("comment", None)
    source = _Fields(data, "the RoPE override")
    wanted = source.optional_integer("max_position_embeddings")
    data.pop("max_position_embeddings", None)
    known = _ROPE_FIELDS | {"type", "rope_type", "rope_theta"}
    for name in data:
        if name not in known:
            raise ConfigError(
                f"Unknown field '{name}' in the RoPE override; known are {', '.join(sorted(known))}."
            )

    old = config.rope
    kind = _rope_type(data) if "type" in data or "rope_type" in data else old.type
    trained = old.original_max_position_embeddings or config.max_position_embeddings
    if kind == "longrope":
        for one, other in (("long_factor", "short_factor"), ("short_factor", "long_factor")):
            data.setdefault(one, data.get(other))  # one list serves every length
            if data[one] is None:
                del data[one]
    if kind == old.type:
        merged = {field.name: getattr(old, field.name) for field in fields(old) if field.name in _ROPE_FIELDS}
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
        wanted = round(trained * _Fields(data, "the RoPE override").number("factor")) if stretched else None
    max_positions = config.max_position_embeddings if wanted is None else wanted
    return _rope(data, "the RoPE override", old.theta, max_positions), max_positions


def _hf_rope(data: Mapping[str, Any], max_positions: int) -> RopeConfig:
    where = "rope_parameters" if data.get("rope_parameters") is not None else "rope_scaling"
    entry = data.get(where) or {}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"The field '{where}' of config.json must be an object, not {entry!r}.")
    if any(isinstance(value, Mapping) for value in entry.values()):
        raise ConfigError(f"The field '{where}' of config.json differs between kinds of layers.")
    entry = {**entry}
    if entry.get("original_max_position_embeddings") is None:  # older files keep it at the top
        entry["original_max_position_embeddings"] = data.get("original_max_position_embeddings")
    if entry.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ConfigError("The field 'partial_rotary_factor' of config.json is not supported.")
    theta = _Fields(data, "config.json").number("rope_theta", 10000.0)
    return _rope(entry, f"'{where}' of config.json", theta, max_positions)


def _rope(entry: Mapping[str, Any], where: str, theta: float, max_positions: int) -> RopeConfig:
    """A RopeConfig from the keys of a Hugging Face `rope_scaling` or `rope_parameters` entry."""
    source = _Fields(entry, where)
    kind = _rope_type(entry)
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


def _ramp_end(source: _Fields, kind: str, name: str, llama3_name: str, default: float) -> float:
    if kind == "llama3":
        return source.number(llama3_name, source.optional_number(name))
    return source.optional_number(name) or default


def _rope_type(entry: Mapping[str, Any]) -> str:
    kind = entry.get("rope_type") or entry.get("type") or "default"
    return _ROPE_ALIASES.get(kind, kind) if isinstance(kind, str) else repr(kind)


def _gguf_rope(
    source: _Fields, max_positions: int, short_factor: Sequence[float], long_factor: Sequence[float]
) -> RopeConfig:
    theta = _decimal(source.number("rope.freq_base", 10000.0))
    entry: dict[str, Any] = {
        "original_max_position_embeddings": source.get("rope.scaling.original_context_length")
    }
    factor = (
        source.optional_number("rope.scaling.factor") or source.optional_number("rope.scale_linear") or 1.0
    )
    kind = source.get("rope.scaling.type") or ("linear" if factor != 1.0 else "none")
    if len(short_factor) or len(long_factor):
        kind = "longrope"  # some converters write the factor tensors and no type
    attention = source.optional_number("rope.scaling.attn_factor")
    if kind == "yarn" and attention is not None and factor > 0:
        attention *= 1 + 0.1 * math.log(factor)  # llama.cpp multiplies both
    entry |= {
        "rope_type": kind,
        "factor": _decimal(factor),
        "attention_factor": None if attention is None else _decimal(attention),
        "short_factor": [float(value) for value in short_factor],
        "long_factor": [float(value) for value in long_factor],
        "beta_fast": source.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": source.get("rope.scaling.yarn_beta_slow"),
    }
    return _rope(entry, "the GGUF metadata", theta, max_positions)


def _sparse(data: Any) -> SparseConfig | None:
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise ConfigError(f"The field 'sparse_config' of config.json must be an object, not {data!r}.")
    known = {field.name for field in fields(SparseConfig)}
    for name in data:
        if name not in known:
            raise ConfigError(f"Unknown field 'sparse_config.{name}'; known are {', '.join(sorted(known))}.")
    source = _Fields(data, "sparse_config")
    flags = ("use_nope", "exact_lse")
    values: dict[str, Any] = {
        name: source.boolean(name, False) if name in flags else source.integer(name) for name in data
    }
    return SparseConfig(**values)


def _mup_scales(source: _Fields, names: Iterable[str], required: bool = False) -> list[float | None]:
    """The three muP scales; with only some of them a missing one would silently be 1: refused."""
    names = list(names)
    if required or any(source.get(name) is not None for name in names):
        return [source.number(name) for name in names]
    return [None for _ in names]


def _head_dim(value: int | None, hidden_size: int, heads: int) -> int:
    if heads <= 0:
        raise ConfigError(f"num_attention_heads must be a positive number, not {heads}.")
    if value is not None:
        return value
    if hidden_size % heads:
        raise ConfigError(f"hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({heads}).")
    return hidden_size // heads


def _same_in_all_layers(source: _Fields, name: str) -> int:
    if not isinstance(source.get(name), (list, tuple)):
        return source.integer(name)
    values = set(source.numbers(name))
    if len(values) != 1:
        raise ConfigError(f"The GGUF field '{name}' differs between layers, which is not supported.")
    return int(values.pop())


def _is_number(value: Any) -> bool:
    """Whether a value is a number within the range of a float."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _unique(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(values))


def _decimal(value: float) -> float:
    """The shortest decimal that a float32 stands for: 1e-05 rather than 9.999999747378752e-06."""
    with np.errstate(over="ignore"):  # infinity is refused by the field's name
        return float(str(np.float32(value)))


def _invert(scale: float, inverse: Any) -> float:
    """`inverse(scale)`, rounded to the figure that a person wrote (float32 storage lost the last digits)."""
    return float(f"{inverse(scale):.6g}") if scale > 0 else scale  # ModelConfig refuses it by its name
