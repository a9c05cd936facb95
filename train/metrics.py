"""What a run leaves to be watched: a log of JSON lines, and TensorBoard's files.

A run that continues from a checkpoint first takes back what it had logged after it, so the log is always
that of one unbroken run. A disk without room doesn't end a run: lines wait until there is some.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge.errors import TrainingError
from edge.formats.atomic import write_failure, write_file
from edge.formats.guarded_json import parse_object

LOG = "log.jsonl"
BOARD = "tensorboard"


class Metrics:
    """The log of a run's folder; a context manager.

    step: the step that the run continues after; lines of later steps are taken back. say: is told of what
    could not be written. Raises TrainingError.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool, say: Callable[[str], None]) -> None:
        self._path = folder / LOG
        try:
            kept = [line for line in read_log(folder) if line["step"] <= step] if self._path.exists() else []
            write_file(self._path, b"".join(_line(each) for each in kept))
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise TrainingError(write_failure(self._path, error)) from error
        self._whole, self._waiting = self._path.stat().st_size, b""
        self._say, self._told = say, False
        self._board = _open_board(folder / BOARD, step) if tensorboard else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line: `step` and figures by name. Where there is no room this is said once."""
        self._waiting += _line(record)
        try:
            self._append()
            self._told = False
        except OSError as error:
            if not self._told:
                self._say(f"{write_failure(self._path, error)} The run goes on, and the log's lines wait.")
            self._told = True
        if self._board is not None:
            try:
                for name, value in record.items():
                    if name != "step" and isinstance(value, (int, float)):
                        self._board.add_scalar(name, value, record["step"])
            except OSError as error:
                self._say(f"{write_failure(BOARD, error)} The run goes on without them; {LOG} has all.")
                self._board = None

    def sync(self) -> None:
        """Make what was written survive a power cut: called before a checkpoint that counts on it. Raises
        TrainingError.
        """
        try:
            self._append()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TrainingError(write_failure(self._path, error)) from error

    def _append(self) -> None:
        """All lines that wait, or none of them."""
        try:
            written = 0
            while written < len(self._waiting):
                written += self._file.write(self._waiting[written:])
        except OSError:
            self._file.truncate(self._whole)
            raise
        self._whole, self._waiting = self._whole + written, b""

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            with suppress(OSError):
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
        where = f"Line {number} of '{path}'"
        found = parse_object(line, where, TrainingError, "remove the line")
        if not isinstance(found.get("step"), int):
            raise TrainingError(f"{where} is damaged: it has no step; remove the line.")
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
    try:
        return SummaryWriter(str(folder), purge_step=step + 1)
    except OSError as error:
        raise TrainingError(write_failure(folder, error)) from error
