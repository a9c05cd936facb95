"""Drafts as public programs write them, small: names, types and files are theirs, sizes are ours.

The checkpoints themselves (OpenBMB's, SafeAILab's) are not at hand where these tests run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from edge.config import ModelConfig, RopeConfig
from edge.model.network.multi_token import MultiTokenPrediction

State = dict[str, torch.Tensor]


def minicpm_target(**changes: Any) -> ModelConfig:
    """A MiniCPM of two layers with all muP scales; 203 tokens are no multiple of 16, 144 not of 64."""
    fields: dict[str, Any] = {
        "model_type": "minicpm",
        "vocab_size": 203,
        "hidden_size": 144,
        "intermediate_size": 272,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        "rope": RopeConfig(theta=5e5),
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_ids": (2, 90),
        "scale_emb": 12.0,
        "scale_depth": 0.8,
        "dim_model_base": 32.0,
    }
    return ModelConfig(**{**fields, **changes})


def llama_target(**changes: Any) -> ModelConfig:
    """The same without muP scales."""
    plain = {"model_type": "llama", "scale_emb": None, "scale_depth": None, "dim_model_base": None}
    return minicpm_target(**{**plain, **changes})


def draft_fields(target: ModelConfig, **changes: Any) -> dict[str, Any]:
    """A config.json like those of public drafts: the target's with one layer; None leaves a field out."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    names += ("head_dim", "rms_norm_eps", "max_position_embeddings", "scale_emb", "scale_depth")
    data = {
        "architectures": ["MiniCPMForCausalLM" if target.has_mup_scales else "LlamaForCausalLM"],
        "model_type": target.model_type,
        "hidden_act": "silu",
        "num_hidden_layers": 1,
        "dim_model_base": target.dim_model_base,
        **{name: getattr(target, name) for name in names},
        **changes,
    }
    return {name: value for name, value in data.items() if value is not None}


def layer_state(target: ModelConfig, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> State:
    """`fc.weight` and the matrices and the second norm of layer 0, as all public drafts call them."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = target.hidden_size, target.intermediate_size
    queries = target.num_attention_heads * target.head_dim
    keys = target.num_key_value_heads * target.head_dim
    shapes = {
        "fc.weight": (hidden, 2 * hidden),
        "layers.0.self_attn.q_proj.weight": (queries, hidden),
        "layers.0.self_attn.k_proj.weight": (keys, hidden),
        "layers.0.self_attn.v_proj.weight": (keys, hidden),
        "layers.0.self_attn.o_proj.weight": (hidden, queries),
        "layers.0.mlp.gate_proj.weight": (inner, hidden),
        "layers.0.mlp.up_proj.weight": (inner, hidden),
        "layers.0.mlp.down_proj.weight": (hidden, inner),
        "layers.0.post_attention_layernorm.weight": (hidden,),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) / 12 for name, shape in shapes.items()}


def norms(target: ModelConfig, *names: str) -> State:
    """Norms of these names."""
    generator = torch.Generator().manual_seed(7)
    return {name: (1 + torch.rand(target.hidden_size, generator=generator)).bfloat16() for name in names}


def eagle_state(target: ModelConfig, bias: bool = True) -> State:
    """SafeAILab's cnets1.py: fc with a bias, no norm in front of the first layer's attention."""
    state = layer_state(target, torch.float16)
    if bias:
        state["fc.bias"] = torch.linspace(-1, 1, target.hidden_size).half()
    return state


def cpmcu_state(target: ModelConfig) -> State:
    """OpenBMB's MiniCPM4-8B-Eagle-FRSpec, as CPM.cu loads it."""
    names = ("input_norm1.weight", "input_norm2.weight", "layers.0.input_layernorm.weight")
    return {**layer_state(target), **norms(target, *names)}


def vllm_state(target: ModelConfig) -> State:
    """vLLM's minicpm_eagle.py: a prefix, other names of layers, and a final norm that it does not use."""
    state = {**cpmcu_state(target), **norms(target, "norm.weight")}
    return {f"model.{name.replace('layers.', 'eagle_layers.')}": value for name, value in state.items()}


def eagle3_state(target: ModelConfig, rows: int = 40, taps: int = 3) -> State:
    """SafeAILab's cnets.py: a layer of two inputs, three hidden states, and the map of the head's rows."""
    hidden, layer = target.hidden_size, layer_state(target)
    state = {
        name.replace("layers.0.", "midlayer."): each for name, each in layer.items() if name != "fc.weight"
    }
    generator = torch.Generator().manual_seed(3)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).bfloat16() / 12

    for name in "qkv":
        full = f"midlayer.self_attn.{name}_proj.weight"
        state[full] = matrix(len(state[full]), 2 * hidden)
    state["fc.weight"] = matrix(hidden, taps * hidden)
    state["lm_head.weight"] = matrix(rows, hidden)
    ids = torch.randperm(target.vocab_size, generator=generator)[:rows].sort().values
    state["d2t"] = ids - torch.arange(rows)
    state["t2d"] = torch.zeros(target.vocab_size, dtype=torch.bool).index_fill(0, ids, True)
    names = ("norm.weight", "midlayer.hidden_norm.weight", "midlayer.input_layernorm.weight")
    return {**state, **norms(target, *names)}


def eagle3_fields(target: ModelConfig, rows: int = 40, **changes: Any) -> dict[str, Any]:
    """A config.json like those of public EAGLE-3 drafts: a Llama's, whatever the target is."""
    said = {"scale_emb": None, "scale_depth": None, "dim_model_base": None, "rope_theta": 5e5}
    said |= {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "draft_vocab_size": rows}
    return draft_fields(target, **{**said, "tie_word_embeddings": False, **changes})


def block_state(target: ModelConfig, taps: int = 3, layers: int = 2, rank: int = 24) -> State:
    """DeepSpec's modeling/dspark: Qwen3's layers, a Markov and a confidence head; rank 0: DFlash."""
    hidden, generator = target.hidden_size, torch.Generator().manual_seed(5)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16() / 12

    state = {"fc.weight": matrix(hidden, taps * hidden), **norms(target, "norm.weight", "hidden_norm.weight")}
    for index in range(layers):
        layer = layer_state(target, seed=index)
        del layer["fc.weight"]
        layer |= norms(target, "layers.0.input_layernorm.weight")
        for name in ("q_norm", "k_norm"):
            layer[f"layers.0.self_attn.{name}.weight"] = 1 + matrix(target.head_dim)
        state |= {name.replace("layers.0.", f"layers.{index}."): each for name, each in layer.items()}
    if rank:
        state["markov_head.markov_w1.weight"] = matrix(target.vocab_size, rank)
        state["markov_head.markov_w2.weight"] = matrix(target.vocab_size, rank)
        state["confidence_head.proj.weight"] = matrix(1, hidden + rank)
        state["confidence_head.proj.bias"] = matrix(1)
    return state


def block_fields(target: ModelConfig, **changes: Any) -> dict[str, Any]:
    """A config.json like that of MiniCPM5-2B-DSpark, as far as it is known: flat, whatever the target is."""
    said = {
        **{"scale_emb": None, "scale_depth": None, "dim_model_base": None, "model_type": "qwen3"},
        **{"architectures": ["Qwen3DSparkModel"], "num_hidden_layers": 2, "attention_bias": False},
        **{"target_layer_ids": [1, 3, 6], "block_size": 5, "mask_token_id": 77, "num_anchors": 512},
        **{"markov_rank": 24, "markov_head_type": "vanilla", "enable_confidence_head": True},
        **{"confidence_head_with_markov": True, "sample_from_anchor": True},
        **{"num_target_layers": target.num_hidden_layers, "layer_types": ["full_attention"] * 2},
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}, "tie_word_embeddings": False},
    }
    return draft_fields(target, **{**said, **changes})


def flash_fields(target: ModelConfig, **changes: Any) -> dict[str, Any]:
    """The same of z-lab's DFlash drafts: layers and mask token stand further inside."""
    names = ("target_layer_ids", "mask_token_id", "num_anchors", "markov_rank", "markov_head_type")
    names += ("enable_confidence_head", "confidence_head_with_markov", "sample_from_anchor")
    inner = {"target_layer_ids": [1, 3, 6], "mask_token_id": 77}
    said = {"architectures": ["DFlashDraftModel"], "dflash_config": inner, "block_size": 16}
    return block_fields(target, **{**dict.fromkeys(names), **said, **changes})


def multi_token_state(target: ModelConfig) -> State:
    """What `train` leaves beside a model."""
    torch.manual_seed(6)
    layer = MultiTokenPrediction(target)
    return {name: each.detach() for name, each in layer.state_dict().items()}


def write_draft(
    folder: Path, fields: dict[str, Any], state: State, *, torch_file: bool = False, name: str | None = None
) -> Path:
    """A folder with `config.json` and the weights in one file of either format."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    if torch_file:
        torch.save(state, folder / (name or "pytorch_model.bin"))
    else:
        tensors = {each: value.contiguous() for each, value in state.items()}
        save_file(tensors, folder / (name or "model.safetensors"))
    return folder


def floats(state: State, name: str) -> np.ndarray:
    """A tensor as float32."""
    return state[name].float().numpy()
