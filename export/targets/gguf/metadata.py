"""GGUF metadata of a network: llama.cpp's keys for the `llama` and `minicpm` architectures.

The inverse of `edge.config.sources.config_from_gguf`; key names follow the GGUF specification and llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.config.rope import longrope_scale, rope_parameters
from edge.errors import ExportError

Metadata = dict[str, Any]
"""Python values by key: bool, int (written as uint32), float (float32), str, bytes (an array of uint8), and
lists of str, int (int32) or float (float32)."""

_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
_WHOLE = ("top_k",)


def architecture(config: ModelConfig) -> str:
    """`minicpm` where the network has muP scales, else `llama`."""
    scales = (config.scale_emb, config.scale_depth, config.dim_model_base)
    return "llama" if all(scale is None for scale in scales) else "minicpm"


def network_metadata(config: ModelConfig) -> Metadata:
    """The keys of the architecture; ExportError for a rotary embedding that llama.cpp does not have."""
    name = architecture(config)
    values: Metadata = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope.theta),
        **_rope(config),
    }
    if name == "minicpm":
        values |= {
            "embedding_scale": float(config.embedding_scale),
            "residual_scale": float(config.residual_scale),
            "logit_scale": 1 / config.logit_scale,  # llama.cpp divides by it
        }
    return {f"{name}.{key}": value for key, value in values.items()}


def rope_tensors(config: ModelConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Factors by which llama.cpp divides the frequencies, float32 [head_dim / 2], by tensor name."""
    rope = config.rope
    if rope.type == "longrope":
        return {
            "rope_factors_long.weight": np.array(rope.long_factor, np.float32),
            "rope_factors_short.weight": np.array(rope.short_factor, np.float32),
        }
    if rope.type == "llama3":
        length = config.max_position_embeddings
        frequencies, _ = rope_parameters(rope, config.head_dim, length, length)
        exponents = np.arange(0, config.head_dim, 2) / config.head_dim
        return {"rope_freqs.weight": (rope.theta**-exponents / frequencies).astype(np.float32)}
    return {}


def sampling_metadata(generation_config: Mapping[str, Any]) -> Metadata:
    """`general.sampling.*` of the settings that GGUF knows."""
    return {
        key: int(generation_config[name]) if name in _WHOLE else float(generation_config[name])
        for name, key in _SAMPLING.items()
        if isinstance(generation_config.get(name), (int, float))
    }


def _rope(config: ModelConfig) -> Metadata:
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
