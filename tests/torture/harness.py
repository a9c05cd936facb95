"""Kills writers, fills their disk, and lets two of them race; says what was wrong afterwards."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge.errors import EdgeError
from tests.torture.writes import Write

PATIENCE = 120.0  # seconds for one write, on a machine that does other things too


class Writer:
    """A process that does one write; it was forked, so it begins at once."""

    def __init__(self, write: Write, place: Path, limit: int | None = None) -> None:
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            os._exit(_child(write, place, limit))

    def wait(self) -> int:
        """0: written; 1: refused with an EdgeError; 2: another exception; 9: killed."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            time.sleep(0.002)
        self.kill()
        raise AssertionError("a write hangs")

    def kill(self) -> int:
        """SIGKILL, whatever it is doing."""
        os.kill(self.process, signal.SIGKILL)
        _, status = os.waitpid(self.process, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _child(write: Write, place: Path, limit: int | None) -> int:
    try:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        write.write(place)
        return 0
    except EdgeError:
        return 1
    except BaseException:
        traceback.print_exc()
        return 2


def kill_writers(write: Write, place: Path, kills: int, chance: random.Random) -> int:
    """Kill so many writers at random moments; returns how many were still writing. AssertionError."""
    duration = _whole(write, place)
    hit = 0
    for _ in range(kills):
        _reset(write, place)
        writer = Writer(write, place)
        time.sleep(chance.uniform(0, 1.1 * duration))
        hit += writer.kill() == signal.SIGKILL
        write.check(place)
    _whole(write, place)
    return hit


def fill_disk(write: Write, place: Path, times: int, chance: random.Random) -> int:
    """Fill the disk that `place` is alone on, in the middle of so many writes; returns how many failed.

    By turns it has room for a part of the write from the start, or is filled at a random moment.
    """
    duration = _whole(write, place)
    size = sum(path.stat().st_size for path in place.rglob("*"))
    failed = 0
    for number in range(times):
        _reset(write, place)
        filler = place / "filler"
        if number % 2:
            writer = Writer(write, place)
            time.sleep(chance.uniform(0, duration))
            _fill(filler)
        else:
            _fill(filler, leave=int(size * chance.random()))
            writer = Writer(write, place)
        code = writer.wait()
        assert code in (0, 1), f"{write.name}: exit code {code} on a full disk"
        failed += code
        filler.unlink()
        write.check(place)
        assert not write.leftovers(place), write.leftovers(place)
    _whole(write, place)
    return failed


def limit_files(write: Write, place: Path, times: int) -> int:
    """The same without a disk: files may not grow beyond so many different sizes."""
    _whole(write, place)
    largest = max(path.stat().st_size for path in place.rglob("*") if path.is_file())
    failed = 0
    for step in range(times):
        _reset(write, place)
        code = Writer(write, place, largest * step // times).wait()
        assert code in (0, 1), f"{write.name}: exit code {code} at a limit of {largest * step // times} bytes"
        failed += code
        write.check(place)
        assert not write.leftovers(place), write.leftovers(place)
    _whole(write, place)
    return failed


def race(write: Write, place: Path, times: int) -> None:
    """Two writers at once: at least one succeeds, the other does or is refused with a sentence."""
    for _ in range(times):
        _reset(write, place)
        codes = sorted(writer.wait() for writer in [Writer(write, place), Writer(write, place)])
        assert codes in ([0, 0], [0, 1]), f"{write.name}: exit codes {codes} of two writers"
        write.check(place)
        assert not write.leftovers(place), write.leftovers(place)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path | None]:
    """A file system of `size` bytes at `place`; None where this user may not mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _whole(write: Write, place: Path) -> float:
    """One write that nobody disturbs: it succeeds and leaves nothing else; returns its seconds."""
    _reset(write, place)
    started = time.monotonic()
    code = Writer(write, place).wait()
    seconds = time.monotonic() - started
    assert code == 0, f"{write.name}: exit code {code} undisturbed"
    write.check(place)
    assert any(path.name in write.names for path in place.iterdir())
    assert not write.leftovers(place), write.leftovers(place)
    return seconds


def _reset(write: Write, place: Path) -> None:
    """Make room for a write that replaces nothing; what killed writers left stays."""
    if write.replaces:
        return
    for path in (place / "out", *(place / "cache" / "models").glob("[!.]*")):
        shutil.rmtree(path, ignore_errors=True)


def _fill(path: Path, leave: int = 0) -> None:
    """Take all that is free at once, but for so many bytes."""
    with path.open("wb") as file:
        for _ in range(3):  # the writer may have given some back meanwhile
            disk = os.statvfs(path.parent)
            size = os.fstat(file.fileno()).st_size + disk.f_bavail * disk.f_frsize - leave
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
