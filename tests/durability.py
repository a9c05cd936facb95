"""Records what a write syncs, renames and reads back, so that tests can see a power cut survived."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

LINUX = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


class Recorder:
    """events: ("sync" | "rename" | another name, path), in order; a synced path is that of the descriptor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, Path]] = []
        self._monkeypatch = monkeypatch
        fsync = os.fsync

        def recording(descriptor: int) -> None:
            self.events.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", recording)
        self.record(Path, "replace", "rename")
        self.record(Path, "rename", "rename")

    def record(self, owner: Any, name: str, event: str) -> None:
        """Note the calls of owner.name, a function or class method whose first argument is a path, too."""
        function = getattr(owner, name)

        def recording(path: Any, *rest: Any, **options: Any) -> Any:
            self.events.append((event, Path(path)))
            return function(path, *rest, **options)

        self._monkeypatch.setattr(owner, name, recording)

    def assert_durable(self, target: Path, read_back: str | None = None) -> None:
        """`target` with all in it was synced, read back, renamed, and its folder synced, in this order."""
        renames = {path: i for i, (event, path) in enumerate(self.events) if event == "rename"}
        (temporary,) = (path for path in renames if is_partial_of(target, path))
        before, after = self.events[: renames[temporary]], self.events[renames[temporary] :]
        synced = [path for event, path in before if event == "sync"]
        assert ("sync", target.parent) in after
        for path in target.rglob("*") if target.is_dir() else ():
            place = temporary / path.relative_to(target)
            # a file may have been written under a temporary name of its own
            assert any(each == place or is_partial_of(place, each) for each in synced), path
        inside = [
            i for i, (event, path) in enumerate(before) if event == "sync" and temporary in path.parents
        ]
        last = max(inside, default=-1)
        assert ("sync", temporary) in before[last + 1 :]  # with the name of its last file
        if read_back is not None:
            assert (read_back, temporary) in before[last + 1 :]  # when all of it had been written


def is_partial_of(target: Path, path: Path) -> bool:
    """Whether `path` is a temporary name of `target`."""
    named = path.name.startswith(f".{target.name}.") and path.suffix == ".partial"
    return named and path.parent == target.parent
