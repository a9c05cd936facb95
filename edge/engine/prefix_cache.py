"""Rows of earlier sequences, found again by the tokens that a new one begins with.

Kept sequences share their memory with each other and with the sessions that go on from them, page by page.
Those used longest ago go first when all caches together pass a limit: into a file, if there is a folder for
them, else altogether.

Files are read and written, and memory is freed, outside of the lock. A server lets a thread of its own do
that (`attend`, `fetch`), so that the thread of its passes never does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from edge.engine.prefix_files import LEAST_IN_FILE, PrefixFiles
from edge.engine.prefix_tree import BLOCK, Kept, PrefixTree, Tokens, begins
from edge.executors.protocol import Executor, KVCache, SharesRows, StoresCaches, shares_rows
from edge.system.memory import available_memory

_GROWN = 1.125
"""A sequence is written again once it is so much longer than what a file has of it."""

_BEYOND = 256 << 20
"""Bytes beyond twice the limit that wait for a slow disk; what would be more is not written."""


def default_prefix_memory() -> int:
    """Bytes: a sixteenth of what the system has left, and 1 GB at most."""
    available = available_memory()
    return min(1 << 30, (8 << 30 if available is None else available) // 16)


@dataclass(frozen=True)
class PrefixStatistics:
    """sequences: kept at present, in_files of them out of memory. hits, rows: lookups that found something,
    and the rows that need not be computed.
    """

    sequences: int
    in_files: int
    hits: int
    rows: int


class Fetch:
    """Rows that are on their way from a file into memory, or are there, and stay until `release`.

    is_over: nothing is read any more. May be used from any thread.
    """

    def __init__(self, is_there: Callable[[], bool], let_go: Callable[[], Any], is_over: bool) -> None:
        self._is_there, self._let_go, self.is_over = is_there, let_go, is_over

    @property
    def is_there(self) -> bool:
        """Whether they are in memory: a file may be damaged, and memory may be needed for something else."""
        return self.is_over and self._is_there()

    def release(self) -> None:
        """They need not stay; to be called once."""
        self._let_go()


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
        self._most_bytes = most_bytes
        self._lock = threading.RLock()
        self._tree = PrefixTree()
        self._hits = self._rows = 0
        self._keeper: Callable[[], Any] | None = None
        self._may_write = True
        self.generation = 0
        """Counts up when what was computed before can't be used any more."""
        self._files: PrefixFiles | None = None
        if folder is not None and executor.capabilities.cache_files:
            self._files = PrefixFiles(cast(StoresCaches, executor), folder, most_file_bytes)
            for path, tokens in self._files.usable():
                if BLOCK <= len(tokens) <= executor.context:
                    self._tree.add(Kept(tokens, None, path))

    @property
    def statistics(self) -> PrefixStatistics:
        """What is kept and what it was good for. Never waits, also while others write files."""
        sequences = tuple(self._tree.kept)
        files = sum(kept.cache is None for kept in sequences)
        return PrefixStatistics(len(sequences), files, self._hits, self._rows)

    def token_lists(self) -> list[Tokens]:
        """The tokens of what is kept, oldest first."""
        with self._lock:
            return [kept.tokens for kept in sorted(self._tree.kept, key=lambda kept: kept.used)]

    def attend(self, keeper: Callable[[], Any] | None) -> None:
        """Let `keeper` be told when there is something to do for `make_room`; it returns at once.

        None: whoever finds or puts something makes room himself, and waits for the files.
        """
        self._keeper = keeper

    def find(self, tokens: Tokens, more_than: int) -> tuple[KVCache, int] | None:
        """A new cache with the rows of the longest beginning of `tokens` that is kept, and their number.

        None if that is not a block longer than `more_than`. Reads a file, unless `fetch` has done so.
        """
        while True:
            with self._lock:
                found = self._tree.longest(tokens)
                if found is None or found[1] < more_than + BLOCK:
                    return None
                kept, rows = found
                cache = kept.cache
            if cache is None and (cache := self._restore(kept)) is None:
                continue  # it is found no more
            fork = self._executor.fork(cache, rows)
            with self._lock:
                self._tree.touch(kept)
                self._hits += 1
                self._rows += rows
            del cache  # the last one frees it
            self._trim()
            return fork, rows

    def fetch(self, tokens: Tokens, over: Callable[[], Any]) -> Fetch | None:
        """Let what `find` would find be in memory, without waiting for a file; None if it finds nothing.

        over: called when the fetch is over if it is not at once, in another thread.
        """
        with self._lock:
            found = self._tree.longest(tokens)
            if found is None or found[1] < BLOCK:
                return None
            kept = found[0]
            kept.pins += 1
            is_over = kept.cache is not None
        fetch = Fetch(lambda: kept.cache is not None, partial(self._unpin, kept), is_over)
        if not is_over:
            reading = threading.Thread(
                target=self._fetch, args=(kept, fetch, over), name="edge-restore", daemon=True
            )
            reading.start()
        return fetch

    def put(self, tokens: Tokens, cache: KVCache, *, goes_on: bool = False) -> None:
        """Keep a sequence, whose rows stand in `cache`. Sequences that are its beginning give way to it.

        goes_on: the sequence will soon be longer; then one that does not fit is not written to a file.
        """
        if len(tokens) < BLOCK or (goes_on and self._executor.cache_bytes > self._most_bytes):
            return
        if self._is_kept(tokens):
            return
        new = Kept(tokens.copy(), self._executor.fork(cache, len(tokens)))
        gone: list[KVCache | None] = []
        with self._lock:
            if self._is_kept(tokens):  # by now
                return
            for kept in [kept for kept in self._tree.kept if begins(tokens, kept.tokens)]:
                own = () if kept.path is None else (kept.path,)
                new.beginnings += (*kept.beginnings, *own)
                new.in_files = max(new.in_files, kept.in_files, len(kept.tokens) if own else 0)
                gone.append(self._tree.leave(kept))
            self._tree.add(new)
        gone.clear()
        self._trim()

    def make_room(self, *, write: bool = True, most_bytes: int | None = None) -> None:
        """Let what was used longest ago leave memory, until all caches are within the limit.

        write: give it a file before. most_bytes: another limit.
        """
        most = self._most_bytes if most_bytes is None else most_bytes
        while (kept := self._to_leave(most)) is not None:
            if write and kept.path is None:
                self._write(kept)
            with self._lock:
                gone = None if kept.pins else self._tree.leave(kept)
            del gone

    def leave_memory(self) -> None:
        """Forget what is in memory; what has a file is found there."""
        with self._lock:
            gone = [self._tree.leave(kept) for kept in list(self._tree.kept)]
        gone.clear()

    def save(self, closing: Callable[[], bool] = lambda: False) -> None:
        """Write to the folder what is worth a file and is much longer than what has one.

        For a thread of its own: others may use the cache meanwhile. closing: asked before each file, whether
        to leave the rest.
        """
        while not closing() and (found := self._unsaved()) is not None:
            if not self._write(found):
                found.in_files = len(found.tokens)  # not again before it has grown

    def write_no_more(self) -> None:
        """For a folder that does not answer: from now on nothing is given a file."""
        self._may_write = False

    def forget(self) -> None:
        """Find nothing of before again: the weights are others now. Files stay, for who has the old ones."""
        with self._lock:
            self.generation += 1
            gone = [self._tree.drop(kept) for kept in list(self._tree.kept)]
        gone.clear()

    def close(self) -> None:
        """Write to the folder, if there is one, what has no file yet; nothing is kept afterwards."""
        with self._lock:
            left = sorted(self._tree.kept, key=lambda kept: kept.used)
        for kept in left:
            if kept.path is None and kept.cache is not None:
                self._write(kept)
        self.forget()

    # ---- Memory and files ----------------------------------------------------------------------------------

    def _trim(self) -> None:
        """Make room, or have it made."""
        if self._keeper is None:
            self.make_room()
        elif self._executor.cache_bytes > self._most_bytes:
            self.make_room(write=False, most_bytes=2 * self._most_bytes + _BEYOND)
            self._keeper()

    def _is_kept(self, tokens: Tokens) -> bool:
        """Whether just these are, or more: then they have been used."""
        with self._lock:
            found = self._tree.longest(tokens)
            if found is None or found[1] < len(tokens):
                return False
            self._tree.touch(found[0])
            return True

    def _to_leave(self, most_bytes: int) -> Kept | None:
        """What has to leave memory first; None if nothing has to, or can."""
        if self._executor.cache_bytes <= most_bytes:
            return None
        with self._lock:
            able = (kept for kept in self._tree.kept if kept.cache is not None and not kept.pins)
            return min(able, key=lambda kept: kept.used, default=None)

    def _unpin(self, kept: Kept) -> None:
        with self._lock:
            kept.pins -= 1
        self._trim()

    def _fetch(self, kept: Kept, fetch: Fetch, over: Callable[[], Any]) -> None:
        try:
            self._restore(kept)
        except BaseException:  # a mistake of ours: it must not be tried again for ever
            with self._lock:
                self._tree.drop(kept)
            raise
        finally:
            fetch.is_over = True
            over()

    def _restore(self, kept: Kept) -> KVCache | None:
        """From its file; None, and it is forgotten, if that is gone or damaged."""
        with kept.reading:
            with self._lock:
                cache, path, generation = kept.cache, kept.path, self.generation
            if cache is not None:  # another one has read it
                return cache
            if path is not None and self._files is not None:
                cache = self._files.read(path, self._new_cache)
            with self._lock:
                if cache is None:
                    self._tree.drop(kept)
                elif generation != self.generation or kept not in self._tree.kept:
                    return None
                else:
                    kept.cache = cache
        return cache

    def _unsaved(self) -> Kept | None:
        """The one of those that `save` is for that was used last."""
        if self._files is None or not self._may_write:
            return None
        with self._lock:
            found = [
                kept
                for kept in self._tree.kept
                if kept.path is None
                and kept.cache is not None
                and len(kept.tokens) >= max(LEAST_IN_FILE, _GROWN * kept.in_files)
            ]
            return max(found, key=lambda kept: kept.used, default=None)

    def _write(self, kept: Kept) -> bool:
        """Give a sequence a file, if there is a folder and room for it there; False where there is not.

        Files of its beginnings are removed: this one has their rows.
        """
        with self._lock:
            cache, generation = kept.cache, self.generation  # the rows of a kept cache never change
        if self._files is None or not self._may_write or cache is None:
            return False
        path = self._files.write(kept.tokens, cache)
        if path is None:
            return False
        removed: list[Path] = []
        with self._lock:
            if generation == self.generation:
                removed += self._has_file(kept, path)
        removed += self._files.beyond_limit(path)
        with self._lock:
            for each in removed:
                self._forget_file(each)
        self._files.remove(removed)
        return True

    def _has_file(self, kept: Kept, path: Path) -> list[Path]:
        """Returns the files that it takes the place of."""
        beginnings, kept.beginnings = kept.beginnings, ()
        kept.path = path
        kept.in_files = len(kept.tokens)  # not again before it has grown, also if the file has to go
        if kept not in self._tree.kept:  # it went on while it was written
            longer = [each for each in self._tree.kept if begins(each.tokens, kept.tokens)]
            for each in longer[:1]:
                each.beginnings += (path,)
                each.in_files = max(each.in_files, len(kept.tokens))
            if not longer:  # it had to leave memory
                kept.cache = None
                self._tree.add(kept)
        return [old for old in beginnings if old != path]

    def _forget_file(self, path: Path) -> None:
        """And what is in it alone."""
        for kept in [kept for kept in self._tree.kept if kept.path == path]:
            kept.path = None
            if kept.cache is None:
                self._tree.drop(kept)
