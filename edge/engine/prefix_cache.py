"""Rows of earlier sequences, found again by the tokens that a new one begins with.

Kept sequences share their memory with each other and with the sessions that go on from them, page by page.
Those used longest ago go first when all caches together pass a limit: into a file, if there is a folder for
them, else altogether.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError
from edge.executors.protocol import Executor, KVCache, SharesRows, StoresCaches, shares_rows
from edge.formats.kv_file import read_cache, read_tokens, write_cache
from edge.system.memory import available_memory

Tokens = npt.NDArray[np.int32]

BLOCK = 64
"""Tokens of an edge of the tree; fewer in common are not worth a new cache."""

_FILE_NAME = re.compile(r"[0-9a-f]{32}\.kv")

LEAST_IN_FILE = 1024
"""Tokens of a sequence that is written to a file rather than computed again."""

_GROWN = 1.125
"""A sequence is written again once it is so much longer than what a file has of it."""


def default_prefix_memory() -> int:
    """Bytes: a sixteenth of what the system has left, and 1 GB at most."""
    available = available_memory()
    return min(1 << 30, (8 << 30 if available is None else available) // 16)


class _Node:
    """What begins with the blocks on the way here."""

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.kept: list[_Kept] = []


@dataclass(eq=False)
class _Kept:
    """A sequence: rows in memory, in a file, or both. beginnings: files of sequences that it goes on from,
    and in_files, the tokens of the longest file that there was of it.
    """

    tokens: Tokens
    cache: KVCache | None
    path: Path | None = None
    used: int = 0
    beginnings: tuple[Path, ...] = ()
    in_files: int = 0


@dataclass(frozen=True)
class PrefixStatistics:
    """sequences: kept at present, in_files of them out of memory. hits, rows: lookups that found something,
    and the rows that need not be computed.
    """

    sequences: int
    in_files: int
    hits: int
    rows: int


@dataclass
class _Counts:
    turn: int = 0
    hits: int = 0
    rows: int = 0


class PrefixCache:
    """Safe to use from several threads."""

    def __init__(
        self,
        executor: Executor,
        most_bytes: int,
        folder: Path | None = None,
        most_file_bytes: int = 8 << 30,
    ) -> None:
        """executor: one that `SharesRows`. most_bytes: of all its caches together, those of sessions
        included. folder: for files of what has to leave memory, by default none are written. Files there
        that the same weights, settings and kernels have made are found too.
        """
        assert shares_rows(executor)
        self._executor = cast(SharesRows, executor)
        self._new_cache = executor.new_cache
        self._context = executor.context
        self._store = cast(StoresCaches, executor) if executor.capabilities.cache_files else None
        self._most_bytes = most_bytes
        self._most_file_bytes = most_file_bytes
        self._lock = threading.RLock()
        self._root = _Node()
        self._kept: list[_Kept] = []
        self._counts = _Counts()
        self.generation = 0
        """Counts up when what was computed before can't be used any more."""
        self._folder = folder if self._store is not None else None
        for path, _ in self._files():
            self._find_again(path)

    @property
    def statistics(self) -> PrefixStatistics:
        """What is kept and what it was good for. Never waits, also while others write files."""
        sequences = tuple(self._kept)
        files = sum(kept.cache is None for kept in sequences)
        return PrefixStatistics(len(sequences), files, self._counts.hits, self._counts.rows)

    def token_lists(self) -> list[Tokens]:
        """The tokens of what is kept, oldest first."""
        with self._lock:
            return [kept.tokens for kept in sorted(self._kept, key=lambda kept: kept.used)]

    def find(self, tokens: Tokens, more_than: int) -> tuple[KVCache, int] | None:
        """A new cache with the rows of the longest beginning of `tokens` that is kept, and their number.

        None if that is not a block longer than `more_than`.
        """
        with self._lock:
            found = self._longest(tokens)
            if found is None or found[1] < more_than + BLOCK:
                return None
            kept, rows = found
            if kept.cache is None and not self._restore(kept):
                return self.find(tokens, more_than)
            assert kept.cache is not None
            self._touch(kept)
            self._counts.hits += 1
            self._counts.rows += rows
            fork = self._executor.fork(kept.cache, rows)
            self.make_room()
            return fork, rows

    def put(self, tokens: Tokens, cache: KVCache, *, goes_on: bool = False) -> None:
        """Keep a sequence, whose rows stand in `cache`. Sequences that are its beginning give way to it.

        goes_on: the sequence will soon be longer; then one that does not fit is not written to a file.
        """
        if len(tokens) < BLOCK or (goes_on and self._executor.cache_bytes > self._most_bytes):
            return
        with self._lock:
            found = self._longest(tokens)
            if found is not None and found[1] == len(tokens):
                self._touch(found[0])
                return
            new = _Kept(tokens.copy(), self._executor.fork(cache, len(tokens)))
            for kept in [kept for kept in self._kept if _begins(tokens, kept.tokens)]:
                own = () if kept.path is None else (kept.path,)
                new.beginnings += (*kept.beginnings, *own)
                new.in_files = max(new.in_files, kept.in_files, len(kept.tokens) if own else 0)
                self._leave(kept)
            self._add(new)
            self.make_room()

    def make_room(self) -> None:
        """Let what was used longest ago leave memory, until all caches are within the limit."""
        with self._lock:
            in_memory = sorted(
                (kept for kept in self._kept if kept.cache is not None), key=lambda kept: kept.used
            )
            for kept in in_memory:
                if self._executor.cache_bytes <= self._most_bytes:
                    return
                if kept.path is None:
                    self._write(kept)
                self._leave(kept)

    def leave_memory(self) -> None:
        """Forget what is in memory; what has a file is found there."""
        with self._lock:
            for kept in list(self._kept):
                self._leave(kept)

    def save(self, closing: Callable[[], bool] = lambda: False) -> None:
        """Write to the folder what is worth a file and is much longer than what has one.

        For a thread of its own: others may use the cache meanwhile. closing: asked before each file, whether
        to leave the rest.
        """
        while not closing() and (found := self._unsaved()) is not None:
            if not self._write(found):
                found.in_files = len(found.tokens)  # not again before it has grown

    def forget(self) -> None:
        """Find nothing of before again: the weights are others now. Files stay, for who has the old ones."""
        with self._lock:
            self.generation += 1
            for kept in list(self._kept):
                self._drop(kept)

    def close(self) -> None:
        """Write to the folder, if there is one, what has no file yet; nothing is kept afterwards."""
        with self._lock:
            for kept in sorted(self._kept, key=lambda kept: kept.used):
                if kept.path is None and kept.cache is not None:
                    self._write(kept)
            self.forget()

    # ---- The tree ------------------------------------------------------------------------------------------

    def _longest(self, tokens: Tokens) -> tuple[_Kept, int] | None:
        """What begins most like `tokens`, and how much of it does; rather in memory than in a file."""
        node, depth = self._root, 0
        for block in _blocks(tokens):
            if block not in node.children:
                break
            node, depth = node.children[block], depth + 1
        at = depth * BLOCK
        rest = tokens[at : at + BLOCK]
        lengths = [(at + _common(rest, kept.tokens[at : at + BLOCK]), kept) for kept in node.kept]
        if not lengths:
            return None
        rows, kept = max(lengths, key=lambda one: (one[0], one[1].cache is not None, one[1].used))
        return (kept, rows) if rows > 0 else None

    def _add(self, kept: _Kept) -> None:
        self._kept.append(kept)
        self._touch(kept)
        node = self._root
        node.kept.append(kept)
        for block in _blocks(kept.tokens):
            node = node.children.setdefault(block, _Node())
            node.kept.append(kept)

    def _leave(self, kept: _Kept) -> None:
        """Out of memory, and out of the tree unless it has a file."""
        kept.cache = None
        if kept.path is None:
            self._drop(kept)

    def _drop(self, kept: _Kept) -> None:
        """Out of the tree. A file stays where it is."""
        self._kept.remove(kept)
        kept.cache = None
        node = self._root
        node.kept.remove(kept)
        for block in _blocks(kept.tokens):
            child = node.children[block]
            child.kept.remove(kept)
            if not child.kept:
                del node.children[block]
                return
            node = child

    def _touch(self, kept: _Kept) -> None:
        self._counts.turn += 1
        kept.used = self._counts.turn

    # ---- Files ---------------------------------------------------------------------------------------------

    @property
    def _identity(self) -> Mapping[str, str]:
        """What the bits of a row depend on, which is more than what makes it usable."""
        assert self._store is not None
        return {**self._store.cache_identity, "arithmetic": self._store.arithmetic}

    def _files(self) -> list[tuple[Path, int]]:
        """Our own in the folder and their sizes, oldest first; other processes may remove some meanwhile."""
        found = []
        with suppress(OSError):
            for path in () if self._folder is None else self._folder.iterdir():
                if _FILE_NAME.fullmatch(path.name):
                    with suppress(OSError):
                        status = path.stat()
                        found.append((status.st_mtime_ns, path, status.st_size))
        return [(path, size) for _, path, size in sorted(found)]

    def _find_again(self, path: Path) -> None:
        try:
            tokens = read_tokens(path, self._identity)
        except (EdgeError, OSError):
            return  # of another model or setting: it may be wanted by another process
        if BLOCK <= len(tokens) <= self._context:
            self._add(_Kept(tokens, None, path))

    def _unsaved(self) -> _Kept | None:
        """The one of those that `save` is for that was used last."""
        if self._folder is None or self._store is None:
            return None
        with self._lock:
            found = [
                kept
                for kept in self._kept
                if kept.path is None
                and kept.cache is not None
                and len(kept.tokens) >= max(LEAST_IN_FILE, _GROWN * kept.in_files)
            ]
            return max(found, key=lambda kept: kept.used, default=None)

    def _write(self, kept: _Kept) -> bool:
        """Give a sequence a file, if there is a folder and room for it there; False where there is not.

        Files of its beginnings are removed: this one has their rows.
        """
        with self._lock:
            cache, generation = kept.cache, self.generation  # the rows of a kept cache never change
        if self._folder is None or self._store is None or cache is None or len(kept.tokens) < LEAST_IN_FILE:
            return False
        key = kept.tokens.tobytes() + repr(sorted(self._identity.items())).encode()
        path = self._folder / f"{hashlib.sha256(key).hexdigest()[:32]}.kv"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_cache(path, self._identity, kept.tokens, self._store.cache_pages(cache))
        except (EdgeError, OSError):  # a full disk: it is computed again
            return False
        with self._lock:
            if generation == self.generation:
                self._has_file(kept, path)
            self._limit_files(path)
        return True

    def _has_file(self, kept: _Kept, path: Path) -> None:
        beginnings, kept.beginnings = kept.beginnings, ()
        kept.path = path
        kept.in_files = len(kept.tokens)  # not again before it has grown, also if the file has to go
        if kept not in self._kept:  # it went on while it was written
            longer = [each for each in self._kept if _begins(each.tokens, kept.tokens)]
            for each in longer[:1]:
                each.beginnings += (path,)
                each.in_files = max(each.in_files, len(kept.tokens))
            if not longer:  # it had to leave memory
                kept.cache = None
                self._add(kept)
        for old in beginnings:
            if old != path:
                self._remove(old)

    def _remove(self, path: Path) -> None:
        """Remove a file, and forget what was in it alone."""
        with suppress(OSError):
            path.unlink(missing_ok=True)
        for kept in [kept for kept in self._kept if kept.path == path]:
            kept.path = None
            if kept.cache is None:
                self._drop(kept)

    def _limit_files(self, newest: Path) -> None:
        files = self._files()
        total = sum(size for _, size in files)
        for path, size in files:
            if total <= self._most_file_bytes:
                return
            if path == newest:
                continue
            total -= size
            self._remove(path)

    def _restore(self, kept: _Kept) -> bool:
        """From its file; False, and it is forgotten, if that is gone or damaged."""
        assert self._store is not None and kept.path is not None
        try:
            stored = read_cache(kept.path, self._identity)
            cache = self._new_cache()
            self._store.restore(cache, len(stored.tokens), stored.memory)
        except (EdgeError, OSError):
            self._drop(kept)
            return False
        kept.cache = cache
        return True


def _blocks(tokens: Tokens) -> Iterator[bytes]:
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        yield tokens[start : start + BLOCK].tobytes()


def _common(a: Tokens, b: Tokens) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n


def _begins(tokens: Tokens, beginning: Tokens) -> bool:
    n = len(beginning)
    return n <= len(tokens) and np.array_equal(tokens[:n], beginning)
