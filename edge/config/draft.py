"""The shape of a draft: the small network that guesses what its target, a whole model, will say.

* EAGLE-2 (arXiv 2406.16858): a fully connected layer joins a token's embedding with the target's hidden state
  of the token before, one decoder layer or a few follow, and the target's own head (or some rows of it,
  FR-Spec, arXiv 2502.14856) tells the next token.
* EAGLE-3 (arXiv 2503.01840): the layer joins hidden states of several depths of the target, the embedding
  stands beside what it gives in the attention of one decoder layer, and the head is the draft's own.
* Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, 2.2), chained on itself: as EAGLE-2, from the
  residual stream after the target's last layer, with a norm before the target's head.
* DSpark (DeepSeek, 2026) and DFlash (arXiv 2602.06036): a few layers guess a block of tokens at once; they
  attend to what is made of the target's hidden states at several depths, and to each other. DSpark adds a
  low-rank Markov head, which tells a token by the one before it, and a head that tells how sure a guess is.

The embedding is always the target's and stands in no draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from edge.config.network import ModelConfig, RopeConfig, check_sizes, exact_fields, plain_json
from edge.config.roles import DECODER, FINAL_NORM, HEAD, QK_NORMS, Shape
from edge.errors import ConfigError

DraftKind = Literal["eagle2", "eagle3", "mtp", "dspark"]

FC = "fc.weight"
FC_BIAS = "fc.bias"
EMBEDDING_NORM = "input_norm1.weight"
HIDDEN_NORM = "input_norm2.weight"
OUTPUT_NORM = "norm.weight"
MARKOV_BEFORE = "markov_head.markov_w1.weight"
MARKOV_AFTER = "markov_head.markov_w2.weight"
CONFIDENCE = "confidence_head.proj.weight"
CONFIDENCE_BIAS = "confidence_head.proj.bias"
WINDOW = 1024
"""Tokens that a draft's attention sees at most, as in CPM.cu."""
MAX_BLOCK = 64
"""Most rows of a block, as masks have bits."""

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_SCALES = ("rms_norm_eps", "embedding_scale", "residual_scale", "logit_scale")
_MOST_LAYERS = 16
_MOST_TAPS = 16
_ATTENTION_NORM = "input_layernorm.weight"
_JOINING = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_BLOCK = ("block_size", "mask_token", "anchor_tells", "markov_rank", "confidence", "own_head")
_MAY_LACK = ("taps", "output_norm", *_BLOCK)
"""Fields that drafts of EAGLE-2 do without, and manifests of them."""
_BLOCK_FLAGS = ("anchor_tells", "confidence", "own_head")
_MOST_RANK = 4096
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "eagle2": {"taps": (), "output_norm": False},
    "eagle3": {"num_hidden_layers": 1, "input_norms": True, "attention_norm": False, "output_norm": True},
    "mtp": {"input_norms": True, "attention_norm": True, "fc_bias": False, "output_norm": True},
    "dspark": {"input_norms": False, "attention_norm": True, "fc_bias": False, "output_norm": True},
}
"""What the kind of a draft says of its other fields."""


@dataclass(frozen=True)
class DraftConfig:
    """Everything that running a draft needs to know beside its weights and its target.

    With e the target's embedding of token i + 1, h the hidden state of token i and N an RMSNorm with
    `rms_norm_eps`, `eagle2` and `mtp` compute

        x = fc(N1(e * embedding_scale), N2(h)) + bias
        for every layer: x += residual_scale * attention(N3(x)); x += residual_scale * mlp(N4(x))

    where fc's columns are those of e first. h is the target's: after the final norm and before the logit
    scale, or, with a tap, its residual stream after that layer. `eagle3` computes

        h = fc(the target's residual streams after all taps, one behind the other) + bias
        x = h + residual_scale * attention(N1(e * embedding_scale), N2(h)); x += residual_scale * mlp(N4(x))

    All of them tell token i + 2 by

        logits = head(N5(x) * logit_scale)

    x, without N5, is what a draft takes for h of token i + 1 where the target's is not known yet.

    `dspark` has no such rows. Of every token before the last its layers get keys and values, of

        c = N2(fc(the target's residual streams after all taps, one behind the other))

    and behind them come `block_size` rows that start from embeddings: of the last token, the anchor, then of
    `mask_token`. Each sees all of c and all rows of the block, whose positions go on from those of c:

        for every layer: x += residual_scale * attention(N3(x), c); x += residual_scale * mlp(N4(x))
        logits of row k = head(N5(x_k) * logit_scale) + W2 W1[token before the one that row k tells]

    where queries and keys are normed head by head. Row k tells the token k + 1 places behind the anchor, or,
    unless `anchor_tells`, k places. With `confidence`, sigmoid(w . (N5(x_k), W1[the token before]) + b) is
    the chance that the likeliest token of row k is right.

    kind: the family of drafts. vocab_size, hidden_size: the target's. rope: None if q and k are not rotated;
    positions are those of the target's hidden states (i). max_position_embeddings: what `rope` depends on.
    embedding_scale: the target's. logit_scale: the target's too, but of a head that was trained with the
    draft. input_norms: whether N1 and N2 exist. attention_norm: whether the first layer has N3; later ones
    always have. fc_bias: whether fc has a bias. window: positions that attention sees, with its own; None:
    all. head_rows: rows of a draft's own head, in the order of its token ids: taken from the target's
    (FR-Spec), or trained with the draft (`trained_head`); None: it uses the target's head. taps: layers of
    the target, from 0 on, whose residual streams are read. output_norm: whether N5 exists. The rest is of
    blocks. anchor_tells: whether the anchor's own row tells a token. markov_rank: columns of W1 and W2, 0
    without them. confidence: whether there is a head for chances. own_head: whether its head was trained with
    it, over `head_rows` tokens.
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
    taps: tuple[int, ...] = ()
    output_norm: bool = False
    block_size: int = 0
    mask_token: int = 0
    anchor_tells: bool = False
    markov_rank: int = 0
    confidence: bool = False
    own_head: bool = False

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
        self._check_kind()

    def _check_kind(self) -> None:
        for name, value in _FIXED[self.kind].items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{name} of a draft of the kind '{self.kind}' is {value!r}, not {getattr(self, name)!r}."
                )
        whole = all(isinstance(tap, int) and not isinstance(tap, bool) and tap >= 0 for tap in self.taps)
        most = {"eagle2": 0, "mtp": 1}.get(self.kind, _MOST_TAPS)
        if not whole or len({*self.taps}) < len(self.taps) or not min(1, most) <= len(self.taps) <= most:
            wanted = "the number of one layer" if most == 1 else f"1 to {most} different numbers of layers"
            raise ConfigError(f"taps of a draft of the kind '{self.kind}' are {wanted}, not {self.taps!r}.")
        if self.trained_head and self.head_rows is None:
            raise ConfigError(f"A draft of the kind '{self.kind}' has a head of its own: give its head_rows.")
        if self.is_block:
            self._check_block()
        else:
            for name in _BLOCK:
                if getattr(self, name):
                    raise ConfigError(f"A draft of the kind '{self.kind}' has no {name}.")

    def _check_block(self) -> None:
        check_sizes(self, "block_size", whole=True)
        if not self.guessed_rows or self.block_size > MAX_BLOCK:
            raise ConfigError(
                f"block_size is {self.block_size}, but a block has {1 if self.anchor_tells else 2} to "
                f"{MAX_BLOCK} rows."
            )
        for name, least, most in (
            ("mask_token", 0, self.vocab_size - 1),
            ("markov_rank", 0, _MOST_RANK),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"{name} of a draft must be a whole number up to {most}, not {value!r}.")

    @property
    def trained_head(self) -> bool:
        """Whether its head was trained with it, so that it can't do with the target's or other rows of it."""
        return self.kind == "eagle3" or self.own_head

    @property
    def joins_in_attention(self) -> bool:
        """Whether the embedding stands beside the hidden state in the first layer's attention, not in fc."""
        return self.kind == "eagle3"

    @property
    def is_block(self) -> bool:
        """Whether it guesses a block of tokens in one pass."""
        return self.kind == "dspark"

    @property
    def guessed_rows(self) -> int:
        """Rows of a block that tell a token."""
        return self.block_size if self.anchor_tells else self.block_size - 1

    @property
    def rows_seen(self) -> int | None:
        """Rows of its cache that what is told behind the last one depends on; None: all."""
        if self.window is None:
            return None
        return (
            max(1, self.window - self.block_size) if self.is_block else self.window * self.num_hidden_layers
        )

    @property
    def fc_columns(self) -> int:
        """What fc reads: hidden states alone, or one with an embedding before it."""
        alone = self.joins_in_attention or self.is_block
        return self.hidden_columns if alone else 2 * self.hidden_size

    @property
    def hidden_columns(self) -> int:
        """Floats that a row needs of the target: its hidden state, or the residual streams at all taps."""
        return max(1, len(self.taps)) * self.hidden_size

    def with_head(self, rows: int | None) -> DraftConfig:
        """The same draft with so many rows of a head of its own; None: with the target's head."""
        return replace(self, head_rows=rows)

    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one position, all layers together, as float16."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 2

    def check_target(self, target: ModelConfig, source: str) -> None:
        """Raise ConfigError if this can't be the draft of a target of that shape; source: it, in words."""
        scales = ("embedding_scale",) if self.trained_head else ("embedding_scale", "logit_scale")
        for name in ("hidden_size", "vocab_size", *scales):
            own, wanted = getattr(self, name), getattr(target, name)
            if own != wanted:
                raise ConfigError(
                    f"{source} is a draft for a model whose {name} is {own}, not {wanted} as here; take the "
                    "draft that was trained for this model."
                )
        layers = target.num_hidden_layers
        wrong = [tap for tap in self.taps if tap >= layers or (self.kind == "mtp" and tap != layers - 1)]
        if wrong:
            raise ConfigError(
                f"{source} is a draft that reads the model after layer {wrong[0]}, but the last of this one "
                f"is {layers - 1}; take the draft that was trained for this model."
            )

    def to_json(self) -> dict[str, Any]:
        """The manifest's form: plain JSON values."""
        return plain_json(self, _MAY_LACK)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DraftConfig:
        """Inverse of `to_json`; an unknown or missing field is a ConfigError with the field's name."""
        known = exact_fields(cls, data, "draft", _MAY_LACK)
        for name in ("input_norms", "attention_norm", "fc_bias", "output_norm", *_BLOCK_FLAGS):
            if not isinstance(known.get(name, False), bool):
                raise ConfigError(f"'draft.{name}' must be true or false, not {known[name]!r}.")
        if known["rope"] is not None:
            known["rope"] = RopeConfig.from_json(known["rope"], "draft.rope")
        taps = known.get("taps", [])
        if not isinstance(taps, list):
            raise ConfigError(f"'draft.taps' must be a list of layers, not {taps!r}.")
        return cls(**{**known, "taps": tuple(taps)})


def usual_taps(layers: int) -> tuple[int, ...]:
    """The layers of a target that EAGLE-3 reads unless its configuration says otherwise: what comes into
    layers 2, layers / 2 and layers - 3, counted from 0 (SafeAILab, vLLM, SGLang), so the outputs of those
    before. Fewer for a target of less than 7 layers.
    """
    found = (1, layers // 2 - 1, layers - 4)
    return tuple(sorted({min(max(0, tap), layers - 1) for tap in found}))


def block_taps(layers: int) -> tuple[int, ...]:
    """The layers of a target that public block drafts read: five at even distances, from the second to the
    third last. Fewer for a target of less than 8 layers.
    """
    found = (round(1 + i * (layers - 4) / 4) for i in range(5))
    return tuple(sorted({min(max(0, tap), layers - 1) for tap in found}))


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
    layers, the output norm, `lm_head.weight` if it has a head of its own (`head_rows`), and what a block's
    tokens are told by beside it.
    """
    hidden = config.hidden_size
    found: list[DraftTensor] = []

    def add(name: str, shape: Shape, words: str, native: int | None = None) -> None:
        found.append(DraftTensor(name, shape, name, None, native, words))

    if config.input_norms:
        add(EMBEDDING_NORM, (hidden,), "norms")
        add(HIDDEN_NORM, (hidden,), "norms")
    add(FC, (hidden, config.fc_columns), "draft input")
    if config.is_block:
        add(HIDDEN_NORM, (hidden,), "norms")
    if config.fc_bias:
        add(FC_BIAS, (hidden,), "draft input")
    sizes = {
        "hidden": hidden,
        "inner": config.intermediate_size,
        "queries": config.num_attention_heads * config.head_dim,
        "keys": config.num_key_value_heads * config.head_dim,
        "head": config.head_dim,
    }
    for layer in range(config.num_hidden_layers):
        for role in (*DECODER, *QK_NORMS) if config.is_block else DECODER:
            if role.each == "network":
                continue
            if role.name == _ATTENTION_NORM and layer == 0 and not config.attention_norm:
                continue
            shape = tuple(sizes[size] for size in role.shape)
            if layer == 0 and config.joins_in_attention and role.name in _JOINING:
                shape = (shape[0], 2 * hidden)
            name = f"layers.{layer}.{role.name}"
            found.append(DraftTensor(name, shape, role.name, layer, role.native, role.words))
    natives = {role.name: role.native for role in DECODER}
    if config.output_norm:
        add(OUTPUT_NORM, (hidden,), "norms", natives[FINAL_NORM])
    if config.head_rows is not None:
        add(HEAD, (config.head_rows, hidden), "head", natives[HEAD])
    if config.markov_rank:
        add(MARKOV_BEFORE, (config.vocab_size, config.markov_rank), "Markov head")
        add(MARKOV_AFTER, (config.head_rows or config.vocab_size, config.markov_rank), "Markov head")
    if config.confidence:
        add(CONFIDENCE, (hidden + config.markov_rank,), "confidence head")
        add(CONFIDENCE_BIAS, (1,), "confidence head")
    return {tensor.name: tensor for tensor in found}
