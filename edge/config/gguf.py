"""GGUF's metadata of a network: read and written.

Keys: the GGUF specification and llama.cpp's converter, in values as plain Python has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig, RopeConfig
from edge.config.families import Family, family_from_gguf, mup_scales, scaled_family
from edge.config.fields import Fields, head_size, listed, shown, unique
from edge.config.generation import read_generation_config
from edge.config.gguf_keys import FIXED, READ, WITHOUT_EFFECT
from edge.config.rope import longrope_scale, rope_parameters
from edge.config.rope_entry import read_rope
from edge.errors import ConfigError, ExportError
from edge.system.notices import notice

Metadata = dict[str, Any]
"""Python values by key: bool, int (written as uint32), float (float32), str, bytes (an array of uint8), and
lists of str, int (int32) or float (float32)."""

SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Sampling settings of a `generation_config.json` and their keys."""

_WHERE = "the GGUF metadata"
_ROPE_TYPES = ("none", "linear", "yarn", "longrope")
_MUP = ("embedding_scale", "residual_scale", "logit_scale")


def config_from_gguf(
    metadata: Mapping[str, Any],
    *,
    tie_word_embeddings: bool = False,
    short_factor: Sequence[float] = (),
    long_factor: Sequence[float] = (),
) -> ModelConfig:
    """Read GGUF metadata, a mapping from key to plain Python value; ConfigError names what is wrong.

    What GGUF keeps in tensors comes beside it: tie_word_embeddings (the file has no `output.weight`) and
    the rotary factors (`rope_factors_short.weight`, `rope_factors_long.weight`; for a `rope_freqs.weight`
    pass it as both).
    """
    architecture = Fields(metadata, _WHERE).text("general.architecture")
    family = family_from_gguf(architecture)
    source = Fields(metadata, _WHERE, f"{architecture}.")
    _check_fixed(source)
    hidden_size = source.integer("embedding_length")
    layers = source.integer("block_count")
    if layers <= 0:
        raise ConfigError(f"{architecture}.block_count must be a positive number, not {layers}.")
    heads = _same_in_all_layers(source, "attention.head_count")
    head_dim = head_size(source.optional_integer("attention.key_length"), hidden_size, heads)
    rotary_dim = source.integer("rope.dimension_count", head_dim)
    for name in ("attention.value_length", *(() if family.partial_rotary else ("rope.dimension_count",))):
        if source.integer(name, head_dim) != head_dim:
            raise ConfigError(
                f"The GGUF field '{architecture}.{name}' is {source.get(name)}, but only the head size "
                f"({head_dim}) is supported there."
            )
    special = Fields(metadata, _WHERE, "tokenizer.ggml.")
    tokens = special.texts("tokens")
    max_positions = source.integer("context_length")
    kv_heads = heads if source.get("attention.head_count_kv") is None else None
    experts = source.integer("expert_count", 0)
    embedding, residual, logit = mup_scales(source, _MUP, family)
    size = source.integer("vocab_size", len(tokens) or None)
    window = _window(source, family)
    stops = [_token(special, name, size) for name in ("eos", "eot", "eom")]
    return ModelConfig(
        model_type=family.model_type,
        vocab_size=size,
        hidden_size=hidden_size,
        intermediate_size=_same_in_all_layers(source, "feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or _same_in_all_layers(source, "attention.head_count_kv"),
        head_dim=head_dim,
        rms_norm_eps=_decimal(source.number("attention.layer_norm_rms_epsilon")),
        max_position_embeddings=max_positions,
        rope=replace(
            _read_rope(source, max_positions, short_factor, long_factor),
            rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        ),
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=_token(special, "bos", size),
        eos_token_ids=unique(stop for stop in stops if stop is not None),
        pad_token_id=_token(special, "padding", size),
        scale_emb=None if embedding is None else _decimal(embedding),
        # llama.cpp stores the finished factors: depth / sqrt(layers), and hidden / base by which it divides.
        scale_depth=None if residual is None else _invert(residual, lambda scale: scale * math.sqrt(layers)),
        dim_model_base=None if logit is None else _invert(logit, lambda scale: hidden_size / scale),
        num_experts=experts,
        num_experts_per_tok=source.integer("expert_used_count") if experts else 0,
        layers_without_rope=family.layers_without_rope(layers),
        sliding_window=window,
        sliding_layers=() if window is None else tuple(range(layers)),
    )


def gguf_architecture(config: ModelConfig) -> str:
    """What a GGUF file of the network says it is; ExportError if llama.cpp has nothing like it.

    Networks with muP scales and without are of two architectures where a family has a counterpart.
    """
    family = scaled_family(config)
    if family.gguf is None:
        raise ExportError(
            f"llama.cpp has no architecture for the model family {family.model_type}, so this model can't "
            "become a GGUF file; run it with --executor torch."
        )
    return family.gguf


def config_to_gguf(config: ModelConfig) -> Metadata:
    """The keys of the architecture; ExportError for a network that llama.cpp does not have."""
    name = gguf_architecture(config)
    if config.layers_without_rope != scaled_family(config).layers_without_rope(config.num_hidden_layers):
        raise ExportError(
            f"GGUF's architecture {name} can't say which layers do without RoPE, so this model can't become "
            "a GGUF file; run it with --executor torch."
        )
    width = config.num_attention_heads * config.head_dim
    if scaled_family(config).gguf_square and width != config.hidden_size:
        raise ExportError(
            f"GGUF's architecture {name} can't have heads of other sizes than hidden_size / "
            f"num_attention_heads (head_dim is {config.head_dim}), so this model can't become a GGUF file; "
            "run it with --executor torch."
        )
    values: Metadata = {
        "vocab_size": config.vocab_size,
        # Few architectures have windows, and llama.cpp ignores those of some; within one it has no effect.
        "context_length": config.longest_context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.rope.rotary_dim or config.head_dim,
        "rope.freq_base": float(config.rope.theta),
        **_write_rope(config),
    }
    if config.has_mup_scales:
        values |= {
            "embedding_scale": float(config.embedding_scale),
            "residual_scale": float(config.residual_scale),
            "logit_scale": 1 / config.logit_scale,  # llama.cpp divides by it
        }
    return {f"{name}.{key}": value for key, value in values.items()}


def gguf_rope_tensors(config: ModelConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Factors by which llama.cpp divides the frequencies, float32 [rotary_dim / 2], by tensor name."""
    rope = config.rope
    if rope.type == "longrope":
        return {
            "rope_factors_long.weight": np.array(rope.long_factor, np.float32),
            "rope_factors_short.weight": np.array(rope.short_factor, np.float32),
        }
    if rope.type == "llama3":
        length = config.max_position_embeddings
        rotated = rope.rotary_dim or config.head_dim
        frequencies, _ = rope_parameters(rope, rotated, length, length)
        exponents = np.arange(0, rotated, 2) / rotated
        return {"rope_freqs.weight": (rope.theta**-exponents / frequencies).astype(np.float32)}
    return {}


def sampling_to_gguf(generation_config: Mapping[str, Any]) -> Metadata:
    """`general.sampling.*` of the settings that GGUF knows."""
    settings = dict(read_generation_config(generation_config).settings)
    if settings.get("do_sample") is False:
        settings["temperature"] = 0.0  # how GGUF says it
    return {
        key: int(settings[name]) if name == "top_k" else float(settings[name])
        for name, key in SAMPLING_KEYS.items()
        if name in settings
    }


def _window(source: Fields, family: Family) -> int | None:
    """The sliding window of all layers: an architecture with others has a pattern, which is refused."""
    window = source.optional_integer("attention.sliding_window") or None
    if window is not None and family.windows is None:
        raise ConfigError(
            f"The GGUF field '{source.key('attention.sliding_window')}' is {window}, which is not supported."
        )
    return window


def _check_fixed(source: Fields) -> None:
    """Refuse what is known to change the arithmetic, and say what is not known at all."""
    for name, values in FIXED.items():
        value = source.get(name)
        found = value if isinstance(value, (list, tuple)) else [value]
        if any(each is not None and each not in values for each in found):
            raise ConfigError(
                f"The GGUF field '{source.key(name)}' is {shown(value)}, which is not supported."
            )
    known = {source.key(name) for name in (*READ, *FIXED, *WITHOUT_EFFECT)}
    unknown = sorted(key for key in source.data if key.startswith(source.prefix) and key not in known)
    if unknown:
        notice(f"{_WHERE} has fields that nothing is known of here and that are ignored: {listed(unknown)}.")


def _read_rope(
    source: Fields, max_positions: int, short_factor: Sequence[float], long_factor: Sequence[float]
) -> RopeConfig:
    theta = _decimal(source.number("rope.freq_base", 10000.0))
    factor = _rope_factor(source)
    kind = source.get("rope.scaling.type") or ("linear" if factor != 1.0 else "none")
    if kind not in _ROPE_TYPES:
        raise ConfigError(
            f"The GGUF field '{source.key('rope.scaling.type')}' is {shown(kind)}, but llama.cpp knows only "
            f"{listed(_ROPE_TYPES)}."
        )
    extrapolation = source.optional_number("rope.scaling.yarn_ext_factor")
    if extrapolation is not None and extrapolation >= 0 and extrapolation != (kind == "yarn"):
        raise ConfigError(
            f"The GGUF field '{source.key('rope.scaling.yarn_ext_factor')}' is {extrapolation}, which is not "
            f"supported with the rope type {kind}."
        )
    if len(short_factor) or len(long_factor):
        # Some converters write the factor tensors and no type; llama.cpp divides by the factor as well.
        if kind != "none" and factor != 1.0:
            raise ConfigError(
                f"{_WHERE} contradicts itself: '{source.key('rope.scaling.factor')}' is {factor} (rope type "
                f"{kind}), but the file has tensors of rotary factors, too; only one of them is supported."
            )
        kind = "longrope"
    attention = source.optional_number("rope.scaling.attn_factor")
    if attention not in (None, 1.0) and kind not in ("yarn", "longrope"):
        raise ConfigError(
            f"The GGUF field '{source.key('rope.scaling.attn_factor')}' is {attention}, which is not "
            f"supported with the rope type {kind}."
        )
    if kind == "yarn" and attention is not None and factor > 0:
        attention *= 1 + 0.1 * math.log(factor)  # llama.cpp multiplies both
    original = source.get("rope.scaling.original_context_length")
    if kind == "longrope" and attention is None and original not in (None, max_positions):
        attention = 1.0  # llama.cpp does not derive it from the lengths
    entry = {
        "rope_type": kind,
        "original_max_position_embeddings": original,
        "factor": None if kind == "longrope" else _decimal(factor),
        "attention_factor": None if attention is None else _decimal(attention),
        "short_factor": [float(value) for value in short_factor],
        "long_factor": [float(value) for value in long_factor],
        "beta_fast": source.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": source.get("rope.scaling.yarn_beta_slow"),
    }
    return read_rope(entry, _WHERE, theta, max_positions)


def _rope_factor(source: Fields) -> float:
    """llama.cpp's rule: the older key counts where the newer one is absent; 0 is as good as 1."""
    factor, older = (source.optional_number(name) for name in ("rope.scaling.factor", "rope.scale_linear"))
    if factor and older and factor != older:
        notice(
            f"{_WHERE} says the rotary factor twice: {factor} in '{source.key('rope.scaling.factor')}' is "
            f"used, as llama.cpp does, and {older} in '{source.key('rope.scale_linear')}' is not."
        )
    return (older if factor is None else factor) or 1.0


def _write_rope(config: ModelConfig) -> Metadata:
    rope = config.rope
    if rope.type == "dynamic":
        raise ExportError(
            "llama.cpp has no dynamic NTK rotary embedding (rope_type dynamic), so this model can't become a "
            "GGUF file; export it to bundle, onnx or executorch."
        )
    if rope.type in ("default", "llama3"):
        return {}
    values: Metadata = {"rope.scaling.type": rope.type}
    if rope.type in ("linear", "yarn"):
        values["rope.scaling.factor"] = float(rope.factor)
    if rope.original_max_position_embeddings is not None:
        values["rope.scaling.original_context_length"] = rope.original_max_position_embeddings
    if rope.type == "longrope":
        # llama.cpp does not derive this factor from the lengths.
        original = rope.original_max_position_embeddings or config.max_position_embeddings
        scale = rope.attention_factor
        if scale is None:
            scale = longrope_scale(original, config.max_position_embeddings)
        values["rope.scaling.attn_factor"] = float(scale)
    if rope.type == "yarn":
        if not rope.truncate:
            raise ExportError(
                "llama.cpp cuts YaRN's ramp at whole pairs, but this model's rope sets truncate to false; "
                "export it to bundle, onnx or executorch."
            )
        values |= {
            "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
            "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
        }
        if rope.attention_factor is not None or (rope.mscale and rope.mscale_all_dim):
            length = config.max_position_embeddings
            _, scale = rope_parameters(rope, config.head_dim, length, length)
            # llama.cpp multiplies its own 1 + 0.1 ln(factor) by this one.
            values["rope.scaling.attn_factor"] = scale / (1 + 0.1 * math.log(max(rope.factor, 1.0)))
    return values


def _token(special: Fields, role: str, size: int) -> int | None:
    """The token with a role; -1, as which llama.cpp writes none, may have become unsigned."""
    found = special.optional_integer(f"{role}_token_id")
    if found is None or found < 0 or found == 2**32 - 1:
        return None
    if found >= size:
        notice(f"{_WHERE} names the {role} token {found}, but has only {size} tokens: it is ignored.")
        return None
    return found


def _same_in_all_layers(source: Fields, name: str) -> int:
    if not isinstance(source.get(name), (list, tuple)):
        return source.integer(name)
    values = set(source.numbers(name))
    if len(values) != 1:
        raise ConfigError(f"The GGUF field '{name}' differs between layers, which is not supported.")
    return int(values.pop())


def _decimal(value: float) -> float:
    """The shortest decimal that a float32 stands for: 1e-05 rather than 9.999999747378752e-06."""
    with np.errstate(over="ignore"):  # infinity is refused by the field's name
        return float(str(np.float32(value)))


def _invert(scale: float, inverse: Callable[[float], float]) -> float:
    """`inverse(scale)`, rounded to the figure that a person wrote (float32 storage lost the last digits)."""
    return float(f"{inverse(scale):.6g}") if scale > 0 else scale  # ModelConfig refuses it by its name
