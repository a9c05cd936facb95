"""The folder of a run: what stands in it, that one process group uses it at a time, and that it is of one
run.

    config.json     the run's options; a resumed run has the same where they change what is learned
    log.jsonl       figures every few steps (`edge.train.metrics`); tensorboard/ has the same
    checkpoints/    the state to go on from (`edge.train.checkpoints`)
    model/          the trained model in Hugging Face's format, when the run has come to its end
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import TrainingError
from edge.formats.atomic import write_failure, write_file
from edge.formats.guarded_json import parse_object
from edge.system.file_locks import lock_descriptor
from edge.train.checkpoints import Say
from edge.train.config import RunConfig
from edge.train.data.batch import AnyBatch
from edge.train.distributed import World, from_all, from_first
from edge.train.metrics import Metrics
from edge.train.network import Network, full_state
from edge.train.starting import CHECKPOINTS

CONFIG = "config.json"
MODEL = "model"
_MAY_CHANGE = ("runtime.", "checkpoints.", "log.")
"""Options that change nothing of what is learned, up to rounding."""


class RunFolder:
    """A run's folder, locked against a second run while it is open. Raises TrainingError."""

    def __init__(self, path: str | Path, config: RunConfig, world: World) -> None:
        self.path = Path(path)
        self._config, self._world = config, world
        self._lock: io.FileIO | None = None

    def __enter__(self) -> RunFolder:
        try:
            from_first(self._claim, self._world)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def is_begun(self) -> bool:
        """Whether there are checkpoints to go on from."""
        return any(self.checkpoints.glob("step-*"))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / CHECKPOINTS

    def metrics(self, step: int, say: Say) -> Metrics:
        """The log, of a run that goes on after this step."""
        return Metrics(self.path, step, self._config.log.tensorboard, say)

    def save_batch(self, batch: AnyBatch, step: int) -> Path:
        """Keep the rows of a step that failed, as NumPy arrays; returns the file of the first process."""
        return from_all(lambda: self._save_batch(batch, step), self._world)[0]

    def _save_batch(self, batch: AnyBatch, step: int) -> Path:
        path = self.path / f"no-number-{step:08d}-{self._world.rank}.npz"
        data = io.BytesIO()
        np.savez_compressed(data, **{name: value.numpy() for name, value in batch._asdict().items()})
        try:
            write_file(path, data.getvalue())
        except OSError as error:
            raise TrainingError(write_failure(path, error)) from error
        return path

    def save_model(self, network: Network) -> Path:
        """Write the trained model, unless it stands there from before."""
        path = self.path / MODEL
        state = full_state(network.objective)

        def save() -> None:
            if not path.exists():
                network.save(path, state)

        from_first(save, self._world)
        return path

    def _claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = io.FileIO(self.path / ".lock", "a")
            if not lock_descriptor(self._lock.fileno(), wait=False):
                raise TrainingError(
                    f"Another run is writing to '{self.path}'; wait for it or choose another --out."
                )
            self._check_config()
        except OSError as error:
            raise TrainingError(write_failure(self.path, error)) from error

    def _check_config(self) -> None:
        """Write the options; where there are checkpoints, they must be those that the run began with."""
        path, mine = self.path / CONFIG, self._config.to_json()
        if not self.is_begun:
            write_file(path, json.dumps(mine, indent=2).encode() + b"\n")
            return
        theirs, now = dict(_flat(read_config(self.path))), dict(_flat(mine))
        for name in sorted(theirs.keys() | now.keys()):
            if theirs.get(name) != now.get(name) and not name.startswith(_MAY_CHANGE):
                raise TrainingError(
                    f"'{self.path}' holds a run with {name} = {theirs.get(name)!r}, not {now.get(name)!r}; "
                    "choose another --out, or set start.path to that folder to go on from it."
                )


def read_config(folder: str | Path) -> dict[str, Any]:
    """The options of a run's folder. TrainingError if there are none."""
    path = Path(folder) / CONFIG
    try:
        return parse_object(path.read_bytes(), path, TrainingError, "remove the folder")
    except OSError as error:
        raise TrainingError(
            f"'{folder}' is no folder of a run: its {CONFIG} can't be read ({error.strerror})."
        ) from error


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
