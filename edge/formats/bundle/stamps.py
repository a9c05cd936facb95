"""Remembers which files of a bundle had the right checksum, so that a start does not compute it again.

A stamp is a file in the user's cache folder, one for every bundle's folder. It holds for a file as long as
that file keeps its size and modification time.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from edge.errors import BundleError
from edge.formats.atomic import write_file
from edge.formats.guarded_json import parse_object
from edge.formats.model_folder import read_regular
from edge.system.paths import cache_folder


class Stamps:
    """The stamp of the bundle in folder `path`: file name -> size, modification time in ns, sha256."""

    def __init__(self, path: Path) -> None:
        self._file = _stamp_file(path)
        self._changed = False
        try:
            self._known: dict[str, Any] = parse_object(
                read_regular(self._file), self._file, BundleError, "remove it"
            )
        except (OSError, BundleError):
            self._known = {}

    def has(self, name: str, status: os.stat_result, sha256: str) -> bool:
        """Whether this very file was found to have this checksum."""
        return self._known.get(name) == [status.st_size, status.st_mtime_ns, sha256]

    def add(self, name: str, status: os.stat_result, sha256: str) -> None:
        """Note that it was."""
        if not self.has(name, status, sha256):
            self._changed = True
            self._known[name] = [status.st_size, status.st_mtime_ns, sha256]

    def save(self) -> None:
        """Best effort: without a writable cache folder every load computes the checksums."""
        if not self._changed:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._file, json.dumps(self._known).encode())
        except OSError:
            return


def remove_stamp(path: Path) -> None:
    """Forget the bundle that was in folder `path`; best effort as well."""
    try:
        _stamp_file(path).unlink(missing_ok=True)
    except OSError:
        return


def _stamp_file(path: Path) -> Path:
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    return cache_folder() / "stamps" / f"{key}.json"
