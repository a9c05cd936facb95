"""The names and shapes of the tensors that a network needs, for whatever reads or writes weights.

Names are those of Llama in Hugging Face.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge.config import ModelConfig
from edge.errors import CheckpointError, ConfigError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"

Shape = tuple[int, ...]


def expected_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor of the network with its shape, in the order in which decoding reads them.

    Matrices are (rows = outputs, columns = inputs), norms are (hidden_size,). There is no `lm_head.weight`
    when it is tied to the embedding. Experts have the names of MiniCPM-MoE: w1 is gate, w3 up, w2 down.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer: dict[str, Shape] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
    }
    if config.num_experts:
        layer["mlp.gate"] = (config.num_experts, hidden)
        for expert in range(config.num_experts):
            names = {"w1": (inner, hidden), "w3": (inner, hidden), "w2": (hidden, inner)}
            layer |= {f"mlp.experts.{expert}.{name}": shape for name, shape in names.items()}
    else:
        layer["mlp.gate_proj"] = layer["mlp.up_proj"] = (inner, hidden)
        layer["mlp.down_proj"] = (hidden, inner)
    tensors: dict[str, Shape] = {EMBEDDING: (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        tensors |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    tensors[FINAL_NORM] = (hidden,)
    if not config.tie_word_embeddings:
        tensors[HEAD] = (config.vocab_size, hidden)
    return tensors


def check_dense(config: ModelConfig) -> None:
    """Raise ConfigError for a mixture of experts, which the runtime does not run."""
    if config.num_experts:
        raise ConfigError(
            f"num_experts is {config.num_experts}: mixture-of-experts networks cannot be run yet; "
            "use a dense model."
        )


def check_tensors(config: ModelConfig, found: Mapping[str, Shape], source: str) -> None:
    """Compare a checkpoint's tensors with what its config asks for.

    A missing tensor, a wrong shape, and a tensor that the network would ignore (a bias, say) raise
    CheckpointError with the tensor's name. Two kinds of extra tensor are harmless and let through: rotary
    frequencies, and a head beside tied embeddings.
    """
    expected = expected_tensors(config)
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(
                f"{source} has no tensor '{name}', which its configuration asks for; "
                "the file is incomplete or belongs to another model."
            )
        if tuple(found[name]) != shape:
            raise CheckpointError(
                f"Tensor '{name}' of {source} has shape {_text(found[name])}, but its configuration asks for "
                f"{_text(shape)}; weights and configuration belong to different models."
            )
    for name in found:
        if name not in expected and name != HEAD and not name.endswith("rotary_emb.inv_freq"):
            raise CheckpointError(
                f"{source} has a tensor '{name}', which the {config.model_type} network built here "
                "does not have; running without it would give wrong text."
            )


def _text(shape: Shape) -> str:
    return "x".join(str(size) for size in shape) or "scalar"
