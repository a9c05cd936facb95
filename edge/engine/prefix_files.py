"""The folder with the files of a prefix cache: what is written there, what of it fits, and what has to go.

Nothing here waits for the cache's lock, so that a slow disk holds up nobody but who asks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError
from edge.executors.protocol import KVCache, StoresCaches
from edge.formats.kv_file import read_tokens, reading_cache, write_cache

Tokens = npt.NDArray[np.int32]

LEAST_IN_FILE = 1024
"""Tokens of a sequence that is written to a file rather than computed again."""

_FILE_NAME = re.compile(r"[0-9a-f]{32}\.kv")


class PrefixFiles:
    """For one executor; other processes may use the folder meanwhile."""

    def __init__(self, store: StoresCaches, folder: Path, most_bytes: int) -> None:
        """most_bytes: of all files together; the oldest go first."""
        self._store, self._folder, self._most_bytes = store, folder, most_bytes

    def usable(self) -> Iterator[tuple[Path, Tokens]]:
        """Those that the same weights, settings and kernels have made, oldest first, with their tokens."""
        for path, _ in self._files():
            with suppress(EdgeError, OSError):  # another process may want those of another model or setting
                yield path, read_tokens(path, self._identity)

    def write(self, tokens: Tokens, cache: KVCache) -> Path | None:
        """The file that a sequence has got; None where there is no room for it, or if it is too short."""
        if len(tokens) < LEAST_IN_FILE:
            return None
        key = tokens.tobytes() + repr(sorted(self._identity.items())).encode()
        path = self._folder / f"{hashlib.sha256(key).hexdigest()[:32]}.kv"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_cache(path, self._identity, tokens, self._store.cache_pages(cache))
        except (EdgeError, OSError):  # a full disk: it is computed again
            return None
        return path

    def read(self, path: Path, new_cache: Callable[[], KVCache]) -> KVCache | None:
        """A cache with the rows of a file; None if that is gone or damaged."""
        try:
            with reading_cache(path, self._identity) as stored:
                cache = new_cache()
                self._store.restore(cache, len(stored.tokens), stored.memory)
        except (EdgeError, OSError, MemoryError):
            return None
        return cache

    def beyond_limit(self, newest: Path) -> list[Path]:
        """Those that have to go so that the newest may stay."""
        files = self._files()
        total, found = sum(size for _, size in files), []
        for path, size in files:
            if total > self._most_bytes and path != newest:
                total -= size
                found.append(path)
        return found

    @staticmethod
    def remove(paths: Iterable[Path]) -> None:
        """Whichever of these are there."""
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @property
    def _identity(self) -> Mapping[str, str]:
        """What the bits of a row depend on, which is more than what makes it usable."""
        return {**self._store.cache_identity, "arithmetic": self._store.arithmetic}

    def _files(self) -> list[tuple[Path, int]]:
        """Our own and their sizes, oldest first."""
        found = []
        with suppress(OSError):
            for path in self._folder.iterdir():
                if _FILE_NAME.fullmatch(path.name):
                    with suppress(OSError):
                        status = path.stat()
                        found.append((status.st_mtime_ns, path, status.st_size))
        return [(path, size) for _, path, size in sorted(found)]
