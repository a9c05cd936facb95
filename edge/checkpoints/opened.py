"""Opens the weights of a Hugging Face folder, whole or in shards, in safetensors or PyTorch files.

Which of a folder's files they are is known to `weight_files`, what a network makes of them to `huggingface`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import FLOAT_TYPES, TensorInfo
from edge.checkpoints.int4_linear import Int4Settings
from edge.checkpoints.ternary_values import find_ternary
from edge.checkpoints.torch_pickle import TorchFile
from edge.checkpoints.weight_files import INDEX, shard_of, unused_weights, weights_name, why_no_weights
from edge.config.fields import listed, refuse_two
from edge.errors import CheckpointError
from edge.formats.guarded_json import parse_object
from edge.formats.model_folder import member, read_member
from edge.formats.names import accept_file_name
from edge.formats.safetensors import SafetensorsFile, TensorEntry, to_float32
from edge.quant.scheme import QuantScheme
from edge.system.notices import notice

CONFIG = "config.json"
GPTQ_CONFIG = "quantize_config.json"


class WeightFile(Protocol):
    """What SafetensorsFile and TorchFile have in common."""

    @property
    def tensors(self) -> Mapping[str, TensorEntry]: ...

    def array(self, name: str) -> npt.NDArray[Any]: ...

    def read_float32(self, name: str) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class Stored:
    """Where a tensor of the network lies: a tensor of a file, or rows of one: it shares it with others, or
    has them in another order."""

    file: WeightFile
    name: str
    shape: tuple[int, ...]
    rows: slice | npt.NDArray[np.intp] | None = None

    @property
    def dtype(self) -> str:
        """Its type as safetensors spells it."""
        return self.file.tensors[self.name].dtype

    def array(self) -> npt.NDArray[Any]:
        """Its values as the file has them."""
        whole = self.file.array(self.name)
        return whole if self.rows is None else whole[self.rows]

    def read_float32(self) -> npt.NDArray[np.float32]:
        """Its values as float32, a copy."""
        if self.rows is None:
            return self.file.read_float32(self.name)
        return to_float32(self.array(), self.dtype, f"Tensor '{self.name}'")

    def at(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Some rows of a matrix as float32."""
        return to_float32(self.array()[rows], self.dtype, f"Tensor '{self.name}'")

    def describe(self, name: str, where: str) -> TensorInfo:
        """What is known without reading all of it: floats, or ternary values that were saved as floats.

        name: the tensor's own; where: its folder in quotes. CheckpointError for a type without floats.
        """
        dtype = self.dtype
        if dtype not in FLOAT_TYPES:
            raise CheckpointError(
                f"Tensor '{name}' of {where} has type {dtype}, but a floating-point type was "
                "expected; use the unquantized checkpoint or a GGUF file of the model."
            )
        if len(self.shape) == 1:
            return TensorInfo(name, self.shape, dtype, QuantScheme("f32"))
        raw = self.array()
        ternary = find_ternary(self.shape[0], lambda rows: to_float32(raw[rows], dtype, name))
        if ternary is not None:
            return TensorInfo(name, self.shape, f"{dtype} ternary", *ternary)
        return TensorInfo(name, self.shape, dtype, QuantScheme("f16"))


def open_weights(folder: Path) -> dict[str, WeightFile]:
    """Tensor name -> the open file that holds it; CheckpointError for a folder without sound weights."""
    name = weights_name(folder)
    if name is None:
        raise CheckpointError(why_no_weights(folder))
    say_which_weights(folder)
    if not name.endswith(INDEX):
        file = _open_file(folder / name)
        return dict.fromkeys(file.tensors, file)
    weight_map = shard_map(folder, name)
    shards = {shard: _open_file(folder / shard) for shard in dict.fromkeys(weight_map.values())}
    held = {shard: file.tensors for shard, file in shards.items()}
    return {tensor: shards[shard] for tensor, shard in shard_of(weight_map, held, folder / name)}


def say_which_weights(folder: Path) -> None:
    """A notice for a folder with more than one set of weights; CheckpointError for an index that can't be
    read."""
    name = weights_name(folder)
    if name is None:
        return
    used = shard_map(folder, name).values() if name.endswith(INDEX) else (name,)
    others = unused_weights(folder, set(used))
    if others:
        notice(
            f"'{folder}' has more than one set of weights: {name} is used, as transformers does, and "
            f"{listed(others[:4] if len(others) < 5 else [*others[:3], f'{len(others) - 3} more'])} not."
        )


def shard_map(folder: Path, index: str) -> dict[str, str]:
    """Tensor name -> name of the file in `folder` that holds it, as an index of shards says."""
    weight_map = (read_json(folder / index) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"'{folder / index}' has no 'weight_map'; download it again.")
    for shard in weight_map.values():
        accept_file_name(shard, folder / index, CheckpointError)
    return weight_map


def read_small(path: Path) -> bytes | None:
    """A small file's contents, None if it does not exist."""
    return read_member(path.parent, path.name, CheckpointError)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file."""
    data = read_small(path)
    return None if data is None else parse_object(data, path, CheckpointError, "download it again")


def _open_file(path: Path) -> WeightFile:
    member(path.parent, path.name, CheckpointError)
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def quantization_config(folder: Path) -> dict[str, Any] | None:
    """How a folder's weights are packed, as its files say: None for plain floats.

    `config.json` says it, or AutoGPTQ's older `quantize_config.json`. Raises CheckpointError for an entry
    that is not an object, ConfigError for two that contradict each other.
    """
    entry = (read_json(folder / CONFIG) or {}).get("quantization_config")
    older = read_json(folder / GPTQ_CONFIG)
    if entry is None:
        return None if older is None else {"quant_method": "gptq", **older}
    if not isinstance(entry, dict):
        raise CheckpointError(
            f"The field 'quantization_config' of '{folder / CONFIG}' must be an object, not {entry!r}."
        )
    for name in Int4Settings.READ:
        refuse_two(
            f"'{folder}'",
            {
                f"quantization_config.{name}": entry.get(name),
                f"{GPTQ_CONFIG}: {name}": (older or {}).get(name),
            },
        )
    return entry
