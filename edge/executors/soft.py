"""Soft prompts beside a model: rows of a step that stand for tokens which nobody knows yet (BiTA, arXiv
2401.12522).

A soft row begins with a trained embedding in place of a token's, and sees a trained prefix of keys and values
before the sequence's own, which no other row does. So the other rows give what they give without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.errors import ConfigError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SoftWeights:
    """What is trained of a soft prompt.

    embeddings: float32 [m, hidden_size], like rows of the model's embedding, before its scale. keys, values:
    float32 [layers, prefix, kv_heads, head_dim]; the keys as they are after norms, and never rotated.
    """

    embeddings: Floats
    keys: Floats
    values: Floats

    def check_target(self, target: ModelConfig, source: str) -> None:
        """Raise ConfigError if it does not fit a model of that shape; source: it, in words."""
        layers, _, heads, dim = self.keys.shape
        found = {
            "hidden_size": self.embeddings.shape[1],
            "num_hidden_layers": layers,
            "num_key_value_heads": heads,
            "head_dim": dim,
        }
        for name, own in found.items():
            if own != (wanted := getattr(target, name)):
                raise ConfigError(
                    f"{source} is a draft for a model whose {name} is {own}, not {wanted} as here; take the "
                    "draft that was trained for this model."
                )

    @property
    def bytes(self) -> int:
        """Of its memory."""
        return self.embeddings.nbytes + self.keys.nbytes + self.values.nbytes

    @property
    def tensors(self) -> Mapping[str, Floats]:
        """By their names in files."""
        return {"mask_embeddings": self.embeddings, "prefix_keys": self.keys, "prefix_values": self.values}


class SoftPrompt(Protocol):
    """Soft weights on an executor."""

    @property
    def count(self) -> int:
        """Embeddings."""

    def close(self) -> None:
        """Free it; steps can't have it afterwards."""


@dataclass(frozen=True, eq=False)
class SoftRows:
    """Soft rows at the end of a step. numbers: int32 [s], the embedding of each."""

    prompt: SoftPrompt
    numbers: npt.NDArray[np.int32]


@runtime_checkable
class TakesSoftRows(Protocol):
    """What an executor with `capabilities.soft_rows` offers beside `Executor`."""

    def open_soft(self, weights: SoftWeights) -> SoftPrompt:
        """A soft prompt for steps of this executor; EdgeError if it does not fit, or has numbers that are not
        finite.
        """
