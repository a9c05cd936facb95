"""The peer that the reference is compared with: transformers' Llama, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edge.config import ModelConfig


@pytest.fixture(scope="session")
def llama() -> Callable[..., LlamaForCausalLM]:
    """`llama(config, rope_parameters)`: an untied LlamaForCausalLM of that shape, every tensor random."""

    def make(config: ModelConfig, rope_parameters: dict[str, Any] | None = None) -> LlamaForCausalLM:
        torch.manual_seed(7)
        peer = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                rms_norm_eps=config.rms_norm_eps,
                max_position_embeddings=config.max_position_embeddings,
                rope_parameters=rope_parameters or {"rope_type": "default", "rope_theta": config.rope.theta},
                tie_word_embeddings=False,
                attn_implementation="eager",
            )
        )
        for name, tensor in peer.named_parameters():
            low, high = (0.5, 1.5) if "norm" in name else (-0.15, 0.15)
            torch.nn.init.uniform_(tensor, low, high)
        return peer.eval().requires_grad_(False)

    return make
