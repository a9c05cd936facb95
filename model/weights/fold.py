"""Folds MiniCPM's muP scales into the weights, so that tools that know Llama only run the same network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from edge.config import ModelConfig
from edge.config.families import scaled_family
from edge.config.tensors import EMBEDDING, HEAD, network_tensors
from edge.errors import ConfigError


def fold_mup(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A plain Llama's config and weights that give the same logits.

    A tied head is untied first: embedding and head get different scales (places 1 and 3). Products are
    rounded to each tensor's own type. Raises ConfigError for a mixture of experts, which Llama does not have.
    """
    if config.num_experts:
        raise ConfigError("num_experts: a mixture of experts has no Llama form.")
    factors = {
        name: config.residual_scale
        for name, tensor in network_tensors(config).items()
        if tensor.role.joins_stream
    }
    factors |= {EMBEDDING: config.embedding_scale, HEAD: config.logit_scale}
    folded = dict(tensors)
    folded.setdefault(HEAD, tensors[EMBEDDING])
    for name, tensor in folded.items():
        scale = factors.get(name, 1.0)
        folded[name] = tensor.clone() if scale == 1.0 else (tensor.float() * scale).to(tensor.dtype)
    plain = replace(config, tie_word_embeddings=False, scale_emb=None, scale_depth=None, dim_model_base=None)
    return replace(plain, model_type=scaled_family(plain).model_type), folded
