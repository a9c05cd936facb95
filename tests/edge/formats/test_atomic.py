"""Atomic writes: nothing half-written under a name, the order of fsync and rename, and who cleans up."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import ModelConfig
from edge.engine.conversation_file import read_conversation, write_conversation
from edge.errors import BundleError, EdgeError
from edge.formats.atomic import Partial, remove_leftovers, replacing, write_failure, write_file
from edge.formats.bundle.reader import Bundle
from edge.formats.kv_file import read_cache, write_cache
from edge.formats.safetensors import SafetensorsWriter
from edge.hub.convert import convert
from tests.durability import LINUX, Recorder

posix = pytest.mark.skipif(os.name != "posix", reason="locks of folders")


def writer(path: Path, kind: str) -> subprocess.Popen[str]:
    """A process that has begun to write `path` (a `file` or a `folder`) and waits."""
    code = """
    import sys, time
    from edge.formats.atomic import Partial
    with Partial(sys.argv[1], folder=sys.argv[2] == "folder") as partial:
        print(partial.path, flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), kind]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def half(process: subprocess.Popen[str]) -> Path:
    """What the process is writing."""
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    if path.is_dir():
        (path / "weights").write_bytes(b"half")
    return path


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@posix
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path, kind: str):
    dead, alive = writer(tmp_path / "chat.kv", kind), writer(tmp_path / "chat.kv", kind)
    try:
        left, running = half(dead), half(alive)
        kill(dead)
        assert left.exists()
        with Partial(tmp_path / "own", folder=kind == "folder") as own:
            write_file(tmp_path / "other.json", b"{}")  # any write in the folder cleans it
            assert not left.exists() and running.exists() and own.path.exists()
    finally:
        kill(alive)
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


@posix
@pytest.mark.parametrize("kind", ["conversation", "cache", "weights", "bundle"])
def test_every_atomic_write_and_open_cleans(
    tmp_path: Path, kind: str, tiny_config: ModelConfig, array_checkpoint: Any
):
    def leave() -> Path:
        path = tmp_path / ".old.kv.4194304-0badcafe.partial"  # beyond the largest process id
        path.write_bytes(b"half")
        return path

    left = leave()
    if kind == "conversation":
        write_conversation(tmp_path / "c", {"system": None, "thinking": None, "settings": {}, "messages": []})
        assert not left.exists()
        leave()
        read_conversation(tmp_path / "c")
    elif kind == "cache":
        write_cache(tmp_path / "c", {}, np.zeros(3, np.int32), [np.zeros(5, np.uint8)])
        assert not left.exists()
        leave()
        read_cache(tmp_path / "c", {})
    elif kind == "weights":
        with SafetensorsWriter(tmp_path / "w", [("a", "U8", (1,))]) as weights:
            weights.write("a", np.zeros(1, np.uint8))
    else:
        convert(array_checkpoint(tiny_config), tmp_path / "b")
    assert not left.exists()


def test_files_that_only_look_like_leftovers_stay(tmp_path: Path):
    names = [".a.partial", "a.1-0badcafe.partial", ".a.x-0badcafe.partial", ".a.1-0badcafe.partial.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".link.1-0badcafe.partial").symlink_to(tmp_path / names[0])
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= set(names)
    remove_leftovers(tmp_path / "none")


@LINUX
@pytest.mark.parametrize("kind", ["file", "weights"])
def test_a_file_is_synced_before_its_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    recorder = Recorder(monkeypatch)
    if kind == "file":
        write_file(tmp_path / "x", b"data")
    else:
        with SafetensorsWriter(tmp_path / "x", [("a", "U8", (1,))]) as weights:
            weights.write("a", np.zeros(1, np.uint8))
    recorder.assert_durable(tmp_path / "x")
    assert [event for event, _ in recorder.events] == ["sync", "rename", "sync"]


@LINUX
def test_a_bundle_is_synced_read_back_renamed_and_its_folder_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: ModelConfig, array_checkpoint: Any
):
    recorder = Recorder(monkeypatch)
    recorder.record(Bundle, "open", "read back")
    convert(array_checkpoint(tiny_config), tmp_path / "bundle")
    recorder.assert_durable(tmp_path / "bundle", "read back")


def test_a_bundle_that_was_not_written_as_meant_never_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: ModelConfig, array_checkpoint: Any
):
    """The disk gives back another byte than was written."""
    keep = Partial.keep

    def damaging(self: Partial) -> None:
        keep(self)
        if self.target.name == "weights.safetensors":
            with self.target.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x55")

    monkeypatch.setattr(Partial, "keep", damaging)
    with pytest.raises(BundleError, match="altered or damaged"):
        convert(array_checkpoint(tiny_config), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    write_file(tmp_path / "x", b"old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as file:
        file.write(b"new" * 10_000)
        raise KeyboardInterrupt
    assert (tmp_path / "x").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with Partial(tmp_path / "folder", folder=True) as partial:
        (partial.path / "a").write_bytes(b"a")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(Partial, "_create", lambda self: setattr(self, "path", tmp_path / "t") or full)
    monkeypatch.setattr(Partial, "_is_held", lambda self: True)
    with pytest.raises(EdgeError, match="disk is full while writing"):
        write_cache(tmp_path / "c", {}, np.zeros(3, np.int32), [np.zeros(5, np.uint8)])
    assert list(tmp_path.iterdir()) == []


def test_two_makers_of_one_folder(tmp_path: Path):
    """The slower one is told, and its work does not mix with the other's."""
    with Partial(tmp_path / "out", folder=True) as one, Partial(tmp_path / "out", folder=True) as two:
        (one.path / "a").write_bytes(b"one")
        (two.path / "b").write_bytes(b"two")
        one.keep()
        with pytest.raises(OSError) as caught:
            two.keep()
    assert "made by another process meanwhile" in write_failure(tmp_path / "out", caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"] and len(
        list(tmp_path.iterdir())
    ) == 1


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (("ENOSPC", "EDQUOT"), "The disk is full while writing 'out'"),
        (("EACCES", "EPERM", "EROFS"), "choose a folder that you may write to"),
        (("ENOTEMPTY",), "'out' was made by another process meanwhile"),
        (("EIO", "EISDIR"), "^Cannot write 'out'"),
    ],
)
def test_why_a_file_was_not_written(codes: tuple[str, ...], says: str):
    for code in codes:
        error = OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        assert re.search(says, write_failure("out", error))
