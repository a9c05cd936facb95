"""Weights in and out of PyTorch: from every format that the runtime opens, to a Hugging Face folder.

What files mean is known to the readers in `edge.checkpoints`; here their tensors become torch's, and back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge.checkpoints.gguf import GGUFCheckpoint
from edge.checkpoints.huggingface import HuggingFaceCheckpoint
from edge.checkpoints.opened import CONFIG
from edge.checkpoints.weight_files import INDEX, SAFETENSORS
from edge.config import ModelConfig
from edge.config.families import family_of
from edge.config.huggingface import config_to_hf
from edge.config.row_order import inverse, rows_in_hf
from edge.config.tensors import check_tensors, network_tensors
from edge.errors import CheckpointError
from edge.formats.atomic import Partial, write_failure, write_file
from edge.formats.model_files import ModelFiles
from edge.formats.safetensors import SafetensorsWriter
from edge.model.network.decoder import Decoder
from edge.quant.packing import dequantize

SHARD_BYTES = 5 << 30
"""A larger checkpoint is written in shards of at most this size, unless one tensor alone is larger."""

_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_STORED = {**_NAMES, torch.int64: "I64"}


def open_checkpoint(path: str | Path) -> HuggingFaceCheckpoint | GGUFCheckpoint:
    """A Hugging Face folder or a GGUF file; raises CheckpointError or ConfigError with one sentence."""
    return HuggingFaceCheckpoint(path) if Path(path).is_dir() else GGUFCheckpoint(path)


def load_tensors(
    checkpoint: HuggingFaceCheckpoint | GGUFCheckpoint, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Every tensor of the network under its Hugging Face name.

    Floats keep the type of the file unless `dtype` is given; quantized matrices become float32, each weight
    what the format's own formula gives.
    """
    tensors = {}
    for info in checkpoint.tensors:
        values = torch.from_numpy(checkpoint.read_float32(info.name))
        kept = _TYPES.get(info.source_type.split()[0], torch.float32)
        tensors[info.name] = values.to(dtype or kept)
    return tensors


def load_decoder(
    path: str | Path, context: int | None = None, dtype: torch.dtype | None = torch.float32
) -> Decoder:
    """The network over the weights of a folder or file; see `load_tensors` for dtype."""
    checkpoint = open_checkpoint(path)
    return Decoder.from_tensors(checkpoint.config, load_tensors(checkpoint, dtype), context)


def reference_from_bundle(files: ModelFiles, context: int | None = None) -> Decoder:
    """The network over exactly the weights that the native decoder uses; 4 bytes of RAM per parameter."""
    tensors = {}
    for name, tensor in files.tensors.items():
        weights = dequantize(files.data(name), tensor.scheme, tensor.rows, tensor.columns)
        tensors[name] = torch.from_numpy(weights).reshape(tensor.shape)
    return Decoder.from_tensors(files.config, tensors, context)


def save_huggingface(
    folder: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    tokenizer_files: Mapping[str, bytes] | None = None,
    chat_template: str | None = None,
    generation_config: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that other tools read, in the tensors' own types; it appears complete or not at all.

    folder: must not exist. tensors: those of the network (`Decoder.state_dict`), bfloat16, float16, float32
    or float64. Raises CheckpointError for tensors that do not fit the config or a folder that can't be
    written.
    """
    folder = Path(folder)
    check_tensors(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, "The network")
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"Tensor '{name}' is of type {tensor.dtype}, but floats are saved only.")
    if folder.exists():
        raise CheckpointError(f"'{folder}' exists already; remove it or choose another name.")
    small: dict[str, bytes] = dict(tokenizer_files or {})
    if chat_template is not None:
        small["chat_template.jinja"] = chat_template.encode()
    if generation_config:
        small["generation_config.json"] = _json(generation_config)
    sizes = {dtype: 0 for dtype in _NAMES}
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    common = max(sizes, key=lambda dtype: sizes[dtype])
    small[CONFIG] = _json(config_to_hf(config, str(common).removeprefix("torch.")))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Partial(folder, folder=True) as partial:
            write_weights(partial.path, _as_family(config, tensors), shard_bytes)
            for name, data in small.items():
                write_file(partial.path / name, data)
            partial.keep()
    except OSError as error:
        raise CheckpointError(write_failure(folder, error)) from error


def _as_family(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the family's own checkpoints name and join them, in the network's order."""
    fused = family_of(config).fused
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in network_tensors(config).items():
        theirs = tensor.fused if fused and tensor.fused is not None else tensor.hf
        rows = rows_in_hf(tensor, config)
        kept = tensors[name]
        parts.setdefault(theirs, []).append(kept if rows is None else kept[torch.from_numpy(inverse(rows))])
    return {name: found[0] if len(found) == 1 else torch.cat(found) for name, found in parts.items()}


def write_weights(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write safetensors files, with an index if there are several. Raises OSError."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in tensors:
        size = tensors[name].nbytes
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    stem = SAFETENSORS.removesuffix(".safetensors")
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SAFETENSORS if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        specs = [(name, _STORED[tensors[name].dtype], tuple(tensors[name].shape)) for name in names]
        with SafetensorsWriter(folder / file, specs, {"format": "pt"}) as writer:
            for name in names:
                writer.write(name, tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy())
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(tensors[name].nbytes for name in weight_map)
        write_file(
            folder / (SAFETENSORS + INDEX),
            _json({"metadata": {"total_size": total}, "weight_map": weight_map}),
        )


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
