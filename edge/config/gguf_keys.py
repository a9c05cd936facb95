"""What becomes of every key that a GGUF file may have of its architecture: read, refused or without effect.

Keys stand here without the architecture that they begin with; llama.cpp's list is in the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

READ = (
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "expert_count", "expert_used_count"),
    *("embedding_scale", "residual_scale", "logit_scale", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor"),
    *("rope.scaling.original_context_length", "rope.scaling.yarn_ext_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "attention.sliding_window"),
)
"""Keys of an architecture that make the network."""

FIXED: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.sliding_window_pattern": (0, 1, False),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "activation_sparsity_scale": (0,),
    "full_attention_interval": (0, 1),
    "swin_norm": (False,),
    "use_parallel_residual": (False,),
    "rescale_every_n_layers": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "leading_dense_block_count": (0,),
    "moe_every_n_layers": (0,),
    "interleave_moe_layer_step": (0, 1),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "rope.dimension_sections": (),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.scaling.yarn_attn_factor": (1,),
}
"""Keys of an architecture that change the arithmetic, with the only values that are computed; of a list,
every value."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "attention.layer_norm_epsilon": "of layer norms, and these networks have RMS norms",
    "attention.group_norm_epsilon": "of group norms",
    "attention.group_norm_groups": "of group norms",
    "rope.scaling.finetuned": "a remark",
    "rope.freq_base_swa": "of sliding windows, which are not computed",
    "rope.dimension_count_swa": "of sliding windows",
    "attention.key_length_swa": "of sliding windows",
    "attention.value_length_swa": "of sliding windows",
    "attention.key_length_mla": "of low-rank attention, which is refused",
    "attention.value_length_mla": "of low-rank attention",
    "embedding_length_out": "of embedding models",
    "pooling_type": "of embedding models",
    "classifier.output_labels": "of classifiers",
    "tensor_data_layout": "a remark of old converters: how q and k are ordered, which the architecture says",
    "expert_feed_forward_length": "of experts, which are refused by their tensors",
    "expert_shared_feed_forward_length": "of shared experts, which are refused",
    "expert_group_used_count": "of expert groups, which are refused",
    "expert_weights_norm": "of experts",
    "expert_gating_func": "of experts",
    "nextn_predict_layers": "draft layers, whose tensors are refused",
}
"""Keys of an architecture that do not change what the networks read here compute, and why."""
