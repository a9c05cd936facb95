"""A family with everything that one may add to a Llama: biases, norms of q and k, layers without RoPE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from edge.config import ModelConfig, families
from edge.config.families import Family, register_family
from edge.config.roles import DECODER, QK_NORMS, QKV_BIASES

OAK = Family(
    "oak",
    "OakForCausalLM",
    gguf="oak",
    roles=(*DECODER, *QKV_BIASES, *QK_NORMS),
    rope_interval=2,
    gguf_pairs=True,
    fused=True,
)


@contextmanager
def registered(*added: Family) -> Iterator[None]:
    """These families are known until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families.FAMILIES, "_found", dict(families.FAMILIES._found))
        patch.setattr(families, "_BY_GGUF", dict(families._BY_GGUF))
        for family in added:
            register_family(family)
        yield


def oak(config: ModelConfig) -> ModelConfig:
    """A network of the same shape with every part of the family."""
    return replace(
        config, model_type="oak", layers_without_rope=OAK.layers_without_rope(config.num_hidden_layers)
    )
