"""The tensors that a network has, for whatever reads or writes weights: derived from its family's roles.

Names are those of Llama in Hugging Face, whatever the family's own checkpoints call them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge.config import ModelConfig
from edge.config.families import Family, family_of
from edge.config.roles import EMBEDDING, EXPERTS, FINAL_NORM, HEAD, Role, Shape
from edge.errors import CheckpointError, ConfigError

__all__ = [
    "EMBEDDING",
    "FINAL_NORM",
    "HEAD",
    "NetworkTensor",
    "Shape",
    "beyond_llama",
    "check_dense",
    "check_tensors",
    "expected_tensors",
    "layer_tensors",
    "network_tensors",
]


@dataclass(frozen=True)
class NetworkTensor:
    """One tensor of a network and what others call it.

    layer, expert: None outside of them. hf, fused, gguf: its names in the family's own checkpoints, in one
    tensor with others, and in GGUF; see `Role`.
    """

    role: Role
    shape: Shape
    layer: int | None
    hf: str
    fused: str | None
    gguf: str | None


def network_tensors(config: ModelConfig) -> dict[str, NetworkTensor]:
    """Every tensor of the network by name, in the order in which decoding reads them.

    Matrices are (rows = outputs, columns = inputs), norms and biases are (size,). There is no
    `lm_head.weight` when it is tied to the embedding. EdgeError for a family that is unknown.
    """
    family = family_of(config)
    roles = [role for role in family.roles if role.is_in(config)]
    layered = [role for role in roles if role.each != "network"]
    first = roles.index(layered[0])
    tensors = dict(_named(config, family, roles[:first]))
    for index in range(config.num_hidden_layers):
        tensors |= dict(_named(config, family, layered, index))
    tensors |= dict(_named(config, family, [role for role in roles[first:] if role.each == "network"]))
    return tensors


def layer_tensors(config: ModelConfig) -> frozenset[str]:
    """Names of a layer's tensors inside the layer, those of experts left out."""
    return frozenset(
        role.name for role in family_of(config).roles if role.each == "layer" and role.is_in(config)
    )


def expected_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor of the network with its shape; see `network_tensors`."""
    return {name: tensor.shape for name, tensor in network_tensors(config).items()}


def beyond_llama(config: ModelConfig) -> tuple[str, ...]:
    """What the network has that a Llama has not and its weights can't make up for, in words."""
    found = [
        role.words if role.part is None else role.part.words
        for role in family_of(config).roles
        if role.native is None and role.is_in(config)
    ]
    if config.layers_without_rope:
        found.append("layers without RoPE")
    if config.rope.rotary_dim is not None:
        found.append("partial rotary embedding")
    return tuple(dict.fromkeys(found))


def check_dense(config: ModelConfig) -> None:
    """Raise ConfigError for a mixture of experts, which the runtime does not run."""
    if EXPERTS.present(config):
        raise ConfigError(
            f"num_experts is {config.num_experts}: mixture-of-experts networks cannot be run yet; "
            "use a dense model."
        )


def check_tensors(config: ModelConfig, found: Mapping[str, Shape], source: str) -> None:
    """Compare a checkpoint's tensors with what its config asks for.

    A missing tensor, a wrong shape, and a tensor that the network would ignore (a bias, say) raise
    CheckpointError with the tensor's name. Rotary frequencies are harmless and let through. A head beside
    tied embeddings is not: whoever reads a checkpoint decides between the two.
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
        if name not in expected and not name.endswith("rotary_emb.inv_freq"):
            raise CheckpointError(
                f"{source} has a tensor '{name}', which the {config.model_type} network built here "
                "does not have; running without it would give wrong text."
            )


def _named(
    config: ModelConfig, family: Family, roles: list[Role], layer: int | None = None
) -> Iterator[tuple[str, NetworkTensor]]:
    """The tensors of these roles in one layer, or outside of the layers; experts one after another."""
    ours, theirs, llama_cpp = (
        ("", "", "")
        if layer is None
        else (f"model.layers.{layer}.", f"{family.layers}.{layer}.", f"blk.{layer}.")
    )
    experts = [role for role in roles if role.each == "expert"]
    for role, expert in (
        *((role, 0) for role in roles if role.each != "expert"),
        *((role, expert) for expert in range(config.num_experts) for role in experts),
    ):
        name = role.name.format(expert=expert)
        yield (
            ours + name,
            NetworkTensor(
                role,
                role.shape_in(config),
                layer,
                theirs + (role.hf or role.name).format(expert=expert),
                None if role.fused is None else theirs + role.fused,
                None if role.gguf is None else llama_cpp + role.gguf,
            ),
        )


def _text(shape: Shape) -> str:
    return "x".join(str(size) for size in shape) or "scalar"
