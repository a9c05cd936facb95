"""The shape of a draft: the small network that guesses what its target, a whole model, will say.

EAGLE-2 (arXiv 2406.16858): a fully connected layer joins a token's embedding with the target's hidden state
of the token before, one decoder layer or a few follow, and the target's own head (or some rows of it,
FR-Spec, arXiv 2502.14856) tells the next token. Embedding and head are the target's and stand in no draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from edge.config.network import ModelConfig, RopeConfig, check_sizes, exact_fields, plain_json
from edge.config.roles import DECODER, HEAD, Shape
from edge.errors import ConfigError

DraftKind = Literal["eagle2"]

FC = "fc.weight"
FC_BIAS = "fc.bias"
EMBEDDING_NORM = "input_norm1.weight"
HIDDEN_NORM = "input_norm2.weight"
WINDOW = 1024
"""Tokens that a draft's attention sees at most, as in CPM.cu."""

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_SCALES = ("rms_norm_eps", "embedding_scale", "residual_scale", "logit_scale")
_MOST_LAYERS = 16
_ATTENTION_NORM = "input_layernorm.weight"


@dataclass(frozen=True)
class DraftConfig:
    """Everything that running a draft needs to know beside its weights and its target.

    With e the target's embedding of token i + 1, h the target's hidden state of token i (after the final
    norm, before the logit scale) and N an RMSNorm with `rms_norm_eps`:

        x = fc(N1(e * embedding_scale), N2(h)) + bias
        for every layer: x += residual_scale * attention(N3(x)); x += residual_scale * mlp(N4(x))
        logits of token i + 2 = head(x * logit_scale)

    x is what a draft takes for the hidden state of token i + 1 where the target's is not known yet; there is
    no final norm. fc's columns are those of e first.

    kind: the family of drafts. vocab_size, hidden_size: the target's. rope: None if q and k are not rotated;
    positions are those of the target's hidden states (i). max_position_embeddings: what `rope` depends on.
    embedding_scale, logit_scale: the target's. input_norms: whether N1 and N2 exist. attention_norm: whether
    the first layer has N3; later ones always have. fc_bias: whether fc has a bias. window: positions that
    attention sees, with its own; None: all. head_rows: rows of a draft's own head, in the order of its
    token ids (FR-Spec); None: it uses the target's head.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig | None
    kind: DraftKind = "eagle2"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    input_norms: bool = False
    attention_norm: bool = False
    fc_bias: bool = False
    window: int | None = WINDOW
    head_rows: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(DraftKind):
            raise ConfigError(
                f"Unknown kind of draft '{self.kind}'; supported are {', '.join(get_args(DraftKind))}."
            )
        check_sizes(self, *_SIZES, whole=True)
        check_sizes(self, *_SCALES)
        for name in ("window", "head_rows"):
            if getattr(self, name) is not None:
                check_sizes(self, name, whole=True)
        if self.num_hidden_layers > _MOST_LAYERS:
            raise ConfigError(
                f"num_hidden_layers of a draft is {self.num_hidden_layers}, but at most {_MOST_LAYERS} are "
                "supported; a model of its own is no such draft."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})."
            )
        if self.head_dim % 16:
            raise ConfigError(f"head_dim is {self.head_dim}, but attention is built for multiples of 16.")
        if self.head_rows is not None and self.head_rows > self.vocab_size:
            raise ConfigError(
                f"head_rows is {self.head_rows}, more than the {self.vocab_size} tokens of the vocabulary."
            )
        if self.rope is not None:
            self.rope.check_head(self.head_dim)

    def with_head(self, rows: int | None) -> DraftConfig:
        """The same draft with so many rows of a head of its own; None: with the target's head."""
        return replace(self, head_rows=rows)

    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one position, all layers together, as float16."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 2

    def check_target(self, target: ModelConfig, source: str) -> None:
        """Raise ConfigError if this can't be the draft of a target of that shape; source: it, in words."""
        for name in ("hidden_size", "vocab_size", "embedding_scale", "logit_scale"):
            own, wanted = getattr(self, name), getattr(target, name)
            if own != wanted:
                raise ConfigError(
                    f"{source} is a draft for a model whose {name} is {own}, not {wanted} as here; take the "
                    "draft that was trained for this model."
                )

    def to_json(self) -> dict[str, Any]:
        """The manifest's form: plain JSON values."""
        return plain_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DraftConfig:
        """Inverse of `to_json`; an unknown or missing field is a ConfigError with the field's name."""
        known = exact_fields(cls, data, "draft")
        for name in ("input_norms", "attention_norm", "fc_bias"):
            if not isinstance(known[name], bool):
                raise ConfigError(f"'draft.{name}' must be true or false, not {known[name]!r}.")
        if known["rope"] is not None:
            known["rope"] = RopeConfig.from_json(known["rope"], "draft.rope")
        return cls(**known)


@dataclass(frozen=True)
class DraftTensor:
    """One tensor of a draft.

    shape: (outputs, inputs) of a matrix, (n,) of a norm or bias. role: the name inside the layer, or the
    whole name outside of them. layer: None outside of them. native: the number in edge.h (`edge_role`) of the
    tensor of a decoder that does the same work; None where a decoder has none. words: the kind of tensor in
    reports.
    """

    name: str
    shape: Shape
    role: str
    layer: int | None
    native: int | None
    words: str


def draft_tensors(config: DraftConfig) -> dict[str, DraftTensor]:
    """Every tensor of a draft by name, in the order in which drafting reads them: the input norms, fc, the
    layers, and `lm_head.weight` if it has a head of its own (`head_rows`).
    """
    hidden = config.hidden_size
    found: list[DraftTensor] = []

    def add(name: str, shape: Shape, words: str, native: int | None = None) -> None:
        found.append(DraftTensor(name, shape, name, None, native, words))

    if config.input_norms:
        add(EMBEDDING_NORM, (hidden,), "norms")
        add(HIDDEN_NORM, (hidden,), "norms")
    add(FC, (hidden, 2 * hidden), "draft input")
    if config.fc_bias:
        add(FC_BIAS, (hidden,), "draft input")
    sizes = {
        "hidden": hidden,
        "inner": config.intermediate_size,
        "queries": config.num_attention_heads * config.head_dim,
        "keys": config.num_key_value_heads * config.head_dim,
    }
    for layer in range(config.num_hidden_layers):
        for role in DECODER:
            if role.each == "network":
                continue
            if role.name == _ATTENTION_NORM and layer == 0 and not config.attention_norm:
                continue
            shape = tuple(sizes[size] for size in role.shape)
            name = f"layers.{layer}.{role.name}"
            found.append(DraftTensor(name, shape, role.name, layer, role.native, role.words))
    if config.head_rows is not None:
        native = next(role.native for role in DECODER if role.name == HEAD)
        add(HEAD, (config.head_rows, hidden), "head", native)
    return {tensor.name: tensor for tensor in found}
