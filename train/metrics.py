"""What a run leaves to be watched: a log of JSON lines, and TensorBoard's files.

A run that continues from a checkpoint first takes back what it had logged after it, so the log is always
that of one unbroken run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from edge.errors import TrainingError
from edge.formats.atomic import write_failure, write_file

LOG = "log.jsonl"
BOARD = "tensorboard"


class Metrics:
    """The log of a run's folder; a context manager.

    step: the step that the run continues after; lines of later steps are taken back. Raises TrainingError.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self._path = folder / LOG
        try:
            kept = [line for line in read_log(folder) if line["step"] <= step] if self._path.exists() else []
            write_file(self._path, b"".join(_line(each) for each in kept))
            self._file: IO[bytes] = self._path.open("ab")
        except OSError as error:
            raise TrainingError(write_failure(self._path, error)) from error
        self._board = _open_board(folder / BOARD, step) if tensorboard else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line: `step` and figures by name."""
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise TrainingError(write_failure(self._path, error)) from error
        if self._board is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, record["step"])

    def sync(self) -> None:
        """Make what was written survive a power cut: called before a checkpoint that counts on it."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TrainingError(write_failure(self._path, error)) from error

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last one that a crash cut short is left out. TrainingError for what is no
    log.
    """
    path = Path(folder) / LOG
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TrainingError(
            f"'{folder}' has no {LOG} ({error.strerror}); give the folder of a run."
        ) from error
    return list(_parsed(lines, path))


def _parsed(lines: list[bytes], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line's end is empty, or half a line
        try:
            found = json.loads(line)
            if not isinstance(found["step"], int):
                raise ValueError("step is no whole number")
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"Line {number} of '{path}' is damaged ({error}); remove it.") from error
        yield found


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "TensorBoard is not installed: pip install 'minicpm-edge[train]', or set log.tensorboard=false."
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
