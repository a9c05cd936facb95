"""Writing files so that a reader sees the old one or the whole new one, never a part.

A temporary file or folder beside the target, fsync, then a rename. Temporary names start with a dot and end
in `.partial`.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def partial_path(path: Path) -> Path:
    """A fresh temporary name beside `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


@contextmanager
def replacing(path: str | Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends well; raises OSError.

    private: readable by its owner only, from its first byte on.
    """
    path = Path(path)
    temporary = partial_path(path)
    mode = 0o600 if private else 0o666  # less what the user's umask takes away
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: str | Path, data: bytes, *, private: bool = False) -> None:
    """Replace the file `path` by `data`; raises OSError. private: see `replacing`."""
    with replacing(path, private=private) as file:
        file.write(data)


def sync_folder(path: Path) -> None:
    """Make renames inside a folder survive a power cut, where the system lets folders be synced."""
    if os.name != "posix":
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
    return f"Cannot write '{path}': {error.strerror or error}."
