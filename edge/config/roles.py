"""What the tensors of a decoder are for: one table of roles, which families take, rename and extend.

A role says all that readers, writers, networks and reports need to know about its tensors. Which roles a
network has, and under which names others store them, is said by its family (`edge.config.families`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edge.config import ModelConfig

Shape = tuple[int, ...]
Size = Literal["vocabulary", "hidden", "inner", "queries", "keys", "head", "experts"]
"""Sizes of a network by name; queries and keys are those of all heads together, inner is of the MLP."""


@dataclass(frozen=True)
class Part:
    """Something that a network may have or lack.

    words: what it is, with its article or in the plural, for messages. present: whether a network has it.
    """

    words: str
    present: Callable[[ModelConfig], bool]


@dataclass(frozen=True)
class Role:
    """One tensor of the network, of every layer, or of every expert in every layer.

    name: in Hugging Face's Llama, which is its name in a bundle too; inside the layer, with `{expert}` for
    the number of an expert. shape: (outputs, inputs) of a matrix, one size of a norm or bias. words: the kind
    of tensor in `edge inspect`. gguf: llama.cpp's name inside the layer; None: it has none. native: its
    number in edge.h (edge_role); None: the native executor has no place for it. part: the optional part that
    it belongs to. heads: the config's field that counts its heads, if its rows are rotated: the rows of a
    head are two halves, which turn with each other; "each": it has one row for those of each head.
    joins_stream: its output is added to the residual stream.
    hf: its name in the family's own checkpoints, where that differs. fused: the name under which checkpoints
    may keep it in one tensor with others, below each other in the order of the table. Roles with one name in
    GGUF are fused there in the same way.
    """

    name: str
    shape: tuple[Size, ...]
    words: str
    each: Literal["network", "layer", "expert"] = "layer"
    gguf: str | None = None
    native: int | None = None
    part: Part | None = None
    heads: Literal["num_attention_heads", "num_key_value_heads", "each"] | None = None
    joins_stream: bool = False
    hf: str | None = None
    fused: str | None = None

    @property
    def is_bias(self) -> bool:
        """Whether it is added to the outputs of a matrix."""
        return self.name.endswith(".bias")

    def shape_in(self, config: ModelConfig) -> Shape:
        """Its shape in a network."""
        sizes: dict[Size, int] = {
            "vocabulary": config.vocab_size,
            "hidden": config.hidden_size,
            "inner": config.intermediate_size,
            "queries": config.num_attention_heads * config.head_dim,
            "keys": config.num_key_value_heads * config.head_dim,
            "head": config.head_dim,
            "experts": config.num_experts,
        }
        return tuple(sizes[size] for size in self.shape)

    def is_in(self, config: ModelConfig) -> bool:
        """Whether a network of its family has it."""
        return self.part is None or self.part.present(config)


def renamed(
    roles: tuple[Role, ...], hf: Mapping[str, str] | None = None, gguf: Mapping[str, str] | None = None
) -> tuple[Role, ...]:
    """The same roles under other names in a family's checkpoints; keys are the roles' own names."""
    hf, gguf = hf or {}, gguf or {}
    unknown = {*hf, *gguf} - {role.name for role in roles}
    if unknown:
        raise ValueError(f"no role is called {', '.join(sorted(unknown))}")
    return tuple(
        replace(role, hf=hf.get(role.name, role.hf), gguf=gguf.get(role.name, role.gguf)) for role in roles
    )


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"

NORMS = "norms"
OWN_HEAD = Part("an output head of its own", lambda config: not config.tie_word_embeddings)
MLP = Part("a dense MLP", lambda config: not config.num_experts)
EXPERTS = Part("a mixture of experts", lambda config: bool(config.num_experts))
QKV_BIAS = Part("biases of q, k and v", lambda config: True)
QK_NORM = Part("norms of q and k", lambda config: True)
_QKV, _GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"

DECODER: tuple[Role, ...] = (
    Role(EMBEDDING, ("vocabulary", "hidden"), "embedding", "network", "token_embd.weight", 0),
    Role("input_layernorm.weight", ("hidden",), NORMS, gguf="attn_norm.weight", native=3),
    Role(
        "self_attn.q_proj.weight",
        ("queries", "hidden"),
        "attention q",
        gguf="attn_q.weight",
        native=4,
        heads="num_attention_heads",
        fused=f"{_QKV}.weight",
    ),
    Role(
        "self_attn.k_proj.weight",
        ("keys", "hidden"),
        "attention k",
        gguf="attn_k.weight",
        native=5,
        heads="num_key_value_heads",
        fused=f"{_QKV}.weight",
    ),
    Role(
        "self_attn.v_proj.weight",
        ("keys", "hidden"),
        "attention v",
        gguf="attn_v.weight",
        native=6,
        fused=f"{_QKV}.weight",
    ),
    Role(
        "self_attn.o_proj.weight",
        ("hidden", "queries"),
        "attention o",
        gguf="attn_output.weight",
        native=7,
        joins_stream=True,
    ),
    Role("post_attention_layernorm.weight", ("hidden",), NORMS, gguf="ffn_norm.weight", native=8),
    Role(
        "mlp.gate_proj.weight",
        ("inner", "hidden"),
        "MLP gate",
        gguf="ffn_gate.weight",
        native=9,
        part=MLP,
        fused=f"{_GATE_UP}.weight",
    ),
    Role(
        "mlp.up_proj.weight",
        ("inner", "hidden"),
        "MLP up",
        gguf="ffn_up.weight",
        native=10,
        part=MLP,
        fused=f"{_GATE_UP}.weight",
    ),
    Role(
        "mlp.down_proj.weight",
        ("hidden", "inner"),
        "MLP down",
        gguf="ffn_down.weight",
        native=11,
        part=MLP,
        joins_stream=True,
    ),
    Role(FINAL_NORM, ("hidden",), NORMS, "network", "output_norm.weight", 2),
    Role(HEAD, ("vocabulary", "hidden"), "head", "network", "output.weight", 1, OWN_HEAD),
)
"""A Llama: embedding, layers, final norm and head, in the order in which decoding reads them."""

MOE: tuple[Role, ...] = (
    Role("mlp.gate.weight", ("experts", "hidden"), "router", part=EXPERTS),
    Role("mlp.experts.{expert}.w1.weight", ("inner", "hidden"), "expert gate", "expert", part=EXPERTS),
    Role("mlp.experts.{expert}.w3.weight", ("inner", "hidden"), "expert up", "expert", part=EXPERTS),
    Role(
        "mlp.experts.{expert}.w2.weight",
        ("hidden", "inner"),
        "expert down",
        "expert",
        part=EXPERTS,
        joins_stream=True,
    ),
)
"""A router and experts in place of the MLP, under the names of MiniCPM-MoE."""

QKV_BIASES: tuple[Role, ...] = (
    Role(
        "self_attn.q_proj.bias",
        ("queries",),
        "attention biases",
        gguf="attn_q.bias",
        part=QKV_BIAS,
        heads="num_attention_heads",
        fused=f"{_QKV}.bias",
    ),
    Role(
        "self_attn.k_proj.bias",
        ("keys",),
        "attention biases",
        gguf="attn_k.bias",
        part=QKV_BIAS,
        heads="num_key_value_heads",
        fused=f"{_QKV}.bias",
    ),
    Role(
        "self_attn.v_proj.bias",
        ("keys",),
        "attention biases",
        gguf="attn_v.bias",
        part=QKV_BIAS,
        fused=f"{_QKV}.bias",
    ),
)
"""Added to queries, keys and values before anything else happens to them."""

QK_NORMS: tuple[Role, ...] = (
    Role("self_attn.q_norm.weight", ("head",), NORMS, gguf="attn_q_norm.weight", part=QK_NORM, heads="each"),
    Role("self_attn.k_norm.weight", ("head",), NORMS, gguf="attn_k_norm.weight", part=QK_NORM, heads="each"),
)
"""RMSNorm of every head of q and k, before it is rotated."""
