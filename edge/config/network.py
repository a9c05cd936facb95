"""The shape of a network: one frozen description, its limits and its JSON form.

Field names follow Hugging Face's config keys. Sources: MiniCPM4 technical report; MiniCPM (muP scales).
Foreign formats are known to `edge.config.huggingface` and `edge.config.gguf`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from edge.errors import ConfigError, ContextError

FixedRegime = Literal["short", "long"]
RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
KVType = Literal["int16", "float16", "float32", "int8", "int4"]
KVChoice = Literal["auto", "int16", "float16", "float32", "int8", "int4"]

_LARGEST = (2 - 2**-23) * 2.0**127  # of float32: larger values become infinite on their way to the kernels
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_MOST_LAYERS = 1000  # beyond any network; a damaged count would fill the memory with tensor names
_MOST_EXPERTS = 1000
_MAY_LACK = ("layers_without_rope", "sliding_window", "sliding_layers")
_ROPE_MAY_LACK = ("rotary_dim", "regime")
"""Left out of the JSON at their defaults, which older programs know."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: its type and the parameters of that type (`edge.config.rope` turns them into
    frequencies).

    factor: all but default and longrope; dynamic is NTK-aware. original_max_position_embeddings: yarn,
    dynamic, longrope, llama3. short_factor, long_factor: longrope, head_dim / 2 values each.
    attention_factor: overrides the factor by which cos and sin are multiplied (yarn and longrope). beta_fast,
    beta_slow: turns over the original length between which the ramp of yarn and llama3 lies (llama3 calls
    them high_freq_factor and low_freq_factor). truncate: yarn's ramp begins and ends at whole pairs.
    rotary_dim: rows of every head that are rotated, the first and the second halves of its pairs, which are
    the first pairs (i, i + head_dim / 2) here; None: all. The rules above see it in place of head_dim.
    regime: the list of longrope for every length (`edge.config.rope_regime`); None leaves it to the context.
    """

    type: RopeType = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    rotary_dim: int | None = None
    regime: FixedRegime | None = None

    def __post_init__(self) -> None:
        if self.type not in get_args(RopeType):
            raise ConfigError(
                f"Unknown rope_type '{self.type}'; supported are {', '.join(get_args(RopeType))}, "
                "and running with another one would give wrong text."
            )
        check_sizes(self, "theta", "factor", "beta_fast", "beta_slow")
        for name in ("original_max_position_embeddings", "attention_factor"):
            if getattr(self, name) is not None:
                check_sizes(self, name)
        if self.regime is not None and (self.type != "longrope" or self.regime not in get_args(FixedRegime)):
            raise ConfigError(f"rope_type {self.type} has no regime {self.regime!r}.")
        if self.rotary_dim is not None:
            check_sizes(self, "rotary_dim", whole=True)
        for name in ("theta", "original_max_position_embeddings"):
            if getattr(self, name) is not None and getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 1, not {getattr(self, name)!r}.")
        if self.type in ("yarn", "longrope", "llama3") and self.original_max_position_embeddings is None:
            raise ConfigError(f"rope_type {self.type} needs the field 'original_max_position_embeddings'.")
        if self.type == "llama3" and self.beta_fast <= self.beta_slow:
            raise ConfigError(
                f"high_freq_factor ({self.beta_fast}) of rope_type llama3 must be above low_freq_factor "
                f"({self.beta_slow})."
            )
        if self.type == "longrope":
            for name in ("short_factor", "long_factor"):
                values = getattr(self, name)
                if not values:
                    raise ConfigError(f"rope_type longrope needs the field '{name}'.")
                if not all(0 < value <= _LARGEST for value in values):
                    raise ConfigError(f"The values of '{name}' must be positive numbers.")

    @property
    def factor_lists(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """longrope's lists for contexts up to the original length and beyond; both are those of a regime."""
        if self.regime == "short":
            return self.short_factor, self.short_factor
        return self.long_factor if self.regime == "long" else self.short_factor, self.long_factor

    def check_head(self, head_dim: int) -> None:
        """Raise ConfigError where it does not fit heads of that size."""
        rotated = head_dim if self.rotary_dim is None else self.rotary_dim
        if rotated % 2 or rotated > head_dim:
            raise ConfigError(
                f"rotary_dim (head_dim times partial_rotary_factor) is {rotated}, but must be an even number "
                f"up to head_dim ({head_dim})."
            )
        for name in ("short_factor", "long_factor"):
            count = len(getattr(self, name))
            if self.type == "longrope" and count != rotated // 2:
                said = f"head_dim {head_dim}" if rotated == head_dim else f"rotary_dim {rotated}"
                raise ConfigError(f"'{name}' has {count} values; {said} needs {rotated // 2}.")

    @classmethod
    def from_json(cls, data: Any, where: str) -> RopeConfig:
        """From a manifest's object; an unknown or missing field is a ConfigError with the field's name."""
        return cls(**tuples(exact_fields(cls, data, where, _ROPE_MAY_LACK)))


@dataclass(frozen=True)
class SparseConfig:
    """InfLLM-V2 block-sparse attention (`sparse_config`); sizes, strides and lengths in tokens.

    A query at position p is dense when p + 1 <= dense_len (-1: always sparse). Beyond, it reads the first
    init_blocks blocks, the window_size / block_size local blocks that end with its own, and the best-scored
    others, so that first and best ones together are topk. exact_lse: normalise scores over the fine kernels
    instead of the coarse ones. use_nope: scores from keys without RoPE, which nothing here computes.
    """

    kernel_size: int = 32
    kernel_stride: int = 16
    init_blocks: int = 1
    block_size: int = 64
    window_size: int = 2048
    topk: int = 64
    dense_len: int = 8192
    use_nope: bool = False
    exact_lse: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "kernel_size", "kernel_stride", "block_size", "window_size", "topk", whole=True)
        for name, least in (("init_blocks", 0), ("dense_len", -1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of {least} or more, not {value!r}.")
        for name, unit in (
            ("kernel_size", "kernel_stride"),
            ("block_size", "kernel_stride"),
            ("window_size", "block_size"),
        ):
            if getattr(self, name) % getattr(self, unit):
                raise ConfigError(
                    f"{name} ({getattr(self, name)}) must be a multiple of {unit} ({getattr(self, unit)})."
                )
        if self.init_blocks > self.topk:
            raise ConfigError(
                f"init_blocks ({self.init_blocks}) are part of topk ({self.topk}) and can't be more."
            )

    @property
    def coarse_size(self) -> int:
        """Tokens under one coarse kernel: four times the fine one, as published."""
        return 4 * self.kernel_size

    @property
    def coarse_stride(self) -> int:
        """Tokens between the starts of two coarse kernels."""
        return 4 * self.kernel_stride

    @property
    def local_blocks(self) -> int:
        """Blocks that are always read: the query's own and those just before it."""
        return self.window_size // self.block_size

    @property
    def dynamic_blocks(self) -> int:
        """Blocks that are read because of their score."""
        return self.topk - self.init_blocks


@dataclass(frozen=True)
class ModelConfig:
    """Everything the decoder needs to know about a network.

    scale_emb, scale_depth, dim_model_base: MiniCPM's muP scales; None means a plain Llama (scale 1).
    num_experts: 0 for a dense network. layers_without_rope: numbers of the layers that do not rotate q and k.
    sliding_layers: numbers of the layers whose queries see only the last sliding_window tokens, their own
    among them. Nothing here computes that: such a network runs with contexts up to the window, in which it
    makes no difference.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None = None
    scale_emb: float | None = None
    scale_depth: float | None = None
    dim_model_base: float | None = None
    sparse: SparseConfig | None = None
    num_experts: int = 0
    num_experts_per_tok: int = 0
    layers_without_rope: tuple[int, ...] = ()
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.model_type, str):
            raise ConfigError(f"model_type must be a text, not {self.model_type!r}.")
        check_sizes(self, *_SIZES, whole=True)
        check_sizes(self, "rms_norm_eps")
        for name in ("scale_emb", "scale_depth", "dim_model_base"):
            if getattr(self, name) is not None:
                check_sizes(self, name)
        if self.num_hidden_layers > _MOST_LAYERS:
            raise ConfigError(
                f"num_hidden_layers is {self.num_hidden_layers}, but at most {_MOST_LAYERS} are supported."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})."
            )
        if self.head_dim % 16:
            raise ConfigError(f"head_dim is {self.head_dim}, but attention is built for multiples of 16.")
        if self.num_experts > _MOST_EXPERTS:
            raise ConfigError(
                f"num_experts is {self.num_experts}, but at most {_MOST_EXPERTS} are supported."
            )
        if self.num_experts and not 0 < self.num_experts_per_tok <= self.num_experts:
            raise ConfigError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, but must lie between 1 and num_experts "
                f"({self.num_experts})."
            )
        for name in ("layers_without_rope", "sliding_layers"):
            layers = getattr(self, name)
            whole = isinstance(layers, tuple) and all(type(layer) is int for layer in layers)
            if not whole or list(layers) != sorted(set(layers) & set(range(self.num_hidden_layers))):
                raise ConfigError(
                    f"{name} must be ascending numbers of layers, below num_hidden_layers "
                    f"({self.num_hidden_layers}), not {layers!r}."
                )
        if self.sliding_window is not None:
            check_sizes(self, "sliding_window", whole=True)
        if bool(self.sliding_layers) != (self.sliding_window is not None):
            raise ConfigError("sliding_window and sliding_layers must stand together, or neither.")
        self.rope.check_head(self.head_dim)
        ids = {"bos_token_id": (self.bos_token_id,), "pad_token_id": (self.pad_token_id,)}
        for name, values in {**ids, "eos_token_ids": self.eos_token_ids}.items():
            for value in values:
                if value is not None and not 0 <= value < self.vocab_size:
                    raise ConfigError(
                        f"{name} {value} lies outside the vocabulary of {self.vocab_size} tokens."
                    )

    @property
    def has_mup_scales(self) -> bool:
        """Whether any muP scale is set."""
        return not (self.scale_emb is self.scale_depth is self.dim_model_base is None)

    @property
    def embedding_scale(self) -> float:
        """muP, place 1: factor on the embeddings."""
        return 1.0 if self.scale_emb is None else self.scale_emb

    @property
    def residual_scale(self) -> float:
        """muP, place 2: factor on every sub-layer output before it is added to the residual stream."""
        return 1.0 if self.scale_depth is None else self.scale_depth / self.num_hidden_layers**0.5

    @property
    def logit_scale(self) -> float:
        """muP, place 3: factor on the final normed hidden state before the LM head."""
        return 1.0 if self.dim_model_base is None else self.dim_model_base / self.hidden_size

    @property
    def longest_context(self) -> int:
        """The longest context in tokens that it can be run with, which is also the default."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    def check_context(self, context: int) -> None:
        """Raise ContextError if `context` tokens are more than the model was made for, or than its layers
        with a sliding window see at once."""
        self.check_window(context)
        if context > self.max_position_embeddings:
            raise ContextError(
                f"A context of {context} tokens is beyond the {self.max_position_embeddings} that the model "
                "was made for: ask for less, or extend it knowingly with a RoPE override such as "
                '{"rope_type": "yarn", "factor": 4}.'
            )

    def check_window(self, tokens: int) -> None:
        """Raise ContextError for a sequence that its layers with a sliding window would not see whole."""
        if self.sliding_window is not None and tokens > self.sliding_window:
            raise ContextError(
                f"A context of {tokens} tokens is beyond the model's sliding_window of "
                f"{self.sliding_window}, and attention through a window is not computed: ask for less."
            )

    def kv_bytes_per_token(self, kv_type: KVType = "float16") -> int:
        """Bytes that one token takes in the KV cache, all layers together."""
        # Rows of integers have a float32 scale each.
        bits = {"int16": 16, "float16": 16, "float32": 32, "int8": 8, "int4": 4}[kv_type]
        row = self.head_dim * bits // 8 + (4 if kv_type.startswith("int") else 0)
        return 2 * self.num_hidden_layers * self.num_key_value_heads * row

    def to_json(self) -> dict[str, Any]:
        """The manifest's form: plain JSON values; newer fields are left out where they say nothing."""
        return plain_json(self, _MAY_LACK)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_json`; an unknown or missing field is a ConfigError with the field's name."""
        known = exact_fields(cls, data, "config", _MAY_LACK)
        known["rope"] = RopeConfig.from_json(known["rope"], "config.rope")
        if known["sparse"] is not None:
            known["sparse"] = SparseConfig(**exact_fields(SparseConfig, known["sparse"], "config.sparse"))
        return cls(**tuples(known))


def check_sizes(instance: Any, *names: str, whole: bool = False) -> None:
    """Raise ConfigError for the first of these fields that is no positive (whole) number."""
    kinds, wanted = (int, "whole number") if whole else ((int, float), "number")
    for name in names:
        value = getattr(instance, name)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        if not number or not 0 < value <= _LARGEST:
            raise ConfigError(f"{name} must be a positive {wanted}, not {value!r}.")


def plain_json(config: Any, may_lack: Collection[str] = ()) -> dict[str, Any]:
    """A dataclass with a `rope` as plain JSON values, without what it and that may lack and says nothing."""
    data: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    if data["rope"] is not None:
        data["rope"] = _without_defaults(data["rope"], _ROPE_MAY_LACK)
    return _without_defaults(data, may_lack)


def _without_defaults(data: dict[str, Any], may_lack: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value or name not in may_lack}


def exact_fields(cls: type, data: Any, where: str, may_lack: Collection[str] = ()) -> dict[str, Any]:
    """A copy of `data` with all fields of a dataclass and no others; ConfigError with the field's name."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"'{where}' must be an object, not {type(data).__name__}.")
    names = {field.name for field in fields(cls)}
    for name in data:
        if name not in names:
            raise ConfigError(
                f"Unknown field '{where}.{name}'; update minicpm-edge or convert the model again."
            )
    for name in names:
        if name not in data and name not in may_lack:
            raise ConfigError(f"The field '{where}.{name}' is missing; convert the model again.")
    return dict(data)


def tuples(data: dict[str, Any]) -> dict[str, Any]:
    """The same with tuples for JSON's lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
