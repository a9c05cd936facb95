"""Which names of tensors and files are taken from a file, so that none reaches outside its folder or breaks a
terminal, a path or a file format.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from edge.errors import EdgeError, WrongTypeError

_LONGEST = 255  # bytes of a file name on every system we know
_LONGEST_PATH = 1024
# Control characters, halves of characters, line separators, and what reverses the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SEPARATORS = re.compile(r"[/\\:]")  # a colon names a drive, or a stream of a file


def accept_name(name: Any, where: str | Path, error: type[EdgeError]) -> str:
    """`name` if it can be a tensor's; raises `error` with a sentence that begins with `where`."""
    fault = _fault(name, _LONGEST_PATH)
    if fault is not None:
        raise error(f"{in_words(where)} holds the name {shown(name)}, which {fault}; get the file again.")
    return str(name)


def accept_file_name(name: Any, where: str | Path, error: type[EdgeError]) -> str:
    """`name` if it is that of a file directly in the folder of the file `where`, which names it."""
    fault = _fault(name, _LONGEST) or _file_fault(name)
    return _accepted(name, fault, where, error)


def accept_inner_path(name: Any, where: str | Path, error: type[EdgeError]) -> str:
    """`name` if it is a path with `/` to a file somewhere inside the folder of the file `where`."""
    fault = _fault(name, _LONGEST_PATH)
    for part in () if fault else str(name).split("/"):
        fault = fault or _fault(part, _LONGEST) or _file_fault(part)
    return _accepted(name, fault, where, error)


def _accepted(name: Any, fault: str | None, where: str | Path, error: type[EdgeError]) -> str:
    if fault is not None:
        names = f"names a file {shown(name)} that cannot belong to it"
        raise error(f"{in_words(where)} {names} ({fault}); get the file again.")
    return str(name)


def user_path(given: Any) -> Path:
    """The path that the user of the Python API gave; WrongTypeError for what can't be one."""
    if not isinstance(given, (str, os.PathLike)) or "\0" in (text := os.fsdecode(given)):
        raise WrongTypeError(f"A file is named by a text or a path, not by {given!r}.")
    return Path(text)


def shown(name: Any) -> str:
    """A name from a file for a message: quoted, escaped and not too long."""
    text = name[:80] + "..." if isinstance(name, str) and len(name) > 80 else name
    return repr(text) if isinstance(text, str) else f"of type {type(name).__name__}"


def in_words(where: str | Path) -> str:
    """A path in quotes; words as they are."""
    return f"'{where}'" if isinstance(where, Path) else where


def _fault(name: Any, longest: int) -> str | None:
    if not isinstance(name, str):
        return "is not a text"
    if not name:
        return "is empty"
    if _UNPRINTABLE.search(name):
        return "has control characters"
    return "is too long" if len(name.encode()) > longest else None


def _file_fault(name: str) -> str | None:
    if _SEPARATORS.search(name):
        return "it leads to another folder"
    return "it is not a file's name" if name in (".", "..") else None
