"""Converts a checkpoint to a bundle: decides each tensor's scheme, streams it, quantizes and packs it.

One tensor is in memory at a time; quantizing and packing go through it in blocks of rows. Rules:

* norms are float32;
* with a named quantization every matrix gets it, embedding and head included unless `head` says otherwise;
  of a kind that networks are trained for (ternary) the weights must be already, and embedding and head stay;
* without one a matrix keeps the scheme of its checkpoint, and floats become float16 or what `floats` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.checkpoints.base import Checkpoint, TensorInfo, TensorSource
from edge.checkpoints.trained import check_trained
from edge.checkpoints.weights import head_matrices, layer_matrices
from edge.config.tensors import EMBEDDING, HEAD, check_dense, check_tensors, expected_tensors
from edge.errors import CheckpointError
from edge.formats.bundle.manifest import BundleTensor
from edge.formats.bundle.planned import PlannedBundle
from edge.formats.bundle.writer import BundleWriter, PackedWriter
from edge.quant.packing import dequantize, pack, packed_scales
from edge.quant.rounding import quantize as quantize_matrix
from edge.quant.rounding import to_float16
from edge.quant.scheme import PackedMatrix, QuantizedMatrix, QuantScheme

Progress = Callable[[int, int, str], None]
"""Called with bytes written so far, bytes in total, and the name of the tensor."""

_BLOCK_WEIGHTS = 1 << 22  # 16 MB of float32
_BLOCK_ROWS = 32  # two tiles: their packed size is a multiple of 64 bytes in every scheme, so blocks join


def convert(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    quantize: str | None = None,
    head: str | None = None,
    floats: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the bundle `out`, a folder that must not exist.

    quantize: for every matrix, a name as for `QuantScheme.from_name` (`int4`, `int8-g64`, `f16`); None or
    `source` keeps the checkpoint's own types. head: the same names for the embedding and the head alone.
    floats: the same names for matrices that would keep a float type, or `auto`: int4, and int8 beside
    matrices that came quantized, whose few floats matter. Raises ConfigError for a mixture of experts,
    CheckpointError for weights that are not finite, do not fit the config or were not trained for `quantize`,
    BundleError for wrong options or when `out` cannot be written.
    """
    tensors = _plan_tensors(checkpoint, quantize, head, floats)
    total = sum(tensor.bytes for tensor in tensors)
    done = 0
    with BundleWriter(
        out,
        checkpoint.config,
        checkpoint.source,
        tensors,
        tokenizer_files=checkpoint.tokenizer_files,
        chat_template=checkpoint.chat_template,
        generation_config=checkpoint.generation_config,
    ) as writer:
        for tensor in tensors:
            if progress is not None:
                progress(done, total, tensor.name)
            convert_tensor(checkpoint, tensor, writer)
            done += tensor.bytes
        if progress is not None:
            progress(done, total, "")


def plan_bundle(
    checkpoint: Checkpoint,
    *,
    quantize: str | None = None,
    head: str | None = None,
    floats: str | None = None,
) -> PlannedBundle:
    """What `convert` would write with the same arguments; no weights are read."""
    return PlannedBundle(
        checkpoint.config,
        checkpoint.source,
        _plan_tensors(checkpoint, quantize, head, floats),
        tokenizer_files=checkpoint.tokenizer_files,
        chat_template=checkpoint.chat_template,
        generation_config=checkpoint.generation_config,
    )


def _plan_tensors(
    checkpoint: Checkpoint, quantize: str | None, head: str | None, floats: str | None
) -> list[BundleTensor]:
    config = checkpoint.config
    check_dense(config)
    infos = {info.name: info for info in checkpoint.tensors}
    check_tensors(config, {name: info.shape for name, info in infos.items()}, checkpoint.source)
    layers, ends = layer_matrices(checkpoint), head_matrices(checkpoint)
    body_scheme = chosen_scheme(checkpoint, quantize, layers, "linear layers")
    head_scheme = (
        body_scheme if head is None else chosen_scheme(checkpoint, head, ends, "embeddings and heads")
    )
    if body_scheme is None and QuantScheme.chosen(quantize) is not None:
        floats = "auto"  # embedding and head beside trained weights
    if floats == "auto":
        floats = "int4" if all(info.scheme.is_float for info in infos.values()) else "int8"
    float_scheme = QuantScheme("f16") if floats is None else QuantScheme.from_name(floats)
    return [
        plan_tensor(infos[name], head_scheme if name in (EMBEDDING, HEAD) else body_scheme, float_scheme)
        for name in expected_tensors(config)
    ]


def chosen_scheme(
    checkpoint: TensorSource, name: str | None, matrices: list[TensorInfo], what: str
) -> QuantScheme | None:
    """The scheme of a name; None where matrices keep their own, which may be the named kind already."""
    scheme = QuantScheme.chosen(name)
    if scheme is None or not scheme.declared.trained:
        return scheme
    check_trained(checkpoint, scheme, matrices, what)
    return None


def plan_tensor(info: TensorInfo, target: QuantScheme | None, floats: QuantScheme) -> BundleTensor:
    """How a tensor of a checkpoint is stored. target: the scheme that was asked for, None keeps its own, and
    gives floats that of `floats`.
    """
    if len(info.shape) == 1:
        return BundleTensor(info.name, info.shape, QuantScheme("f32"), info.source_type, info.exact)
    if target is None:
        target = floats if info.scheme.is_float else info.scheme
    # Only reading tells whether floats survive float16; every other change of scheme rounds.
    exact = info.exact and (target == info.scheme or target.is_float)
    return BundleTensor(info.name, info.shape, target, info.source_type, exact)


def convert_tensor(checkpoint: TensorSource, tensor: BundleTensor, writer: PackedWriter) -> None:
    """Read a tensor, bring it into its scheme and write it; CheckpointError for one that is damaged."""
    source = checkpoint.read(tensor.name)
    if source.shape != tensor.shape:
        raise CheckpointError(
            f"Tensor '{tensor.name}' of {checkpoint.source} was announced as {list(tensor.shape)}, "
            f"but is {list(source.shape)}; the file is damaged."
        )
    if not _is_finite(source):
        raise CheckpointError(
            f"Tensor '{tensor.name}' of {checkpoint.source} has NaN or infinite values; "
            "the checkpoint is damaged, download or save it again."
        )
    if isinstance(source, np.ndarray) and source.ndim == 1:
        writer.write(tensor.name, pack(source, tensor.scheme))
    elif isinstance(source, PackedMatrix) and source.scheme == tensor.scheme:
        writer.write(tensor.name, source.data)
    else:
        for block in _row_blocks(source):
            packed, exact = _pack_block(block, tensor)
            writer.write(tensor.name, packed)
            if not exact:
                writer.mark_rounded(tensor.name)


def _pack_block(
    block: npt.NDArray[np.floating] | QuantizedMatrix, tensor: BundleTensor
) -> tuple[npt.NDArray[np.uint8], bool]:
    """The block's packed bytes, and False if float16 could not hold its values."""
    if isinstance(block, QuantizedMatrix):
        if block.scheme == tensor.scheme:
            return pack(block, tensor.scheme), True
        block = block.dequantize()
    if not tensor.scheme.is_float:
        return pack(quantize_matrix(block, tensor.scheme, tensor.name), tensor.scheme), True
    halves = to_float16(block, tensor.name)
    return pack(halves, tensor.scheme), bool(np.array_equal(halves.astype(np.float32), block))


def _row_blocks(
    source: npt.NDArray[np.floating] | QuantizedMatrix | PackedMatrix,
) -> Iterator[npt.NDArray[np.floating] | QuantizedMatrix]:
    rows, columns = source.shape
    if isinstance(source, PackedMatrix):
        source = dequantize(source.data, source.scheme, rows, columns)
    step = max(_BLOCK_WEIGHTS // columns // _BLOCK_ROWS, 1) * _BLOCK_ROWS
    for start in range(0, rows, step):
        at = slice(start, start + step)
        if isinstance(source, QuantizedMatrix):
            minimums = None if source.minimums is None else source.minimums[at]
            yield QuantizedMatrix(source.scheme, source.codes[at], source.scales[at], minimums)
        else:
            yield source[at]


def _is_finite(source: npt.NDArray[np.floating] | QuantizedMatrix | PackedMatrix) -> bool:
    if isinstance(source, QuantizedMatrix):
        parts = [source.scales] if source.minimums is None else [source.scales, source.minimums]
    elif isinstance(source, PackedMatrix):
        parts = [packed_scales(source.data, source.scheme, *source.shape)]
    else:
        # min and max are NaN or infinite exactly when some value is, and need no array of flags.
        return bool(np.isfinite(source.min()) and np.isfinite(source.max()))
    return all(bool(np.isfinite(part).all()) for part in parts)
