"""Writing files so that a reader sees the old one or the whole new one, never a part.

A temporary file or folder beside the target, fsync, then a rename, then fsync of the folder around it.
Temporary names are `.NAME.PROCESS-RANDOM.partial`. Their writer holds a lock on them, so that the next write
in the same folder can remove what a killed process left behind, and nothing that is still being written.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from edge.system.file_locks import is_at, lock_descriptor

_PARTIAL = re.compile(r"\..+\.[0-9]+-[0-9a-f]+\.partial", re.DOTALL)
_POSIX = os.name == "posix"
_ABANDONED = 24 * 3600.0  # seconds after which a partial file is removed where locks can't tell


class Partial:
    """A hidden file (or folder) beside `target`, to be written; `keep` puts it in the target's place.

    path: its own. descriptor: the open file, or folder. Use it as a context manager: what is not kept is
    removed at the end. private: a file for its owner only. Raises OSError.
    """

    def __init__(self, target: str | Path, *, folder: bool = False, private: bool = False) -> None:
        self.target = Path(target)
        self._mode = 0o600 if private else 0o666  # less what the user's umask takes away
        remove_leftovers(self.target.parent)
        self._folder = folder
        self.descriptor = self._create()
        while not self._is_held():  # somebody took it for a leftover before the lock was there
            self._close()
            self.descriptor = self._create()

    def keep(self) -> None:
        """Sync it, and give it the target's name; a power cut leaves the old one or the new one."""
        if self._folder:
            sync_folder(self.path)
        else:
            os.fsync(self.descriptor)
        if not _POSIX:  # Windows does not rename open files
            self._close()
        self.path.replace(self.target)
        sync_folder(self.target.parent)

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder:
            shutil.rmtree(self.path, ignore_errors=True)
        elif _POSIX:
            self.path.unlink(missing_ok=True)
        self._close()
        if not _POSIX and not self._folder:
            self.path.unlink(missing_ok=True)

    def _create(self) -> int:
        name = f".{self.target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
        self.path = self.target.with_name(name)
        if not self._folder:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            return os.open(self.path, flags, self._mode)
        self.path.mkdir()
        if not _POSIX:
            return -1
        try:
            return os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return -1

    def _is_held(self) -> bool:
        if not _POSIX:
            return True
        if self.descriptor < 0:
            return False
        with suppress(OSError):  # a file system without locks: nobody will remove it
            lock_descriptor(self.descriptor, wait=True)
        return is_at(self.path, self.descriptor)

    def _close(self) -> None:
        if self.descriptor >= 0:
            with suppress(OSError):  # a writer that took the descriptor over has closed it
                os.close(self.descriptor)
        self.descriptor = -1


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files and folders in `folder` whose process has ended; best effort."""
    try:
        found = [path for path in folder.iterdir() if _PARTIAL.fullmatch(path.name)]
    except OSError:
        return
    for path in found:
        with suppress(OSError):
            if not _POSIX:
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    _remove(path)
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if lock_descriptor(descriptor, wait=False) and is_at(path, descriptor):
                    _remove(path)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def replacing(path: str | Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends well; raises OSError.

    private: readable by its owner only, from its first byte on.
    """
    with Partial(path, private=private) as partial:
        with io.FileIO(partial.descriptor, "r+", closefd=False) as raw, io.BufferedRandom(raw) as file:
            yield file
        partial.keep()


def write_file(path: str | Path, data: bytes, *, private: bool = False) -> None:
    """Replace the file `path` by `data`; raises OSError. private: see `replacing`."""
    with replacing(path, private=private) as file:
        file.write(data)


def sync_folder(path: Path) -> None:
    """Make renames inside a folder survive a power cut, where the system lets folders be synced."""
    if not _POSIX:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_failure(path: str | Path, error: OSError) -> str:
    """One sentence for a user whose disk is full or whose folder is not writable."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full while writing '{path}'; free some space or choose another folder."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"'{path}' cannot be written ({error.strerror}); choose a folder that you may write to."
    if error.errno == errno.ENOTEMPTY:
        return f"'{path}' was made by another process meanwhile; remove it or choose another folder."
    return f"Cannot write '{path}': {error.strerror or error}."
