"""Finished layers of an unfinished quantization, kept on disk so that an interrupted run can go on.

A hidden folder beside the bundle: `job.json` says what is being made, `layer-N.safetensors` has the packed
tensors of a finished layer, `stream.safetensors` the calibration sequences after the last finished one. Each
file appears complete or not at all. What belongs to another job is removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge.errors import CheckpointError
from edge.formats.atomic import write_file
from edge.formats.guarded_json import parse_json, parse_object
from edge.formats.model_folder import read_regular
from edge.formats.safetensors import SafetensorsFile, SafetensorsWriter

SOURCE = "source_sha256"
"""Where a layer's report has the digest of its source weights."""
_JOB, _STREAM, _HIDDEN = "job.json", "stream.safetensors", "hidden"


class Workspace:
    """The work folder of the bundle `out`.

    job: identifies inputs and options; plain JSON values. digest: of a layer's source weights, which must be
    those that a finished layer's report names. finished: layers that were found done. Raises OSError where
    the folder can't be written.
    """

    def __init__(self, out: Path, job: Mapping[str, Any], digest: Callable[[int], str]) -> None:
        self._folder = _folder(out)
        self.finished = 0
        self._hidden: Tensor | None = None
        if not self._resume(job, digest):
            remove_workspace(out)
            self._folder.mkdir(parents=True)
            write_file(self._folder / _JOB, json.dumps(job).encode())

    def _resume(self, job: Mapping[str, Any], digest: Callable[[int], str]) -> bool:
        try:
            path = self._folder / _JOB
            if parse_json(read_regular(path), path, CheckpointError, "remove it") != job:
                return False
            stream = SafetensorsFile(self._folder / _STREAM)
            count = int(stream.metadata["layers"])
            if any(self.report(layer)[SOURCE] != digest(layer) for layer in range(count)):
                return False
            self._hidden = torch.from_numpy(stream.array(_HIDDEN).copy())
        except (OSError, ValueError, KeyError, CheckpointError):
            return False
        self.finished = count
        return True

    def take_hidden(self) -> Tensor | None:
        """The stream after the last finished layer, once; None if there is no such layer."""
        hidden, self._hidden = self._hidden, None
        return hidden

    def layer(self, index: int) -> SafetensorsFile:
        """The packed tensors of a finished layer, by their names in the network."""
        return SafetensorsFile(self._folder / f"layer-{index:03d}.safetensors")

    def report(self, index: int) -> dict[str, Any]:
        """What `finish` was told about a layer."""
        layer = self.layer(index)
        return parse_object(layer.metadata["report"], layer.path, CheckpointError, "remove it")

    def finish(
        self, tensors: Mapping[str, npt.NDArray[np.uint8]], report: Mapping[str, Any], hidden: Tensor
    ) -> None:
        """Keep the next layer: its packed tensors, its report, and the stream after it."""
        path = self._folder / f"layer-{self.finished:03d}.safetensors"
        specs = [(name, "U8", (data.size,)) for name, data in tensors.items()]
        with SafetensorsWriter(path, specs, {"report": json.dumps(report)}) as writer:
            for name, data in tensors.items():
                writer.write(name, data)
        self.finished += 1
        stream = (_HIDDEN, "F32", tuple(hidden.shape))
        with SafetensorsWriter(self._folder / _STREAM, [stream], {"layers": str(self.finished)}) as writer:
            writer.write(_HIDDEN, hidden.contiguous().numpy().reshape(-1).view(np.uint8))


def remove_workspace(out: Path) -> None:
    """Remove the work folder of the bundle `out` with everything in it, if there is one."""
    shutil.rmtree(_folder(out), ignore_errors=True)


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.quantizing")
