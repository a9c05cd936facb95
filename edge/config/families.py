"""Model families, each one declaration: what others call its fields and tensors, and what it may contain.

Readers and writers of foreign formats, synthetic weights, the PyTorch network, the native roles and the
refusals derive from it. A plugin adds a family of its own with `register_family`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from edge.config import ModelConfig
from edge.config.fields import Fields, listed
from edge.config.network import RopeType
from edge.config.roles import DECODER, MOE, QK_NORMS, QKV_BIASES, Role, renamed
from edge.errors import ConfigError
from edge.system.registry import Registry, load_plugins

FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    # attention
    "attention_bias": (False,),
    "qkv_bias": (False,),
    "use_qkv_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "use_output_gate": (False,),
    "attn_use_output_gate": (False,),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "attn_scale": (),
    "attn_temperature_tuning": (False, 0),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "use_bidirectional_attention": (False,),
    "is_causal": (True,),
    "sliding_window": (),
    "sliding_window_pattern": (),
    "attention_chunk_size": (),
    "layer_types": ("full_attention",),
    "mixer_types": (),
    "lightning_nh": (),
    "q_lora_rank": (),
    "kv_lora_rank": (),
    "num_kv_shared_layers": (0,),
    # rotary embedding, beside its own entry
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rope_ratio": (1,),
    "rope_interleaved": (False,),
    "rope_interleave": (False,),
    "mrope_section": (),
    # scales and the residual stream
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "lm_head_multiplier": (1,),
    "key_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "final_logit_softcapping": (),
    "use_parallel_residual": (False,),
    "swiglu_limit": (),
    # which weights, and of which layers
    "per_layer_config": (),
    "transformers_weights": (),
}
"""Fields of config.json that change what is computed, with the only values besides null that are supported;
of a list, every value."""


@dataclass(frozen=True)
class Family:
    """Networks of one kind, as others describe and store them.

    model_type, architecture: the fields of a Hugging Face `config.json` by which it is known. gguf: its
    architecture in GGUF, None if llama.cpp has none; the first family with a name is read from it. roles: its
    tensors; those of the network that come before the first of a layer are read before the layers. layers:
    what the names of a layer's tensors begin with in Hugging Face's form, before the layer's number.
    fields: names of `config.json` that differ from ours. defaults: values of absent fields, by our names,
    beside those of a Llama. fixed: see `FIXED`; by the family's names. scaled: it always has muP scales.
    counterpart: the family of the same network without muP scales (with them, if `scaled` is false).
    rope_interval: every so many layers, the last one does not rotate q and k. gguf_pairs: llama.cpp rotates
    neighbouring rows, so a GGUF file has the two halves of every head interleaved. gguf_square: llama.cpp
    takes hidden_size for the width of all heads together. fused: its checkpoints
    keep the tensors that `Role.fused` names in one. partial_rotary: `partial_rotary_factor` is computed.
    required: fields that may not be absent, since transformers has a number of its own for them then.
    windows: which layers see only the last `sliding_window` tokens where no `layer_types` tell: all of them,
    or, if `use_sliding_window` is true, those from `max_window_layers` on ("upper") or those without RoPE.
    rope_types: those that its class in transformers computes.
    """

    model_type: str
    architecture: str
    gguf: str | None = None
    roles: tuple[Role, ...] = DECODER
    layers: str = "model.layers"
    fields: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: FIXED)
    scaled: bool = False
    counterpart: str | None = None
    rope_interval: int | None = None
    gguf_pairs: bool = False
    gguf_square: bool = False
    fused: bool = False
    partial_rotary: bool = False
    required: tuple[str, ...] = ()
    windows: Literal["all", "upper", "without rope"] | None = None
    rope_types: tuple[RopeType, ...] = get_args(RopeType)

    def layers_without_rope(self, layers: int) -> tuple[int, ...]:
        """Numbers of the layers that do not rotate q and k, of so many."""
        return () if self.rope_interval is None else every_last(self.rope_interval, layers)


def every_last(interval: int, layers: int) -> tuple[int, ...]:
    """Numbers of the last layers of every `interval`: 3, 7, ... for 4."""
    return tuple(range(interval - 1, layers, interval))


FAMILIES: Registry[Family] = Registry("model family")
_BY_GGUF: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Add a family and return it; EdgeError if there is one of that model_type."""
    FAMILIES.register(family.model_type, family)
    if family.gguf is not None:
        _BY_GGUF.setdefault(family.gguf, family)
    return family


def family_of(config: ModelConfig) -> Family:
    """The family of a network; ConfigError if it is unknown here."""
    family = FAMILIES.find(config.model_type)
    if family is None:
        raise ConfigError(
            f"The model family '{config.model_type}' is unknown here; known are {listed(FAMILIES)}. Update "
            "minicpm-edge, or install the package that brings it."
        )
    return family


def family_from_hf(model_type: str, architectures: tuple[str, ...]) -> Family:
    """The family of a `config.json`; architectures: may be empty. ConfigError if it is not supported."""
    family = FAMILIES.find(model_type)
    if family is None or family.architecture not in (architectures or (family.architecture,)):
        name = model_type if family is None else architectures[0]
        known = listed(each.architecture for each in FAMILIES.values())
        raise ConfigError(
            f"The architecture '{name}' (fields 'model_type' and 'architectures') is not supported; "
            f"supported are {known}."
        )
    return family


def family_from_gguf(architecture: str) -> Family:
    """The family that GGUF files of an architecture belong to; ConfigError if it is not supported."""
    if architecture not in _BY_GGUF:
        load_plugins()
    if architecture not in _BY_GGUF:
        raise ConfigError(
            f"The GGUF architecture '{architecture}' (field 'general.architecture') is not supported; "
            f"supported are {listed(_BY_GGUF)}."
        )
    return _BY_GGUF[architecture]


def scaled_family(config: ModelConfig) -> Family:
    """The family whose files tell whether the network has muP scales: its own or the counterpart."""
    family = family_of(config)
    if config.has_mup_scales == family.scaled or family.counterpart is None:
        return family
    return FAMILIES.get(family.counterpart)


def mup_scales(source: Fields, names: tuple[str, ...], family: Family) -> list[float | None]:
    """The three muP scales, None for a family without.

    Raises ConfigError where one is missing, which would silently be 1, and for scales of a family that has
    none: it is the counterpart's file, or they are folded into the weights already.
    """
    missing = [source.key(name) for name in names if source.get(name) is None]
    if len(missing) == len(names) and not family.scaled:
        return [None for _ in names]
    if missing:
        raise ConfigError(
            f"{source.where} lacks {listed(map(repr, missing))}, the muP scales of a network of type "
            f"{family.model_type}; take them from the original model."
        )
    if family.counterpart is not None and not family.scaled:
        raise ConfigError(
            f"{source.where} contradicts itself: it has {listed(repr(source.key(name)) for name in names)}, "
            f"but networks of type {family.model_type} have no muP scales; say that its type is "
            f"{family.counterpart}, or remove them."
        )
    return [source.number(name) for name in names]


register_family(
    Family(
        "minicpm",
        "MiniCPMForCausalLM",
        gguf="minicpm",
        roles=(*DECODER, *MOE),
        defaults={"tie_word_embeddings": True},
        scaled=True,
        counterpart="llama",
        gguf_pairs=True,
    )
)
register_family(
    Family(
        "llama",
        "LlamaForCausalLM",
        gguf="llama",
        roles=(*DECODER, *MOE),
        defaults={"bos_token_id": 1, "eos_token_id": 2},
        counterpart="minicpm",
        gguf_pairs=True,
    )
)


def _fixed_except(*names: str) -> Mapping[str, tuple[Any, ...]]:
    return {name: values for name, values in FIXED.items() if name not in names}


register_family(
    Family(
        "mistral",
        "MistralForCausalLM",
        gguf="llama",
        defaults={"sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2},
        required=("num_key_value_heads",),
        fixed=_fixed_except("sliding_window"),
        windows="all",
        gguf_pairs=True,
    )
)
register_family(
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        gguf="qwen2",
        roles=(*DECODER, *QKV_BIASES),
        defaults={"sliding_window": 4096, "max_window_layers": 28},
        required=("num_key_value_heads",),
        fixed=_fixed_except("sliding_window", "layer_types"),
        windows="upper",
        gguf_square=True,
    )
)
register_family(
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        gguf="qwen3",
        roles=(*DECODER, *QK_NORMS),
        defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
        required=("num_key_value_heads",),
        fixed=_fixed_except("sliding_window", "layer_types"),
        windows="upper",
    )
)
register_family(
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        gguf="smollm3",
        defaults={
            **{"tie_word_embeddings": True, "rope_theta": 2000000.0},
            **{"bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004},
        },
        required=("num_key_value_heads",),
        fixed=_fixed_except("sliding_window", "layer_types"),
        rope_interval=4,
        windows="without rope",
        gguf_pairs=True,
    )
)
_QKV, _GATE_UP = "attn_qkv.weight", "ffn_up.weight"
register_family(
    Family(
        "phi3",
        "Phi3ForCausalLM",
        gguf="phi3",
        roles=renamed(
            DECODER,
            gguf={
                **{f"self_attn.{name}_proj.weight": _QKV for name in "qkv"},
                **{f"mlp.{name}_proj.weight": _GATE_UP for name in ("gate", "up")},
            },
        ),
        defaults={
            "original_max_position_embeddings": 4096,
            **{"bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000},
        },
        fixed=_fixed_except("sliding_window", "partial_rotary_factor"),
        windows="all",
        rope_types=("default", "longrope"),
        fused=True,
        partial_rotary=True,
        gguf_square=True,
    )
)
