"""Soft prompts on the PyTorch executor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edge.checkpoints.bita import SoftWeights
from edge.config import ModelConfig
from edge.errors import EdgeError, NativeError
from edge.executors.checks import integers
from edge.executors.soft import SoftRows
from edge.model.network.soft_prompt import SoftPrompt


class TorchSoftPrompt:
    """See `edge.executors.soft.SoftPrompt`."""

    def __init__(self, weights: SoftWeights, config: ModelConfig) -> None:
        """Raises NativeError for numbers that are not finite."""
        if not all(np.isfinite(each).all() for each in weights.tensors.values()):
            raise NativeError("A number of the soft prompt is not finite.")
        self._count = len(weights.embeddings)
        network = SoftPrompt(config, self._count, weights.keys.shape[1])
        tensors = {name: torch.from_numpy(each.copy()) for name, each in weights.tensors.items()}
        network.load_state_dict(tensors, assign=True)
        self._network: SoftPrompt | None = network.requires_grad_(False)

    @property
    def count(self) -> int:
        """Embeddings."""
        return self._count

    def close(self) -> None:
        """Forget it."""
        self._network = None

    @property
    def network(self) -> SoftPrompt:
        """The weights; NativeError if it is closed."""
        if self._network is None:
            raise NativeError("The soft prompt is closed; open it again.")
        return self._network


class CheckedRows(NamedTuple):
    """Soft rows of a step. numbers: int64 [s]."""

    network: SoftPrompt
    numbers: Tensor


def checked_rows(rows: SoftRows) -> CheckedRows:
    """What a step asks for, or EdgeError."""
    if not isinstance(rows.prompt, TorchSoftPrompt):
        raise NativeError("This soft prompt belongs to another executor.")
    numbers = integers(rows.numbers, "numbers of embeddings", np.int64)
    count = rows.prompt.count
    for number in numbers[(numbers < 0) | (numbers >= count)]:
        raise EdgeError(f"The soft prompt has {count} embeddings: there is no {number}.")
    return CheckedRows(rows.prompt.network, torch.from_numpy(numbers))
