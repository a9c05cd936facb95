"""Hugging Face checkpoints: a folder of `config.json` and safetensors or PyTorch files, whole or sharded.

What 4-bit packings mean is known to `int4_linear`; which of a network's matrices are packed is found here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import TensorInfo
from edge.checkpoints.chat_templates import chosen_template
from edge.checkpoints.int4_linear import PARTS, Int4Linear, Int4Settings, open_int4
from edge.checkpoints.opened import (
    CONFIG,
    Stored,
    open_weights,
    quantization_config,
    read_json,
    read_small,
    shard_map,
)
from edge.checkpoints.weight_files import (
    INDEX,
    gguf_files,
    weights_name,
)
from edge.config import ModelConfig
from edge.config.families import family_of
from edge.config.fields import listed
from edge.config.huggingface import config_from_hf
from edge.config.row_order import rows_in_hf
from edge.config.tensors import EMBEDDING, HEAD, NetworkTensor, check_tensors, network_tensors
from edge.errors import CheckpointError
from edge.formats.guarded_json import decode_text
from edge.formats.safetensors import to_float32
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix
from edge.system.notices import notice

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
_BLOCK_WEIGHTS = 1 << 22


class HuggingFaceTexts:
    """What a folder says beside its weights, which need not be there yet: the network, the tokenizer, the
    chat template and generation settings.

    Raises CheckpointError and ConfigError as `HuggingFaceCheckpoint` does.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        data = read_json(self._folder / CONFIG)
        if data is None:
            if self._folder.is_dir() and (files := gguf_files(self._folder)):
                raise CheckpointError(
                    f"'{self._folder}' is a folder with {listed(files[:4])}; name a GGUF file itself."
                )
            raise CheckpointError(
                f"'{self._folder}' has no {CONFIG}, so it is not a Hugging Face checkpoint; give the folder "
                "that holds config.json, the weights and the tokenizer."
            )
        self._data = data
        self._config = config_from_hf(data)

    @property
    def config(self) -> ModelConfig:
        """The network that `config.json` describes."""
        return self._config

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files by name; CheckpointError if there is no tokenizer that can be used."""
        found = {name: read_small(self._folder / name) for name in TOKENIZER_FILES}
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
        path = self._folder / "chat_template.jinja"
        jinja = read_small(path)
        found = {path.name: None if jinja is None else decode_text(jinja, path, CheckpointError)}
        for name in ("tokenizer_config.json", "chat_template.json"):
            found[name] = (read_json(self._folder / name) or {}).get("chat_template")
        return chosen_template(found, f"'{self._folder}'")

    @property
    def generation_config(self) -> dict[str, Any]:
        """The contents of `generation_config.json`, or an empty dict."""
        return read_json(self._folder / "generation_config.json") or {}


class HuggingFaceCheckpoint(HuggingFaceTexts):
    """A folder as `save_pretrained` writes it: floats, or linear layers packed by GPTQ, AWQ or Marlin.

    source: where the folder came from, by default its path. Float matrices that hold ternary values (BitCPM)
    are found by those values. Raises CheckpointError for a folder that lacks a file, for damaged files, and
    for weights that are quantized otherwise or do not fit `config.json`; ConfigError for a config that it
    does not understand.
    """

    def __init__(self, folder: Path | str, source: str | None = None) -> None:
        super().__init__(folder)
        self._source = str(self._folder) if source is None else source
        entry = quantization_config(self._folder)
        settings = None if entry is None else Int4Settings.from_config(entry, f"'{self._folder}'")
        self._files = open_weights(self._folder)
        family = family_of(self._config)
        tied, untied = self._config, replace(self._config, tie_word_embeddings=False)
        head = network_tensors(untied).get(HEAD)
        if head is not None and self._has_head(head):
            self._config = untied
        self._network = network_tensors(self._config)
        self._canonical = {tensor.hf: name for name, tensor in self._network.items()}
        self._fused: dict[str, list[str]] = {}
        for name, tensor in self._network.items():
            if tensor.fused is not None:
                self._fused.setdefault(tensor.fused, []).append(name)
        self._packed = {} if settings is None else self._open_packed(settings)
        packed = any(name.endswith(".qweight") for name in self._files)
        if packed != (settings is not None):
            has = "packed 4-bit weights but no" if packed else "plain weights but a"
            raise CheckpointError(
                f"'{self._folder}' has {has} 'quantization_config'; its files do not belong together."
            )
        self._stored = self._place(family.fused, settings is not None)
        found = {name: stored.shape for name, stored in self._stored.items()}
        found |= {name: linear.shape for name, linear in self._packed.items()}
        check_tensors(self._config, found, f"'{self._folder}'")
        if tied != self._config:
            self._settle_tie(tied)
        self._tensors = [self._describe(name) for name in self._network]
        self._schemes = {info.name: info.scheme for info in self._tensors}

    @property
    def source(self) -> str:
        """The hub id or the folder's path."""
        return self._source

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor that the network needs, checked against the config's shapes."""
        return self._tensors

    def read(self, name: str) -> npt.NDArray[np.float32] | QuantizedMatrix:
        """One tensor in the scheme that its TensorInfo names."""
        if name in self._packed:
            return self._packed[name].read()
        values = self._stored[name].read_float32()
        scheme = self._schemes[name]
        return values if scheme.is_float else quantize(values, scheme, name)

    def read_float32(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32, exactly as the file means it: nothing is rounded."""
        if name in self._packed:
            return self._packed[name].read_float32()
        return self._stored[name].read_float32()

    def _describe(self, name: str) -> TensorInfo:
        if name in self._packed:
            linear = self._packed[name]
            return TensorInfo(name, linear.shape, linear.source_type, linear.scheme, linear.exact)
        return self._stored[name].describe(name, f"'{self._folder}'")

    def _has_head(self, head: NetworkTensor) -> bool:
        """Whether the files have a head; CheckpointError if they lack one that is not tied.

        transformers starts with a random head there.
        """
        stem = head.hf.removesuffix(".weight")
        if head.hf in self._files or f"{stem}.qweight" in self._files:
            return True
        if not self._config.tie_word_embeddings:
            family = family_of(self._config)
            tie = family.fields.get("tie_word_embeddings", "tie_word_embeddings")
            raise CheckpointError(
                f"'{self._folder}' has no tensor '{head.hf}', and its {CONFIG} does not say that the head is "
                f"tied to the embedding; set {tie} to true if it is, else download the weights again."
            )
        return False

    def _settle_tie(self, tied: ModelConfig) -> None:
        """The config says that head and embedding are one, but the files have both: as in transformers, they
        are one if they are equal."""
        rows, columns = self._network[HEAD].shape
        step = max(1, _BLOCK_WEIGHTS // columns)  # a large head's floats never exist at once
        blocks = (slice(start, start + step) for start in range(0, rows, step))
        if all(np.array_equal(self._rows(EMBEDDING, at), self._rows(HEAD, at)) for at in blocks):
            self._config, self._network = tied, network_tensors(tied)
        else:
            notice(
                f"'{self._folder}' has a head of its own, other than the embedding to which its {CONFIG} "
                "ties it: the head is used, as transformers does."
            )

    def _rows(self, name: str, at: slice) -> npt.NDArray[np.float32]:
        """Some rows of a matrix as float32."""
        if name in self._packed:
            return self._packed[name].rows(at).read_float32()
        stored = self._stored[name]
        return to_float32(stored.array()[at], stored.dtype, f"Tensor '{name}'")

    def _open_packed(self, settings: Int4Settings) -> dict[str, Int4Linear]:
        """Name of a weight -> its packed matrix; fused layers are taken apart."""
        where = f"'{self._folder}'"
        entries = {name: file.tensors[name] for name, file in self._files.items()}
        found: dict[str, Int4Linear] = {}

        def read(name: str) -> npt.NDArray[Any]:
            return self._files[name].array(name)

        for name in self._files:
            stem, _, kind = name.rpartition(".")
            if kind != "qweight":
                continue
            whole_name = f"{stem}.weight"
            names = self._fused.get(whole_name) or [self._canonical.get(whole_name, whole_name)]
            parts = [self._network.get(each) for each in names]
            unfit = any(part is None or len(part.shape) != 2 or part.hf in self._files for part in parts)
            if unfit or not found.keys().isdisjoint(names):
                raise CheckpointError(
                    f"{where} has a tensor '{name}', which has no place in the network, or a second one "
                    "for it; running without it would give wrong text."
                )
            sizes = [self._network[each].shape[0] for each in names]
            columns = self._network[names[0]].shape[1]
            whole = open_int4(stem, sum(sizes), columns, settings, entries, read, where)
            start = 0
            for each, size in zip(names, sizes, strict=True):
                rows = self._rows_at(each, start, size)
                found[each] = whole if len(names) == 1 and isinstance(rows, slice) else whole.rows(rows)
                start += size
        return found

    def _rows_at(self, name: str, start: int, size: int) -> slice | npt.NDArray[np.intp]:
        """Where the rows of a tensor lie in one that has them from `start` on, in the network's order."""
        order = rows_in_hf(self._network[name], self._config)
        return slice(start, start + size) if order is None else start + order

    def _belongs_to_packed(self, name: str) -> bool:
        """Whether a tensor is a part of a packed layer, or a bias of zeros, which some packers add."""
        stem, _, part = name.rpartition(".")
        if f"{stem}.qweight" not in self._files:
            return False
        if name in self._canonical or name in self._fused:
            return False
        return part in PARTS or (part == "bias" and not self._files[name].read_float32(name).any())

    def _place(self, fused: bool, packed: bool) -> dict[str, Stored]:
        """Where the network's plain tensors lie, by name; what has no place in it keeps its own name.

        fused: tensors that hold several are taken apart. packed: some matrices lie in packed tensors.
        """
        found: dict[str, Stored] = {}

        def place(ours: str, stored: Stored) -> None:
            if ours in found:
                raise CheckpointError(
                    f"'{self._folder}' has '{ours}' twice, in its tensors '{found[ours].name}' and "
                    f"'{stored.name}'; remove the one that is not meant."
                )
            found[ours] = stored

        for name, file in self._files.items():
            shape = file.tensors[name].shape
            parts = self._fused.get(name, []) if fused else []
            if packed and self._belongs_to_packed(name):
                continue
            ours = self._canonical.get(name, name)
            if ours in self._network and self._network[ours].hf != name:
                raise CheckpointError(
                    f"'{self._folder}' has a tensor '{name}', which models of type {self._config.model_type} "
                    f"call '{self._network[ours].hf}'; the file belongs to another model."
                )
            if not parts:
                order = rows_in_hf(self._network[ours], self._config) if ours in self._network else None
                fits = order is not None and shape[:1] == order.shape  # others are refused for their shape
                place(ours, Stored(file, name, shape, order if fits else None))
                continue
            sizes = [self._network[each].shape[0] for each in parts]
            if shape[:1] != (sum(sizes),):
                raise CheckpointError(
                    f"Tensor '{name}' of '{self._folder}' has shape {'x'.join(map(str, shape))}, but its "
                    f"configuration asks for {sum(sizes)} rows; they belong to different models."
                )
            start = 0
            for each, size in zip(parts, sizes, strict=True):
                place(each, Stored(file, name, (size, *shape[1:]), self._rows_at(each, start, size)))
                start += size
        return found


def is_complete(folder: Path) -> bool:
    """Whether a folder has everything that a checkpoint needs: config, tokenizer and all files of weights.

    Raises CheckpointError for an index of shards that can't be read.
    """
    return any((folder / name).is_file() for name in TOKENIZERS) and has_weights(folder)


def has_weights(folder: Path) -> bool:
    """Whether a folder has a config and all files of its weights; raises as `is_complete` does."""
    name = weights_name(folder) if (folder / CONFIG).is_file() else None
    if name is None or not name.endswith(INDEX):
        return name is not None
    return all((folder / shard).is_file() for shard in shard_map(folder, name).values())
