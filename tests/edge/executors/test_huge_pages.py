"""Memory of others that is moved into huge pages."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest

from edge.system.huge_pages import huge_page_bytes, moved_to_huge_pages

MB = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such pages")


def pages(size: int) -> mmap.mmap:
    """Anonymous memory that the system leaves in small pages, whatever its default is."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def in_huge_pages(memory: mmap.mmap) -> int:
    return huge_page_bytes(ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory))


def test_what_is_made_in_the_block_is_moved():
    content = bytes(range(256)) * (64 * MB // 256)
    with moved_to_huge_pages():
        memory = pages(64 * MB)
        memory[:] = content
    moved = in_huge_pages(memory)
    if not moved:
        pytest.skip("this system moves no memory into huge pages (Linux 6.1 and later do)")
    assert moved >= 32 * MB  # the system may be short of them
    assert memory[:] == content


def test_what_was_there_and_what_is_empty_stay_as_they_are():
    before = pages(32 * MB)
    before[:] = b"x" * len(before)
    with moved_to_huge_pages():
        unused = pages(128 * MB)
        unused[: 16 * MB] = b"x" * (16 * MB)
    assert in_huge_pages(before) in (0, None) and in_huge_pages(unused) in (0, None)


def test_the_mappings_of_an_area_are_counted_and_those_beside_it_not(tmp_path, monkeypatch):
    """From 4 to 8 MB; the mappings before and behind touch it."""
    heads = [(2, 4), (4, 6), (6, 8), (8, 10)]
    kinds = ["AnonHugePages", "AnonHugePages", "FilePmdMapped", "AnonHugePages"]
    lines = []
    for (start, end), kind in zip(heads, kinds, strict=True):
        lines += [f"{start * MB:x}-{end * MB:x} rw-p 00000000 00:00 0", "Rss: 2048 kB", f"{kind}: 1024 kB"]
    (tmp_path / "smaps").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("edge.system.huge_pages.Path", lambda _: tmp_path / "smaps")
    assert huge_page_bytes(4 * MB, 4 * MB) == 2 * MB
    assert huge_page_bytes(4 * MB, 4 * MB + 1) == 3 * MB
    assert huge_page_bytes(4 * MB - 1, 4 * MB) == 3 * MB
    assert huge_page_bytes(4 * MB, 4096) == 4096  # never more than was asked about
    monkeypatch.setattr("edge.system.huge_pages.Path", lambda _: tmp_path / "none")
    assert huge_page_bytes(4 * MB, 4 * MB) is None
