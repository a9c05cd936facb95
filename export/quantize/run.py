"""From a checkpoint to a quantized bundle: chooses the way, and writes the report beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge.checkpoints.base import Checkpoint
from edge.checkpoints.weights import head_matrices, layer_matrices, read_float32
from edge.config.tensors import check_dense
from edge.errors import ExportError
from edge.export.calibration import Calibration, calibration
from edge.export.quantize.calibrated import embed, job, layer_digest, quantize_layers, read_layer
from edge.export.quantize.options import QuantizeOptions
from edge.export.quantize.weights import QuantizedCheckpoint
from edge.export.quantize.workspace import Workspace, remove_workspace
from edge.export.source import check_parts
from edge.formats.atomic import write_failure, write_file
from edge.formats.bundle.reader import Bundle
from edge.hub.convert import Progress, convert
from edge.quant.packing import dequantize
from edge.quant.scheme import QuantScheme


def report_path(out: str | Path) -> Path:
    """Where the report of the bundle `out` lies: beside it, `NAME.quantization.json`."""
    out = Path(out)
    return out.with_name(f"{out.name}.quantization.json")


def quantize_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    options: QuantizeOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the bundle `out`, a folder that must not exist, and the report `report_path(out)`; returns it.

    progress: called with bytes done, bytes in total and the name of the tensor at work. A calibrated run that
    was interrupted goes on after its last finished layer when it is started again with the same checkpoint,
    options and text, and gives the same bytes.
    Raises ExportError for a calibration text that is too short; CheckpointError (also for weights that are
    not ternary), ConfigError, BundleError and TokenizerError as `edge.hub.convert.convert` does.
    """
    out, started = Path(out), time.perf_counter()
    check_dense(checkpoint.config)
    check_parts(checkpoint.config, "Calibrated quantization")
    if out.exists():
        raise ExportError(f"'{out}' exists already; remove it or choose another folder.")
    report: dict[str, Any] = {
        "format": "minicpm-edge-quantization",
        "version": 1,
        "source": checkpoint.source,
        "options": {**asdict(options), "calibration": None},
        "calibration": None,
    }
    if options.is_calibrated:
        checkpoint.config.check_window(options.length)
        text = calibration(checkpoint, options.calibration, options.sequences, options.length)
        report["options"]["calibration"] = text.source
        report["calibration"] = {"source": text.source, "sha256": text.sha256}
        report["layers"] = _calibrated(checkpoint, out, options, text, progress)
    else:
        _uncalibrated(checkpoint, out, options, progress)
        report["layers"] = _weight_errors(checkpoint, out)
    report["seconds"] = round(time.perf_counter() - started, 1)
    try:
        write_file(report_path(out), json.dumps(report, indent=1).encode())
    except OSError as error:
        raise ExportError(write_failure(report_path(out), error)) from None
    return report


def _uncalibrated(
    checkpoint: Checkpoint, out: Path, options: QuantizeOptions, progress: Progress | None
) -> None:
    scheme = QuantScheme.chosen(options.quantize)
    if scheme is None:
        convert(checkpoint, out, progress=progress)
        return
    # Beside trained weights, an embedding that came quantized stays as it is.
    keeps = scheme.declared.trained and not any(info.scheme.is_float for info in head_matrices(checkpoint))
    head = None if keeps else options.head
    convert(checkpoint, out, quantize=options.quantize, head=head, progress=progress)


def _calibrated(
    checkpoint: Checkpoint, out: Path, options: QuantizeOptions, text: Calibration, progress: Progress | None
) -> list[dict[str, Any]]:
    sizes = {info.name: options.scheme.packed_bytes(*info.shape) for info in layer_matrices(checkpoint)}
    names, total = list(sizes), sum(sizes.values())

    def say(name: str) -> None:
        if progress is not None:
            progress(sum(sizes[each] for each in names[: names.index(name)]), total, name)

    def digest(layer: int) -> str:
        return layer_digest(read_layer(checkpoint, layer))

    with torch.no_grad(), _threads(options.threads):
        hidden = embed(checkpoint, text)
        try:
            workspace = Workspace(out, job(checkpoint, options, text, hidden), digest)
            quantize_layers(checkpoint, options, hidden, workspace, say)
        except OSError as error:
            remove_workspace(out)
            raise ExportError(write_failure(out, error)) from None
    convert(QuantizedCheckpoint(checkpoint, workspace, options.scheme), out, head=options.head)
    layers = [workspace.report(layer) for layer in range(workspace.finished)]
    remove_workspace(out)
    if progress is not None:
        progress(total, total, "")
    return layers


def _weight_errors(checkpoint: Checkpoint, out: Path) -> list[dict[str, Any]]:
    """Relative squared error of every linear layer's weights in the bundle, by decoder layer."""
    bundle = Bundle.open(out)
    layers: dict[int, list[dict[str, Any]]] = {}
    for info in layer_matrices(checkpoint):
        source, tensor = read_float32(checkpoint, info.name), bundle.tensors[info.name]
        found = dequantize(bundle.data(info.name), tensor.scheme, *info.shape)
        error = float(np.square(found - source).sum() / max(np.square(source).sum(), 1e-30))
        layers.setdefault(int(info.name.split(".")[2]), []).append({"name": info.name, "weight_error": error})
    return [{"layer": layer, "matrices": matrices} for layer, matrices in layers.items()]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
