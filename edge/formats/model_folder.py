"""Reads files of a folder that somebody else made: regular files inside it, of a size that fits their use.

A link out of the folder would copy a file of this machine into an export; a pipe or a device would never
end. Links inside the folder are fine, and so are those of a download from the Hugging Face hub, whose
snapshots link to the `blobs` beside them.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from edge.errors import EdgeError

SMALL = 128 << 20
"""The most bytes of a file that is read as a whole: configuration, tokenizer, chat template."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; OSError for a pipe, socket, device or folder, without waiting for it."""
    # O_NONBLOCK: opening a pipe must not wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, limit: int = SMALL) -> bytes:
    """The contents of a regular file; OSError for other kinds, and for one of more than `limit` bytes."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return data


def member(folder: Path, name: str, error: type[EdgeError]) -> Path:
    """The path of `name` in the model's folder `folder`; raises `error` for a link that leaves the folder."""
    path = folder / name
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise error(
            f"'{path}' is a link to a file outside the model's folder, which is not followed; copy the file "
            "into the folder."
        )
    return path


def read_member(folder: Path, name: str, error: type[EdgeError], limit: int = SMALL) -> bytes | None:
    """The contents of the small file `name` of a model's folder, None if there is none.

    Raises `error` for links out of the folder, files that are not regular, and more than `limit` bytes.
    """
    path = member(folder, name, error)
    try:
        return read_regular(path, limit)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as failure:
        raise error(f"Cannot read '{path}': {failure.strerror or failure}.") from None
