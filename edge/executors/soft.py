"""Soft prompts beside a model: rows of a step that stand for tokens which nobody knows yet (BiTA, arXiv
2401.12522).

A soft row begins with a trained embedding in place of a token's, and sees a trained prefix of keys and values
before the sequence's own, which no other row does. So the other rows give what they give without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


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
