"""Small random networks of every declared family, by transformers' own classes, every field in use."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import transformers

EXACT = 5e-5  # of the truth's standard deviation, as in tests/correctness
LENGTH = 300
CONTEXT = 512
TOKENS = torch.arange(LENGTH) * 7 % 264
LISTS = {
    "short_factor": [1 + i / 32 for i in range(24)],
    "long_factor": [1 + i / 4 for i in range(24)],
}


class Case(NamedTuple):
    """A network of a family. name: of its class in transformers. fields: beside those of `SMALL`."""

    name: str
    fields: dict[str, Any]


SMALL = {
    "vocab_size": 264,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": [2, 5],
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
WIDE = {"head_dim": 64}  # not hidden_size / heads
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}


def longrope(original: int, partial: float = 0.75) -> dict[str, Any]:
    """Phi-4-mini's entry for heads of 64, whose regime the lengths decide."""
    lists = LISTS if partial != 1 else {name: values + [3.0] * 8 for name, values in LISTS.items()}
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {
            **{"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": partial},
            **lists,
        },
    }


CASES = {
    "llama-3.2": Case("Llama", {**WIDE, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "minicpm5": Case("Llama", {**WIDE, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}),
    "mistral": Case("Mistral", {**WIDE, "sliding_window": None}),
    "mistral-window": Case("Mistral", {"sliding_window": LENGTH}),
    "qwen2": Case("Qwen2", {"rope_parameters": YARN}),
    "qwen2-tied": Case("Qwen2", {"tie_word_embeddings": True, "use_sliding_window": True}),
    "qwen2-upper": Case(
        "Qwen2", {"use_sliding_window": True, "sliding_window": LENGTH, "max_window_layers": 2}
    ),
    "qwen3": Case("Qwen3", {**WIDE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3-tied": Case("Qwen3", {"head_dim": 32, "tie_word_embeddings": True, "rope_parameters": YARN}),
    "smollm3": Case("SmolLM3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}),
    "smollm3-list": Case("SmolLM3", {"no_rope_layers": [1, 0, 0, 1], "tie_word_embeddings": True}),
    "smollm3-some": Case("SmolLM3", {"use_sliding_window": True, "sliding_window": LENGTH}),
    "phi3": Case("Phi3", {"head_dim": 64, "sliding_window": 2048}),
    "phi3-partial": Case("Phi3", {"num_attention_heads": 2, "rope_parameters": PARTIAL}),
    "phi3-short": Case("Phi3", {"num_attention_heads": 2, "tie_word_embeddings": True, **longrope(CONTEXT)}),
    "phi3-long": Case("Phi3", {"num_attention_heads": 2, **longrope(256)}),
    "phi3-whole-heads": Case("Phi3", {"num_attention_heads": 2, **longrope(256, partial=1)}),
}


def theirs(case: Case) -> Any:
    """A random network of transformers; norms and biases are not what they begin as."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.name}Config")(**{**SMALL, **copy.deepcopy(case.fields)})
    model = getattr(transformers, f"{case.name}ForCausalLM")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.add_(noise * (0.2 if parameter.dim() == 1 else 0.07))
    return model


def largest_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).abs().max() / truth.std())
