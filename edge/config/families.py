"""Model families, each one declaration: what others call its fields and tensors, and what it may contain.

Readers and writers of foreign formats, synthetic weights, the PyTorch network, the native roles and the
refusals derive from it. A plugin adds a family of its own with `register_family`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge.config import ModelConfig
from edge.config.fields import listed
from edge.config.roles import DECODER, MOE, Role
from edge.errors import ConfigError
from edge.system.registry import Registry, load_plugins

FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "sliding_window": (),
    "mixer_types": (),
    "lightning_nh": (),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "use_output_gate": (False,),
    "attn_use_output_gate": (False,),
    "attention_multiplier": (),
    "final_logit_softcapping": (),
    "q_lora_rank": (),
    "kv_lora_rank": (),
}
"""Fields of config.json that change the arithmetic, with the only values besides null that are computed."""


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
    neighbouring rows, so a GGUF file has the two halves of every head interleaved. fused: its checkpoints
    keep the tensors that `Role.fused` names in one.
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
    fused: bool = False

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
        counterpart="minicpm",
        gguf_pairs=True,
    )
)
