"""From a checkpoint to a quantized bundle: chooses the way, and writes the report beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.checkpoints.base import Checkpoint
from edge.convert import Progress
from export.quantize.options import QuantizeOptions


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
    Raises ExportError for a calibration text that is too short and for weights that are not ternary;
    CheckpointError, ConfigError, BundleError and TokenizerError as `edge.convert.convert` does.
    """
    raise NotImplementedError
