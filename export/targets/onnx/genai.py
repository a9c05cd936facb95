"""`genai_config.json`: what onnxruntime-genai must know of a portable artifact to run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edge.config import ModelConfig
from edge.config.generation import read_generation_config
from edge.executors.onnx.flavours import SESSION_ENTRIES
from edge.export.targets.onnx.graph import MODEL_FILE

GENAI_CONFIG = "genai_config.json"
_SAMPLING = {"do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
"""What holds where the model says nothing: greedy, and every filter that it does not name is off."""


def genai_config(config: ModelConfig, context: int, generation_config: Mapping[str, Any]) -> bytes:
    """The file's contents; sampling defaults are those of the model's generation config."""
    end = list(config.eos_token_ids)
    padding = end[0] if config.pad_token_id is None else config.pad_token_id
    caches = {
        f"{time}_{part}_names": f"{prefix}.%d.{part}"
        for time, prefix in (("past", "past_key_values"), ("present", "present"))
        for part in ("key", "value")
    }
    inputs = {name: value for name, value in caches.items() if name.startswith("past")}
    outputs = {name: value for name, value in caches.items() if name.startswith("present")}
    settings = read_generation_config(generation_config).settings
    search = {name: settings.get(name, default) for name, default in _SAMPLING.items()}
    document = {
        "model": {
            "type": "llama",  # a decoder of that shape; muP scales are in the graph
            "bos_token_id": end[0] if config.bos_token_id is None else config.bos_token_id,
            "eos_token_id": end,
            "pad_token_id": padding,
            "vocab_size": config.vocab_size,
            "context_length": context,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [],
                    **SESSION_ENTRIES,
                },
                "filename": MODEL_FILE,
                "hidden_size": config.hidden_size,
                "head_size": config.head_dim,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_key_value_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **inputs},
                "outputs": {"logits": "logits", **outputs},
            },
        },
        "search": {
            **search,
            "min_length": 0,
            "max_length": context,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
        },
    }
    return json.dumps(document, indent=1).encode()
