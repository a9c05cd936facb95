"""Sequences that a prefix cache keeps, in a tree by blocks of their tokens. Whoever uses it has a lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.executors.protocol import KVCache

Tokens = npt.NDArray[np.int32]

BLOCK = 64
"""Tokens of an edge of the tree; fewer in common are not worth a new cache."""


@dataclass(eq=False)
class Kept:
    """A sequence: rows in memory, in a file, or both.

    used: counts up. beginnings: files of sequences that it goes on from, and in_files, the tokens of the
    longest file that there was of it. pins: of those for whom it stays in memory. reading: held by who reads
    its file.
    """

    tokens: Tokens
    cache: KVCache | None
    path: Path | None = None
    used: int = 0
    beginnings: tuple[Path, ...] = ()
    in_files: int = 0
    pins: int = 0
    reading: threading.Lock = field(default_factory=threading.Lock)


class _Node:
    """What begins with the blocks on the way here."""

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.kept: list[Kept] = []


class PrefixTree:
    """kept: all sequences."""

    def __init__(self) -> None:
        self._root = _Node()
        self._turn = 0
        self.kept: list[Kept] = []

    def longest(self, tokens: Tokens) -> tuple[Kept, int] | None:
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

    def add(self, kept: Kept) -> None:
        """One more."""
        self.kept.append(kept)
        self.touch(kept)
        node = self._root
        node.kept.append(kept)
        for block in _blocks(kept.tokens):
            node = node.children.setdefault(block, _Node())
            node.kept.append(kept)

    def leave(self, kept: Kept) -> KVCache | None:
        """Out of memory, and out of the tree unless it has a file.

        Returns what was in memory, for the caller to let go of behind the lock: that takes its time.
        """
        if kept.path is None:
            return self.drop(kept)
        cache, kept.cache = kept.cache, None
        return cache

    def drop(self, kept: Kept) -> KVCache | None:
        """Out of the tree, if it is there, and out of memory; see `leave`. A file stays where it is."""
        cache, kept.cache = kept.cache, None
        if kept not in self.kept:
            return cache
        self.kept.remove(kept)
        node = self._root
        node.kept.remove(kept)
        for block in _blocks(kept.tokens):
            child = node.children[block]
            child.kept.remove(kept)
            if not child.kept:
                del node.children[block]
                break
            node = child
        return cache

    def touch(self, kept: Kept) -> None:
        """It has been used."""
        self._turn += 1
        kept.used = self._turn


def begins(tokens: Tokens, beginning: Tokens) -> bool:
    """Whether the second is the beginning of the first, or all of it."""
    n = len(beginning)
    return n <= len(tokens) and np.array_equal(tokens[:n], beginning)


def _blocks(tokens: Tokens) -> Iterator[bytes]:
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        yield tokens[start : start + BLOCK].tobytes()


def _common(a: Tokens, b: Tokens) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n
