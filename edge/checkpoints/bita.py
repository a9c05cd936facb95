"""Drafts that are a soft prompt of their target (BiTA, arXiv 2401.12522): trained mask tokens, and a prefix
of keys and values that these alone see. Our own format, as nothing else reads the released one.

A folder of `config.json` (`kind`: "bita", and the sizes) with the three tensors of `SoftWeights` in
`model.safetensors`. They are read as they are: some 100 kB need no bundle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.checkpoints.opened import CONFIG, read_json
from edge.config import ModelConfig
from edge.errors import CheckpointError, ConfigError, EdgeError
from edge.formats.atomic import Partial, write_failure, write_file
from edge.formats.safetensors import SafetensorsFile, SafetensorsWriter

KIND = "bita"
MASKS, PREFIX = 2, 16
"""Mask tokens, fewer than the paper's 3 as their rows cost too much here, and rows of the prefix."""
MOST_MASKS, MOST_PREFIX = 16, 256
_FILE = "model.safetensors"

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


def is_bita(folder: Path) -> bool:
    """Whether a folder says that it is such a draft."""
    try:
        return (read_json(folder / CONFIG) or {}).get("kind") == KIND
    except EdgeError:
        return False  # whoever opens it will say what is wrong


def read_bita(folder: Path, target: ModelConfig) -> SoftWeights:
    """The draft in a folder, for a model of this shape. Raises CheckpointError and ConfigError, naming the
    field or the tensor, for what is damaged or made for another model.
    """
    data, where = read_json(folder / CONFIG) or {}, f"'{folder}'"
    if data.get("kind") != KIND:
        raise CheckpointError(f"{where} is no draft of the kind '{KIND}'.")
    sizes = {
        "vocab_size": target.vocab_size,
        "hidden_size": target.hidden_size,
        "num_hidden_layers": target.num_hidden_layers,
        "num_key_value_heads": target.num_key_value_heads,
        "head_dim": target.head_dim,
    }
    for name, wanted in sizes.items():
        if data.get(name) != wanted:
            raise ConfigError(
                f"{where} is a draft for a model whose {name} is {data.get(name)!r}, not {wanted} as here; "
                "take the draft that was trained for this model."
            )
    masks, prefix = (_size(data, *each, where) for each in (("masks", MOST_MASKS), ("prefix", MOST_PREFIX)))
    rows = (target.num_hidden_layers, prefix, target.num_key_value_heads, target.head_dim)
    shapes = {
        "mask_embeddings": (masks, target.hidden_size),
        "prefix_keys": rows,
        "prefix_values": rows,
    }
    file = SafetensorsFile(folder / _FILE)
    for name in sorted(shapes.keys() | file.tensors.keys()):
        found = file.tensors[name].shape if name in file.tensors else None
        if found != shapes.get(name):
            raise CheckpointError(
                f"Tensor '{name}' of {where} has shape {found}, but its {CONFIG} asks for {shapes.get(name)}."
            )
    embeddings, keys, values = (file.read_float32(name) for name in shapes)
    for name, each in zip(shapes, (embeddings, keys, values), strict=True):
        if not np.isfinite(each).all():
            raise CheckpointError(f"Tensor '{name}' of {where} has numbers that are not finite.")
    return SoftWeights(embeddings, keys, values)


def write_bita(folder: Path, weights: SoftWeights, target: ModelConfig) -> None:
    """Write such a folder, which must not exist."""
    values = {
        "kind": KIND,
        "masks": len(weights.embeddings),
        "prefix": weights.keys.shape[1],
        "vocab_size": target.vocab_size,
        "hidden_size": target.hidden_size,
        "num_hidden_layers": target.num_hidden_layers,
        "num_key_value_heads": target.num_key_value_heads,
        "head_dim": target.head_dim,
    }
    specs = [(name, "F32", each.shape) for name, each in weights.tensors.items()]
    try:
        with Partial(folder, folder=True) as partial:
            with SafetensorsWriter(partial.path / _FILE, specs, {"format": "pt"}) as writer:
                for name, each in weights.tensors.items():
                    writer.write(name, np.ascontiguousarray(each, "<f4").view(np.uint8))
            write_file(partial.path / CONFIG, (json.dumps(values, indent=2) + "\n").encode())
            partial.keep()
    except OSError as error:
        raise CheckpointError(write_failure(folder, error)) from error


def random_bita(target: ModelConfig, seed: int = 0) -> SoftWeights:
    """Of the usual sizes, for tests and the cost model."""
    rng = np.random.default_rng(seed)
    rows = (target.num_hidden_layers, PREFIX, target.num_key_value_heads, target.head_dim)
    shapes = ((MASKS, target.hidden_size), rows, rows)
    return SoftWeights(*(0.1 * rng.standard_normal(shape, np.float32) for shape in shapes))


def _size(data: Mapping[str, object], name: str, most: int, where: str) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"'{name}' of {where} must be a number from 1 to {most}, not {value!r}.")
    return value
