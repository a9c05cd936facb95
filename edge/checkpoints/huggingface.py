"""Hugging Face checkpoints: a folder of `config.json` and safetensors or PyTorch files, whole or sharded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from edge.tensors import HEAD, check_tensors, expected_tensors

CONFIG = "config.json"
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""The names that `save_pretrained` gives to weights, best first."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
"""One of these is enough to encode text."""
TOKENIZER_FILES = (
    *TOKENIZERS,
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
        data = _read_json(self._folder / CONFIG)
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
        if data.get("tie_word_embeddings") is None and HEAD in self._files:
            # The default for MiniCPM is to tie, but a head of its own is not to be lost silently.
            self._config = replace(self._config, tie_word_embeddings=False)
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
        found = {name: _read(self._folder / name) for name in TOKENIZER_FILES}
        files = {name: data for name, data in found.items() if data is not None}
        if not any(name in files for name in TOKENIZERS):
            raise CheckpointError(
                f"'{self._folder}' has neither tokenizer.json nor tokenizer.model; copy the model's "
                "tokenizer files into it."
            )
        return files

    @property
    def chat_template(self) -> str | None:
        """`chat_template.jinja`, or the (default) template in the tokenizer's configuration."""
        jinja = _read(self._folder / "chat_template.jinja")
        if jinja is not None:
            try:
                return jinja.decode("utf-8")
            except UnicodeDecodeError:
                raise CheckpointError(f"chat_template.jinja of '{self._folder}' is not UTF-8 text.") from None
        for name in ("tokenizer_config.json", "chat_template.json"):
            template = (_read_json(self._folder / name) or {}).get("chat_template")
            if isinstance(template, list):  # several templates with names
                entries = [entry for entry in template if isinstance(entry, dict)]
                template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
            if isinstance(template, str):
                return template
        return None

    @property
    def generation_config(self) -> dict[str, Any]:
        """The contents of `generation_config.json`, or an empty dict."""
        return _read_json(self._folder / "generation_config.json") or {}

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
        name = _weights_name(self._folder)
        if name is None:
            raise CheckpointError(
                f"'{self._folder}' has a {CONFIG} but no weights ({' or '.join(WEIGHTS[1::2])}, whole or in "
                "shards); download them too."
            )
        if not name.endswith(".index.json"):
            file = _open_file(self._folder / name)
            return dict.fromkeys(file.tensors, file)
        weight_map = _weight_map(self._folder, name)
        shards = {shard: _open_file(self._folder / shard) for shard in dict.fromkeys(weight_map.values())}
        for tensor, shard in weight_map.items():
            if tensor not in shards[shard].tensors:
                raise CheckpointError(
                    f"'{self._folder / shard}' lacks tensor '{tensor}' that {name} places there; download "
                    "both again."
                )
        return {tensor: shards[shard] for tensor, shard in weight_map.items()}


def is_complete(folder: Path) -> bool:
    """Whether a folder has everything that a checkpoint needs: config, tokenizer and all files of weights.

    Raises CheckpointError for an index of shards that can't be read.
    """
    if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in TOKENIZERS):
        return False
    name = _weights_name(folder)
    if name is None or not name.endswith(".index.json"):
        return name is not None
    return all((folder / shard).is_file() for shard in _weight_map(folder, name).values())


def _weights_name(folder: Path) -> str | None:
    """The best of WEIGHTS in a folder."""
    return next((name for name in WEIGHTS if (folder / name).is_file()), None)


def _weight_map(folder: Path, index: str) -> dict[str, str]:
    """Tensor name -> name of the file in `folder` that holds it, as an index of shards says."""
    weight_map = (_read_json(folder / index) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"'{folder / index}' has no 'weight_map'; download it again.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or "\\" in shard:
            raise CheckpointError(f"'{folder / index}' names a shard outside its folder: {shard!r}.")
    return weight_map


def _read(path: Path) -> bytes | None:
    """A small file's contents, None if it does not exist."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"Cannot read '{path}': {error.strerror or error}.") from None


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file."""
    data = _read(path)
    if data is None:
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise CheckpointError(f"'{path}' is not valid JSON; download it again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' should hold a JSON object; download it again.")
    return content


def _open_file(path: Path) -> _WeightFile:
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def _quantization_method(config: dict[str, Any]) -> str | None:
    entry = config.get("quantization_config")
    if entry is None:
        return None
    method = entry.get("quant_method") if isinstance(entry, dict) else None
    return str(method or "an unnamed method (field 'quantization_config')")
