"""Small networks and files in Hugging Face's forms, for tests to vary."""

from __future__ import annotations

from typing import Any

from edge.config import ModelConfig, RopeConfig

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


def one_layer(vocab_size: int = 400, **changes: Any) -> ModelConfig:
    """A Llama of one layer without special tokens, for tests to which only its vocabulary matters."""
    fields: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "rope": RopeConfig(),
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_ids": (),
    }
    return ModelConfig(**{**fields, **changes})


class Recorded(dict[str, Any]):
    """A mapping that remembers what it was asked for."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)
