"""GGUF: llama.cpp's file, with the exported weights bit for bit. It never rounds; see `gguf_blocks`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.config import ModelConfig
from edge.config.families import scaled_family
from edge.config.fields import listed
from edge.config.gguf import (
    Metadata,
    config_to_gguf,
    gguf_architecture,
    gguf_rope_tensors,
    sampling_to_gguf,
)
from edge.config.row_order import inverse, rows_in_gguf
from edge.config.tensors import EMBEDDING, HEAD, NetworkTensor, network_tensors
from edge.errors import ExportError
from edge.export.check import CheckResult, Reference
from edge.export.options import ExportOptions
from edge.export.plan import Plan
from edge.export.source import Source
from edge.export.targets import Progress, Written
from edge.export.targets.gguf.blocks import BLOCKS, natural_types, obstacle, pack_blocks
from edge.export.targets.gguf.check import check_gguf
from edge.export.targets.gguf.tokenizer import tokenizer_metadata, unnamed_end_tokens
from edge.formats.artifact.folder import Artifact
from edge.formats.artifact.manifest import RuntimeRange
from edge.formats.bundle.manifest import BundleTensor
from edge.quant.packing import packed_scales

if TYPE_CHECKING:
    from gguf import GGUFWriter

MODEL = "model.gguf"
RUNTIME = RuntimeRange("llama-cpp-python", "0.3.6")  # the first with MiniCPM's LongRoPE
_ALIGNMENT = 32
_WORKSPACE = 64 << 20


class GGUFTarget:
    """One file for llama.cpp and what is built on it."""

    name = "gguf"

    def plan(self, source: Source, options: ExportOptions) -> Plan:
        """Blocks of every tensor, and the metadata as it will be written."""
        context = source.context(options)
        source.sparse(options, obstacle="llama.cpp has no block-sparse attention")
        types = choose_types(source, options)
        sizes = [
            sum(_stored_bytes(info, types[info.name]) for info in infos)
            for infos in _stored_tensors(source).values()
        ]
        factors = gguf_rope_tensors(source.config)
        extra = sum(_padded(factor.nbytes) for factor in factors.values())
        header = _metadata_bytes(_metadata(source, types)) + 96 * (len(sizes) + len(factors))
        notes = () if options.gguf_type is not None else _notes(source, types)
        if lost := unnamed_end_tokens(source.tokenizer, source.config):
            notes += (
                f"GGUF has keys for three end tokens: llama.cpp will not stop at {listed(map(str, lost))}.",
            )
        return Plan(
            files={MODEL: sum(map(_padded, sizes)) + extra + header},
            formula="bytes per block of weights (F16 2/1, Q8_0 34/32, Q4_0 18/32, Q4_1 20/32, TQ2_0 66/256, "
            "TQ1_0 54/256), float32 norms, and the metadata with the vocabulary",
            export_memory=_WORKSPACE + 2 * max(sizes),
            run_memory={
                "weights": sum(sizes),
                "KV cache": context * source.config.kv_bytes_per_token("float16"),
                "workspace": _WORKSPACE,
            },
            operators={
                f"llama.cpp.arch.{gguf_architecture(source.config)}": 1,
                **{f"ggml.{kind}": 1 for kind in sorted(set(types.values()))},
            },
            runtime=RUNTIME,
            flavour="standard",
            attention="dense",
            notes=notes,
        )

    def write(
        self, source: Source, options: ExportOptions, folder: Path, progress: Progress | None
    ) -> Written:
        """Stream the tensors into `model.gguf`, one at a time."""
        from gguf import GGMLQuantizationType, GGUFWriter

        types = choose_types(source, options)
        factors = gguf_rope_tensors(source.config)
        network, stored = _gguf_tensors(source.config), _stored_tensors(source)
        writer = GGUFWriter(folder / MODEL, gguf_architecture(source.config))
        try:
            _add_metadata(writer, _metadata(source, types))
            for name, factor in factors.items():
                writer.add_tensor_info(name, factor.shape, factor.dtype, factor.nbytes)
            for name, infos in stored.items():
                kind = types[infos[0].name]
                size = sum(_stored_bytes(info, kind) for info in infos)
                rows = sum(info.rows for info in infos)
                matrix = len(infos[0].shape) == 2
                shape = (rows, size // rows) if matrix else (size // 4,)
                dtype = np.dtype(np.uint8 if matrix else np.float32)
                writer.add_tensor_info(name, shape, dtype, size, GGMLQuantizationType[kind])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for factor in factors.values():
                writer.write_tensor_data(factor)
            done, total = 0, sum(_stored_bytes(info, types[info.name]) for info in source.tensors.values())
            for name, infos in stored.items():
                if progress is not None:
                    progress(done, total, name if len(infos) > 1 else infos[0].name)
                parts = [_tensor_data(source, info, network[info.name], types[info.name]) for info in infos]
                data = parts[0] if len(parts) == 1 else np.concatenate(parts)
                _write_data(writer, data)
                done += data.nbytes
        finally:
            writer.close()
        return Written(MODEL, types)

    def check(self, artifact: Artifact, reference: Reference) -> CheckResult:
        """In llama.cpp where `llama_cpp` is installed, otherwise with edge's own reader of GGUF."""
        return check_gguf(artifact, reference)


def choose_types(source: Source, options: ExportOptions) -> dict[str, str]:
    """The GGUF type of every tensor; ExportError, with the reason, where an exact one can't be had.

    An asked-for type is for the matrices of the layers; embedding and head keep the exact type for theirs.
    """
    wanted = None if options.gguf_type is None else options.gguf_type.upper()
    types: dict[str, str] = {}
    for infos in _stored_tensors(source).values():
        names = [info.name for info in infos]
        if len(infos[0].shape) == 1:
            types |= dict.fromkeys(names, "F32")
            continue
        in_layer = names[0] not in (EMBEDDING, HEAD)
        candidates = (wanted,) if wanted is not None and in_layer else _types_of_all(infos)
        if not candidates:
            kinds = listed(dict.fromkeys(str(info.scheme) for info in infos))
            raise ExportError(
                f"Tensor '{names[0]}' is {kinds}, which no type of GGUF holds exactly; choose another "
                "`--quantize`."
            )
        reasons = {kind: _obstacle(kind, source, infos) for kind in candidates}
        found = next((kind for kind, reason in reasons.items() if reason is None), None)
        if found is None:
            kind, reason = list(reasons.items())[-1]
            raise ExportError(
                f"Tensor '{names[0]}' can't be stored as {kind}, because {reason}; leave `--gguf-type` out "
                "for the exact type, or choose another `--quantize`."
            )
        types |= dict.fromkeys(names, found)
    return types


def _types_of_all(infos: Sequence[BundleTensor]) -> tuple[str, ...]:
    """Types for tensors that are stored as one, the best first."""
    first, *others = (natural_types(info.scheme) for info in infos)
    return tuple(kind for kind in first if all(kind in types for types in others))


def _obstacle(kind: str, source: Source, infos: Sequence[BundleTensor]) -> str | None:
    """Why a type can't hold all of the tensors exactly, None if it can."""
    reasons = (obstacle(kind, info.scheme, info.columns, partial(_scales, source, info)) for info in infos)
    return next((reason for reason in reasons if reason is not None), None)


def _tensor_data(source: Source, info: BundleTensor, tensor: NetworkTensor, kind: str) -> npt.NDArray[Any]:
    if len(info.shape) == 1:
        return _in_file_order(source.floats(info.name), tensor, source.config)
    parts = [pack_blocks(block, kind) for block in source.row_blocks(info.name)]
    rows = np.concatenate(parts)
    return _in_file_order(rows, tensor, source.config)


def _in_file_order(rows: npt.NDArray[Any], tensor: NetworkTensor, config: ModelConfig) -> npt.NDArray[Any]:
    """Rows in GGUF's order, of floats or blocks: whole rows move."""
    order = rows_in_gguf(tensor, config)
    return rows if order is None else rows[inverse(order)]


def _write_data(writer: GGUFWriter, data: npt.NDArray[Any]) -> None:
    try:
        writer.write_tensor_data(data)
    except OSError as error:
        if error.errno is None:  # numpy says "requested and written" where the room ended
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _gguf_tensors(config: ModelConfig) -> dict[str, NetworkTensor]:
    """The network's tensors as the family calls them that the file says it is of."""
    return network_tensors(replace(config, model_type=scaled_family(config).model_type))


def _stored_tensors(source: Source) -> dict[str, list[BundleTensor]]:
    """GGUF's name -> the network's tensors that it holds, below each other; ExportError if one has none."""
    network, stored = _gguf_tensors(source.config), dict[str, list[BundleTensor]]()
    for info in source.tensors.values():
        stored.setdefault(_gguf_name(network[info.name]), []).append(info)
    return stored


def _gguf_name(tensor: NetworkTensor) -> str:
    if tensor.gguf is None:
        what = tensor.role.words if tensor.role.part is None else tensor.role.part.words
        raise ExportError(
            f"GGUF has no name for {what}, so this model can't become a GGUF file; run it with --executor "
            "torch."
        )
    return tensor.gguf


def _stored_bytes(info: BundleTensor, kind: str) -> int:
    if len(info.shape) == 1:
        return 4 * info.columns
    return info.rows * info.columns // BLOCKS[kind].weights * BLOCKS[kind].bytes


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _scales(source: Source, info: BundleTensor) -> npt.NDArray[np.float16]:
    """[rows, groups], in plain order."""
    data = source.packed(info.name)
    flat = packed_scales(data, info.scheme, info.rows, info.columns)
    groups = info.scheme.groups(info.columns)
    tiles = -(-info.rows // 16)
    whole, last = flat[: tiles * (groups - 1) * 16], flat[tiles * (groups - 1) * 16 :]
    by_tile = np.concatenate(
        (whole.reshape(tiles, groups - 1, 16), last.reshape(tiles, 1, 16)), axis=1
    ).swapaxes(1, 2)
    return by_tile.reshape(tiles * 16, groups)[: info.rows]


def _notes(source: Source, types: dict[str, str]) -> tuple[str, ...]:
    """Matrices that had to take a larger type than the best for their kind, and why the first one had to."""
    larger: dict[tuple[str, str, str], list[BundleTensor]] = {}
    for info in source.tensors.values():
        if len(info.shape) == 2 and types[info.name] != (best := natural_types(info.scheme)[0]):
            larger.setdefault((info.scheme.kind, best, types[info.name]), []).append(info)
    notes = []
    for (kind, best, found), infos in larger.items():
        first, times = infos[0], (BLOCKS[found], BLOCKS[best])
        ratio = round(times[0].bytes / times[0].weights / times[1].bytes * times[1].weights)
        reason = obstacle(best, first.scheme, first.columns, partial(_scales, source, first))
        notes.append(
            f"{len(infos)} {kind} matrices are stored as {found}, exactly but in {ratio} times the space: "
            f"{reason}."
        )
    return tuple(notes)


def _metadata(source: Source, types: dict[str, str]) -> Metadata:
    from gguf import LlamaFileType

    in_layers = [kind for name, kind in types.items() if kind != "F32" and name not in (EMBEDDING, HEAD)]
    most = max(sorted(set(in_layers)), key=in_layers.count)
    values: Metadata = {
        "general.name": Path(source.name).stem if source.name.endswith(".gguf") else Path(source.name).name,
        "general.file_type": int(LlamaFileType[f"MOSTLY_{most}"]),
        "general.quantization_version": 2,
        **config_to_gguf(source.config),
        **tokenizer_metadata(source.tokenizer_files, source.config),
        **sampling_to_gguf(source.generation_config),
    }
    if source.chat_template is not None:
        values["tokenizer.chat_template"] = source.chat_template
    return values


def _add_metadata(writer: GGUFWriter, metadata: Metadata) -> None:
    for key, value in metadata.items():
        writer.add_key_value(key, value, *_value_type(value))


def _value_type(value: Any) -> tuple[Any, Any]:
    """GGUF's type of a value, and of the items of an array; llama.cpp insists on the exact integer type."""
    from gguf import GGUFValueType as Type

    scalars = {bool: Type.BOOL, int: Type.UINT32, float: Type.FLOAT32, str: Type.STRING}
    if isinstance(value, bytes):
        return Type.ARRAY, Type.UINT8
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Type.ARRAY, {**scalars, int: Type.INT32}[type(value[0])]
    return scalars[type(value)], None


def _metadata_bytes(metadata: Metadata) -> int:
    """Size of the header and of every key and value as they are written."""

    def size(value: Any) -> Iterator[int]:
        if isinstance(value, bytes):
            yield 12 + len(value)
        elif isinstance(value, list):
            yield 12
            for item in value:
                yield 8 + len(item.encode()) if isinstance(item, str) else 4
        else:
            yield 8 + len(value.encode()) if isinstance(value, str) else 1 if isinstance(value, bool) else 4

    return 64 + sum(12 + len(key) + sum(size(value)) for key, value in metadata.items())


TARGET = GGUFTarget()
