"""Hugging Face checkpoints: a folder of `config.json` and safetensors or PyTorch files, whole or sharded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo
from edge.checkpoints.torch_pickle import TorchFile
from edge.config import ModelConfig
from edge.errors import CheckpointError
from edge.safetensors_file import SafetensorsFile, TensorEntry
from edge.scheme import QuantScheme
from edge.tensors import check_tensors, expected_tensors

CONFIG = "config.json"
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""The names that `save_pretrained` gives to weights, best first."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
_FLOATS = ("F64", "F32", "F16", "BF16")


class _WeightFile(Protocol):
    """What SafetensorsFile and TorchFile have in common."""

    @property
    def tensors(self) -> Mapping[str, TensorEntry]: ...

    def read_float32(self, name: str) -> npt.NDArray[np.float32]: ...


class HuggingFaceCheckpoint:
    """A folder as `save_pretrained` writes it, with float weights in safetensors or PyTorch files.

    source: where the folder came from, by default its path. Raises CheckpointError for a folder that lacks a
    file, for damaged files, and for weights that are quantized or do not fit `config.json`; ConfigError for a
    config that it does not understand.
    """

    def __init__(self, folder: Path | str, source: str | None = None) -> None:
        self._folder = Path(folder)
        self._source = str(self._folder) if source is None else source
        data = self._json(CONFIG)
        if data is None:
            raise CheckpointError(
                f"'{self._folder}' has no {CONFIG}, so it is not a Hugging Face checkpoint; give the folder "
                "that holds config.json, the weights and the tokenizer."
            )
        method = _quantization_method(data)
        if method is not None:
            raise CheckpointError(
                f"'{self._folder}' holds weights quantized with {method}, which cannot be imported; use the "
                "unquantized checkpoint or a GGUF file of the model."
            )
        self._config = ModelConfig.from_hf(data)
        self._files = self._open_weights()
        found = {name: file.tensors[name].shape for name, file in self._files.items()}
        check_tensors(self._config, found, f"'{self._folder}'")
        self._tensors = [
            self._describe(name, shape) for name, shape in expected_tensors(self._config).items()
        ]

    @property
    def source(self) -> str:
        """The hub id or the folder's path."""
        return self._source

    @property
    def config(self) -> ModelConfig:
        """The network that `config.json` describes."""
        return self._config

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor that the network needs, checked against the config's shapes."""
        return self._tensors

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32."""
        return self._files[name].read_float32(name)

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files by name; CheckpointError if there is no tokenizer that can be used."""
        found = {name: self._bytes(name) for name in TOKENIZER_FILES}
        files = {name: data for name, data in found.items() if data is not None}
        if "tokenizer.json" not in files and "tokenizer.model" not in files:
            raise CheckpointError(
                f"'{self._folder}' has neither tokenizer.json nor tokenizer.model; copy the model's "
                "tokenizer files into it."
            )
        return files

    @property
    def chat_template(self) -> str | None:
        """`chat_template.jinja`, or the (default) template in the tokenizer's configuration."""
        jinja = self._bytes("chat_template.jinja")
        if jinja is not None:
            try:
                return jinja.decode("utf-8")
            except UnicodeDecodeError:
                raise CheckpointError(f"chat_template.jinja of '{self._folder}' is not UTF-8 text.") from None
        for name in ("tokenizer_config.json", "chat_template.json"):
            template = (self._json(name) or {}).get("chat_template")
            if isinstance(template, list):  # several templates with names
                named = {
                    entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)
                }
                template = named.get("default")
            if isinstance(template, str):
                return template
        return None

    @property
    def generation_config(self) -> dict[str, Any]:
        """The contents of `generation_config.json`, or an empty dict."""
        return self._json("generation_config.json") or {}

    def _describe(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        dtype = self._files[name].tensors[name].dtype
        if dtype not in _FLOATS:
            raise CheckpointError(
                f"Tensor '{name}' of '{self._folder}' has type {dtype}, but a floating-point type was "
                "expected; use the unquantized checkpoint or a GGUF file of the model."
            )
        return TensorInfo(name, shape, dtype, QuantScheme("f32" if len(shape) == 1 else "f16"))

    def _open_weights(self) -> dict[str, _WeightFile]:
        """Tensor name -> the open file that holds it."""
        name = next((name for name in WEIGHTS if (self._folder / name).is_file()), None)
        if name is None:
            raise CheckpointError(
                f"'{self._folder}' has a {CONFIG} but no weights ({' or '.join(WEIGHTS[1::2])}, whole or in "
                "shards); download them too."
            )
        if not name.endswith(".index.json"):
            file = _open_file(self._folder / name)
            return dict.fromkeys(file.tensors, file)
        weight_map = (self._json(name) or {}).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"'{self._folder / name}' has no 'weight_map'; download it again.")
        shards: dict[str, _WeightFile] = {}
        for shard in dict.fromkeys(weight_map.values()):
            if not isinstance(shard, str) or PurePosixPath(shard).name != shard or "\\" in shard:
                raise CheckpointError(f"'{self._folder / name}' names a shard outside its folder: {shard!r}.")
            shards[shard] = _open_file(self._folder / shard)
        for tensor, shard in weight_map.items():
            if tensor not in shards[shard].tensors:
                raise CheckpointError(
                    f"'{self._folder / shard}' lacks tensor '{tensor}' that {name} places there; download "
                    "both again."
                )
        return {tensor: shards[shard] for tensor, shard in weight_map.items()}

    def _bytes(self, name: str) -> bytes | None:
        """A small file's contents, None if it does not exist."""
        try:
            return (self._folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CheckpointError(
                f"Cannot read '{self._folder / name}': {error.strerror or error}."
            ) from None

    def _json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file, None if there is no such file."""
        data = self._bytes(name)
        if data is None:
            return None
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            raise CheckpointError(f"'{self._folder / name}' is not valid JSON; download it again.") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"'{self._folder / name}' should hold a JSON object; download it again.")
        return content


def _open_file(path: Path) -> _WeightFile:
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def _quantization_method(config: dict[str, Any]) -> str | None:
    entry = config.get("quantization_config")
    if entry is None:
        return None
    method = entry.get("quant_method") if isinstance(entry, dict) else None
    return str(method or "an unnamed method (field 'quantization_config')")
