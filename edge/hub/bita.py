"""Finds the soft prompt that a person names as what guesses for a model."""

from __future__ import annotations

from pathlib import Path

from edge.checkpoints.bita import KIND, SoftWeights, is_bita, random_bita, read_bita
from edge.config import ModelConfig
from edge.hub.resolve import RANDOM, is_there, local_path


def names_bita(spec: str | Path) -> bool:
    """Whether it names one: a folder that says so, or `random:bita`."""
    path = local_path(spec)
    if is_there(path):
        return path.is_dir() and is_bita(path)
    return spec == RANDOM + KIND


def open_bita(spec: str | Path, target: ModelConfig) -> SoftWeights:
    """The one that is named so, for a model of this shape. Raises as `read_bita` does."""
    path = local_path(spec)
    return read_bita(path, target) if is_there(path) else random_bita(target)
