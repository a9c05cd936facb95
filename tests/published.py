"""`config.json` of published models, field by field, and folders with such a file and small random weights.

Templates are short ones in the manner of the published ones, with the same marks and constructs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

from edge.config.huggingface import config_from_hf
from edge.config.tensors import expected_tensors
from tests.configs import TOKENIZER
from tests.tool_templates import MINICPM5

_USUAL: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_MINICPM5: dict[str, Any] = {
    **_USUAL,
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": [1, 130073],
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 5000000, "rope_type": "default"},
    "tie_word_embeddings": False,
    "transformers_version": "5.6.2",
    "vocab_size": 130560,
}
_QWEN: dict[str, Any] = {
    **_USUAL,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
_MISTRAL: dict[str, Any] = {
    **_USUAL,
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "minicpm4.1-8b": {
        **_USUAL,
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMConfig"},
        "bos_token_id": 1,
        "dim_model_base": 256,
        "eos_token_id": [2, 73440],
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "max_position_embeddings": 65536,
        "model_type": "minicpm",
        "mup_denominator": 32,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "rope_type": "longrope",
            "long_factor": [1.0] * 64,
            "short_factor": [1.0] * 64,
            "original_max_position_embeddings": 65536,
        },
        "rope_theta": 10000.0,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "tie_word_embeddings": False,
        "vocab_size": 73448,
    },
    "minicpm5-1b": {
        **_MINICPM5,
        **{"hidden_size": 1536, "intermediate_size": 4608, "num_hidden_layers": 24},
    },
    "minicpm5-2b": {
        **_MINICPM5,
        **{"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 42},
    },
    "qwen3-0.6b": {
        **_QWEN,
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rope_scaling": None,
        "sliding_window": None,
    },
    "qwen2.5-0.5b": {
        **_QWEN,
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "sliding_window": 32768,
    },
    "smollm3-3b": {
        **_USUAL,
        "architectures": ["SmolLM3ForCausalLM"],
        "bos_token_id": 128000,
        "eos_token_id": 128012,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "mlp_bias": False,
        "model_type": "smollm3",
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "pad_token_id": 128004,
        "pretraining_tp": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 128256,
    },
    "phi-4-mini": {
        **_USUAL,
        "architectures": ["Phi3ForCausalLM"],
        "bos_token_id": 199999,
        "embd_pdrop": 0.0,
        "eos_token_id": 199999,
        "full_attn_mod": 1,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "phi3",
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 199999,
        "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "vocab_size": 200064,
    },
    "llama-3.2-1b": {
        **_USUAL,
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "mistral-7b": {**_MISTRAL, "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768},
    "mistral-7b-v0.1": {**_MISTRAL, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
}
MINICPM41 = """
{%- for m in messages %}
    {%- set content = m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' else m.content %}
    {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
SETTINGS = {"do_sample": True, "temperature": 0.9, "top_p": 0.95}
"""MiniCPM5-1B's with thinking, as its authors advise."""
VOCABULARY = 280
_SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_key_value_heads": 2}
_CALLS = ("<function", "</function>", "<param", "</param>", "<think>", "</think>")


def write_folder(folder: Path, name: str) -> Path:
    """A small model of one of the MiniCPM versions, whose end of a turn is the network's second end token.

    Its control tokens are those of the version: in MiniCPM5 the tags of calls and thinking are some.
    """
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    special += _CALLS if name.startswith("minicpm5") else ()
    ids = {text: 256 + at for at, text in enumerate(special)}
    config = {
        **PUBLISHED[name],
        **_SMALL,
        "num_attention_heads": 4,
        "head_dim": 16,
        "vocab_size": VOCABULARY,
        "bos_token_id": ids["<s>"],
        "eos_token_id": [ids["</s>"], ids["<|im_end|>"]],
        "pad_token_id": ids["</s>"],
    }
    if config.get("rope_scaling"):
        factors = {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
        config["rope_scaling"] = {**config["rope_scaling"], **factors}
    generation = {
        **SETTINGS,
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "transformers_version": "5.6.2",
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    letters = {letter: at for at, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = {
        **TOKENIZER,
        "added_tokens": [{"id": ids[text], "content": text, **flags} for text in special],
        "model": {"type": "BPE", "vocab": {**letters, **ids}, "merges": []},
    }
    roles = {"bos_token": "<s>", "eos_token": "<|im_end|>", "add_bos_token": True}
    folder.mkdir(parents=True)
    documents = {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": roles,
    }
    for file, document in documents.items():
        (folder / file).write_text(json.dumps(document), encoding="utf-8")
    template = MINICPM41 if name.startswith("minicpm4") else MINICPM5
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    generator = np.random.default_rng(5)
    save_file(
        {
            tensor: (generator.standard_normal(shape) / 8).astype(np.float16)
            for tensor, shape in expected_tensors(config_from_hf(config)).items()
        },
        folder / "model.safetensors",
    )
    return folder
