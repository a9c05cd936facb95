"""GGUF files (llama.cpp's format) as a Checkpoint: names, row order, types and metadata.

The container is read by `edge.formats.gguf_file` and `gguf_parts`, the block formats by `gguf_blocks`;
configuration and tokenizer metadata are understood by `edge.config` and `edge.text.tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.checkpoints import gguf_blocks
from edge.checkpoints.base import TensorInfo
from edge.checkpoints.ternary_values import find_ternary
from edge.config import ModelConfig
from edge.config.generation import read_generation_config
from edge.config.gguf import SAMPLING_KEYS, config_from_gguf
from edge.config.row_order import rows_in_gguf
from edge.config.tensors import check_tensors, expected_tensors, network_tensors
from edge.errors import CheckpointError
from edge.formats.gguf_parts import open_gguf
from edge.quant.rounding import quantize
from edge.quant.scheme import QuantizedMatrix, QuantScheme

_FLOATS = ("F32", "F16", "BF16")
_KNOWN = (*_FLOATS, *gguf_blocks.SCHEMES, *gguf_blocks.ROUNDED)
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")

_Rows = slice | npt.NDArray[np.intp]


class GGUFCheckpoint:
    """A GGUF file of an architecture that a model family names; of a split file any part may be named.

    Rows of q and k are put into the order of the network (`edge.config.row_order`), and fused tensors are
    taken apart, whatever the type. Matrices keep their type where an exact counterpart exists; Q4_K and
    IQ4_XS keep their codes with scales rounded to float16, Q2_K, Q3_K, Q5_1, Q5_K and Q6_K become int8
    (`TensorInfo.exact`). Float matrices that hold ternary values are found by those values. Raises
    CheckpointError for a file that is truncated, foreign, incomplete or of unsupported types, ConfigError for
    metadata that it does not understand.
    """

    def __init__(
        self, path: Path | str, source: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """source: where the weights came from, in words, by default the path. settings: what holds where the
        file has none, as in a generation_config.json.
        """
        self._path = Path(path)
        self._source, self._settings = source or str(path), settings or {}
        file = open_gguf(self._path)
        self._metadata = file.metadata
        self._raw = {tensor.name: tensor for tensor in file.tensors}
        short, long = self._rope_factors()
        self._config = config_from_gguf(
            self._metadata,
            tie_word_embeddings="output.weight" not in self._raw,
            short_factor=short,
            long_factor=long,
        )
        self._network = network_tensors(self._config)
        nameless = next((tensor.role for tensor in self._network.values() if tensor.gguf is None), None)
        if nameless is not None:
            what = nameless.words if nameless.part is None else nameless.part.words
            raise CheckpointError(
                f"'{self._path}' has {what}, whose GGUF tensors are not understood; use the Hugging Face "
                "checkpoint."
            )
        self._source_names: dict[str, str] = {}
        self._rows_at: dict[str, _Rows] = {}
        check_tensors(self._config, self._place(), str(self._path))
        self._tensors = [
            self._describe(name, shape) for name, shape in expected_tensors(self._config).items()
        ]
        self._schemes = {info.name: info.scheme for info in self._tensors}

    @property
    def source(self) -> str:
        """Where the weights came from, in words."""
        return self._source

    @property
    def config(self) -> ModelConfig:
        """The network that the metadata describes."""
        return self._config

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """Every tensor that the network needs, checked against the config's shapes."""
        return self._tensors

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer in the metadata, rewritten as Hugging Face's files."""
        from edge.text.tokenizer import tokenizer_files_from_gguf

        return tokenizer_files_from_gguf(self._metadata)

    @property
    def chat_template(self) -> str | None:
        """`tokenizer.chat_template`, if the file has one."""
        template: str | None = self._field("tokenizer.chat_template", str, "a text", None)
        return template

    @property
    def generation_config(self) -> dict[str, Any]:
        """Sampling defaults that newer files carry (`general.sampling.*`), in Hugging Face's names."""
        found = {
            ours: self._field(theirs, (int, float), "a number")
            for ours, theirs in SAMPLING_KEYS.items()
            if theirs in self._metadata
        }
        if "temperature" in found:
            found["do_sample"] = found["temperature"] > 0
        read_generation_config(found, f"the sampling settings (general.sampling.*) of '{self._path}'")
        return found or dict(self._settings)

    def read(self, name: str) -> npt.NDArray[np.float32] | QuantizedMatrix:
        """One tensor by its Hugging Face name: float32 for float types, else codes and scales."""
        source_name = self._source_names[name]
        tensor = self._raw[source_name]
        kind = tensor.tensor_type.name
        if kind in _FLOATS:
            values, scheme = self._floats(source_name, self._rows_at[name]), self._schemes[name]
            return values if scheme.is_float else quantize(values, scheme, name)
        raw = tensor.data[self._rows_at[name]]
        if kind in gguf_blocks.ROUNDED:
            return self._round(name, raw, tensor.tensor_type)
        matrix = gguf_blocks.unpack_blocks(raw, kind)
        if matrix.codes.max() > matrix.scheme.code_range[1] + matrix.scheme.zero:
            raise CheckpointError(
                f"{self._where(name)} has codes that are not {matrix.scheme.kind}; download the file again."
            )
        return matrix

    def read_float32(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32, exactly as llama.cpp dequantizes it."""
        from gguf.quants import dequantize

        source_name = self._source_names[name]
        tensor = self._raw[source_name]
        if tensor.tensor_type.name in _FLOATS:
            return self._floats(source_name, self._rows_at[name])
        return dequantize(tensor.data[self._rows_at[name]], tensor.tensor_type)

    def _round(self, name: str, raw: npt.NDArray[np.uint8], tensor_type: Any) -> QuantizedMatrix:
        """Dequantize and round to int8, some rows at a time: a large head's floats never exist at once."""
        from gguf.quants import dequantize

        scheme = gguf_blocks.ROUNDED[tensor_type.name]
        step = max(1, (1 << 22) // raw.shape[1])
        parts = [
            quantize(dequantize(raw[at : at + step], tensor_type), scheme, name)
            for at in range(0, raw.shape[0], step)
        ]
        codes, scales = (
            np.concatenate([getattr(part, field) for part in parts]) for field in ("codes", "scales")
        )
        return QuantizedMatrix(scheme, codes, scales)

    def _describe(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        source_name, where = self._source_names[name], self._where(name)
        kind = self._raw[source_name].tensor_type.name
        if kind not in _KNOWN:
            raise CheckpointError(
                f"{where} is of type {kind}, which is not supported; supported are {', '.join(_KNOWN)}."
            )
        if kind not in _FLOATS:
            if len(shape) == 1:
                raise CheckpointError(f"{where} should be of a float type, not {kind}.")
            scheme = gguf_blocks.SCHEMES.get(kind) or gguf_blocks.ROUNDED[kind]
            exact = kind in gguf_blocks.SCHEMES and kind not in gguf_blocks.INEXACT
            return TensorInfo(name, shape, kind, scheme, exact)
        if len(shape) == 1:
            return TensorInfo(name, shape, kind, QuantScheme("f32"))
        at = self._rows_at[name]
        rows_of = np.arange(self._raw[source_name].data.shape[0])[at]
        ternary = find_ternary(shape[0], lambda rows: self._floats(source_name, rows_of[rows]))
        if ternary is not None:
            return TensorInfo(name, shape, f"{kind} ternary", *ternary)
        return TensorInfo(name, shape, kind, QuantScheme("f16"))

    def _floats(
        self, source_name: str, rows: slice | npt.NDArray[np.intp] = slice(None)
    ) -> npt.NDArray[np.float32]:
        """Some rows of a tensor, in the file's order."""
        tensor = self._raw[source_name]
        kind = tensor.tensor_type.name
        if kind not in _FLOATS:
            raise CheckpointError(
                f"Tensor {source_name} of '{self._path}' should be of a float type, not {kind}."
            )
        if kind == "BF16":
            words = np.ascontiguousarray(tensor.data[rows]).view("<u2")
            return (words.astype(np.uint32) << 16).view(np.float32)
        return tensor.data[rows].astype(np.float32)

    def _place(self) -> dict[str, tuple[int, ...]]:
        """Find every tensor of the network and its rows in the file; returns the shapes by name.

        What has no place in the network keeps its own name, and is refused by it.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        parts: dict[str | None, list[str]] = {}
        for name, tensor in self._network.items():
            parts.setdefault(tensor.gguf, []).append(name)
        for source_name, raw in self._raw.items():
            names, shape = parts.get(source_name, [source_name]), raw.shape[::-1]
            if source_name in _ROPE_TENSORS:
                continue
            whole = sum(self._network[name].shape[0] for name in names) if len(names) > 1 else 0
            if whole and shape[:1] != (whole,):
                raise CheckpointError(
                    f"Tensor {source_name} of '{self._path}' has shape {'x'.join(map(str, shape))}, but its "
                    f"configuration asks for {whole} rows; they belong to different models."
                )
            start = 0
            for name in names:
                size = self._network[name].shape[0] if whole else sum(shape[:1])
                self._source_names[name], self._rows_at[name] = source_name, slice(start, start + size)
                shapes[name] = (size, *shape[1:])
                order = rows_in_gguf(self._network[name], self._config) if name in self._network else None
                if order is not None and order.size == size:  # others are refused for their shape
                    self._rows_at[name] = start + order
                start += size
        return shapes

    def _rope_factors(self) -> tuple[list[float], list[float]]:
        """LongRoPE's short and long factors; `rope_freqs` (one list for every length) counts as both."""
        one, short, long = (
            self._floats(name).reshape(-1).tolist() if name in self._raw else [] for name in _ROPE_TENSORS
        )
        if one and (short or long):
            raise CheckpointError(
                f"'{self._path}' has rotary factors twice, in '{_ROPE_TENSORS[0]}' and "
                f"'{_ROPE_TENSORS[1 if short else 2]}'; convert the model again."
            )
        return (one, one) if one else (short, long)

    def _field(self, key: str, kind: Any, wanted: str, default: Any = None) -> Any:
        value = self._metadata.get(key, default)
        if value is not default and not isinstance(value, kind):
            raise CheckpointError(
                f"The field '{key}' of '{self._path}' must be {wanted}, not of type {type(value).__name__}; "
                "download the file again."
            )
        return value

    def _where(self, name: str) -> str:
        return f"Tensor {self._source_names[name]} of '{self._path}'"
