"""Huge pages: how much of some memory lies in them, and moving memory there that another library allocates.

Streaming reads from huge pages are faster than from the usual 4 KB pages (`edge.executors.weights`), but only
who maps memory can ask for them beforehand. Linux 6.1 and later also move what is there already.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HUGEPAGE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE, MADV_COLLAPSE of Linux
_PAGE = 2 << 20
_SMALLEST = 8 << 20  # bytes of a mapping that is worth it
_FULL = 0.9  # of a mapping in use: moving one that is emptier would fill it up

Mapping = tuple[int, int]
"""Addresses of the first byte and of the one after the last."""


@contextmanager
def moved_to_huge_pages() -> Iterator[None]:
    """Move the large anonymous mappings that are made or grow in the `with` block into huge pages at its end.

    What the system refuses stays where it is; systems other than Linux do nothing.
    """
    before = set(_anonymous_mappings())
    yield
    for start, end in _anonymous_mappings():
        if (start, end) not in before:
            _collapse(-(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE)


def huge_page_bytes(address: int, size: int) -> int | None:
    """How much of this process's memory from `address` on lies in huge pages; None where nobody tells.

    Counts anonymous memory and mapped files. Whole mappings are looked at, so memory beside it can count too.
    """
    total, inside = 0, False
    try:
        with Path("/proc/self/smaps").open() as lines:
            for line in lines:
                key, _, rest = line.partition(" ")
                if key[-1] != ":":  # the head of a mapping: "START-END permissions ..."
                    start, _, end = key.partition("-")
                    inside = int(start, 16) < address + size and int(end, 16) > address
                elif inside and key in ("AnonHugePages:", "FilePmdMapped:", "ShmemPmdMapped:"):
                    total += int(rest.split()[0]) * 1024
    except (OSError, ValueError):
        return None
    return min(total, size)


def _anonymous_mappings() -> list[Mapping]:
    """Large ones that are writable and in use."""
    found: list[Mapping] = []
    try:
        with Path("/proc/self/smaps").open() as lines:
            mapping: Mapping | None = None
            for line in lines:
                fields = line.split()
                if fields[0] == "Rss:":
                    if mapping and int(fields[1]) * 1024 > _FULL * (mapping[1] - mapping[0]):
                        found.append(mapping)
                elif not fields[0].endswith(":"):  # START-END PERMISSIONS OFFSET DEVICE INODE [NAME]
                    start, end = (int(address, 16) for address in fields[0].split("-"))
                    private = fields[1] == "rw-p" and (len(fields) == 5 or fields[5] == "[heap]")
                    mapping = (start, end) if private and end - start >= _SMALLEST else None
    except (OSError, ValueError):
        return []
    return found


def _collapse(start: int, end: int) -> None:
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None or start >= end:
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for advice in (_HUGEPAGE, _COLLAPSE):
        madvise(start, end - start, advice)
