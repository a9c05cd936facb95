"""In which order a source's documents come: shuffled anew in every epoch, without end, with random access.

The order is a pure function of seed, source and epoch, whatever NumPy's version, so that a place in it is one
whole number. It takes about 30 bytes of memory per document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from edge.train.data.batch import Piece


class Stream:
    """All tokens of a source, epoch behind epoch, without end."""

    def __init__(self, lengths: np.ndarray, name: str, seed: int) -> None:
        """lengths: tokens of each document, int64 [documents], of which one is positive."""
        self._lengths, self._name, self._seed = lengths, name, seed
        self.period = self.tokens = int(lengths.sum())
        """Tokens of an epoch."""
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)  # a row may lie in two

    def pieces(self, place: int, size: int) -> list[Piece]:
        """The pieces of documents at the tokens place .. place + size - 1."""
        found = []
        while size:
            epoch, at = divmod(place, self.period)
            order, ends = self._epoch(epoch)
            number = int(np.searchsorted(ends, at, side="right"))
            while size and number < len(order):
                document = int(order[number])
                length = int(self._lengths[document])
                start = length - (int(ends[number]) - at)
                stop = min(length, start + size)
                if stop > start:  # documents may be empty
                    found.append(Piece(document, start, stop))
                at, place, size = at + stop - start, place + stop - start, size - (stop - start)
                number += 1
        return found

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = shuffled(len(self._lengths), self._name, self._seed, epoch)
        return order, np.cumsum(self._lengths[order])


class Bucket:
    """Those pieces of a source that belong into rows of one length, epoch behind epoch, without end."""

    def __init__(self, pieces: np.ndarray, length: int, name: str, seed: int) -> None:
        """pieces: document, start and stop, int64 [pieces, 3], none longer than `length`."""
        self._pieces, self._length = pieces, length
        self.period = len(pieces)
        """Pieces of an epoch."""
        self.tokens = int((pieces[:, 2] - pieces[:, 1]).sum())
        self._epoch = lru_cache(maxsize=2)(lambda epoch: shuffled(len(pieces), name, seed, epoch))

    def row(self, place: int) -> list[Piece]:
        """The pieces from the `place`-th on that fit into a row together; the next row begins behind them."""
        found: list[Piece] = []
        free = self._length
        while True:
            epoch, number = divmod(place + len(found), self.period)
            piece = Piece(*self._pieces[self._epoch(epoch)[number]].tolist())
            free -= piece.stop - piece.start
            if free < 0:
                return found
            found.append(piece)


def cut_by_length(lengths: np.ndarray, buckets: Sequence[int]) -> list[np.ndarray]:
    """Pieces for each bucket, int64 [pieces, 3]: document, start, stop.

    A document goes whole into the first bucket that is long enough. One that is longer than the last is cut
    into pieces of that length, and a rest, which goes where a document of its length would. Empty documents
    are left out.
    """
    longest = buckets[-1]
    counts = -(-lengths // longest)
    documents = np.repeat(np.arange(len(lengths)), counts)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.arange(len(documents)) - firsts) * longest
    stops = np.minimum(starts + longest, lengths[documents])
    pieces = np.stack([documents, starts, stops], axis=1).astype(np.int64)
    chosen = np.searchsorted(np.asarray(buckets), stops - starts, side="left")
    return [pieces[chosen == number] for number in range(len(buckets))]


def shuffled(size: int, name: str, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0 .. size - 1: sorted by SplitMix64's numbers (Steele, Lea, Flood 2014)."""
    text = f"{seed}/{epoch}/{name}".encode()
    begin = np.uint64(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        mixed = begin + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return np.argsort(mixed)  # no two are equal
