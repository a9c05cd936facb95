"""`config.json` as Hugging Face's tools read it: the inverse of `ModelConfig.from_hf`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edge.config import ModelConfig, RopeConfig

_ARCHITECTURES = {"minicpm": "MiniCPMForCausalLM", "llama": "LlamaForCausalLM"}


def config_to_hf(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The contents of a `config.json`; dtype: what most weights are stored in, in torch's words."""
    data: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
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
        "rope_scaling": _rope_scaling(config.rope),
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
        data |= {"num_experts": config.num_experts, "num_experts_per_tok": config.num_experts_per_tok}
    return {name: value for name, value in data.items() if value is not None}


def _rope_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    if rope.type == "default":
        return None
    fields: dict[str, Any] = {"rope_type": rope.type}
    if rope.type != "longrope":
        fields["factor"] = rope.factor
    if rope.type == "longrope":
        fields |= {"short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
    if rope.type == "llama3":
        fields |= {"high_freq_factor": rope.beta_fast, "low_freq_factor": rope.beta_slow}
    if rope.type == "yarn":
        fields |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        fields |= {"mscale": rope.mscale, "mscale_all_dim": rope.mscale_all_dim}
    fields |= {
        "attention_factor": rope.attention_factor,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
    }
    return {name: value for name, value in fields.items() if value is not None}
