"""Small files in Hugging Face's forms, for tests to vary."""

from __future__ import annotations

from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": -1,
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 1000,
}

_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": _LEVEL,
    "post_processor": None,
    "decoder": _LEVEL,
    "model": {"type": "BPE", "vocab": {chr(75 + token): token for token in range(48)}, "merges": []},
}
"""A tokenizer.json that can be opened beside any network: the letters from K to z are its tokens."""
