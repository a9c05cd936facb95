"""KV caches on a device as the host sees them: which pages a sequence has, and who shares them."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable

from edge.errors import ContextError
from edge.executors.cuda.operators.tables import PAGE


class PagePool:
    """Which pages are free, and how many caches have each of the others."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = list(range(pages))[::-1]
        self._owners = [0] * pages
        self._dropped: deque[list[int]] = deque()  # by finalizers, which may run in the midst of anything

    @property
    def used(self) -> int:
        """Pages of caches; what several share counts once."""
        self._collect()
        return self.pages - len(self._free)

    def take(self, count: int) -> list[int]:
        """Pages of one's own; ContextError if there are not so many."""
        self._collect()
        if count > len(self._free):
            raise ContextError(
                f"All {self.pages * PAGE} rows of the KV cache on the device are in use: end other "
                "conversations, or load the model with a smaller context."
            )
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._owners[page] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One more cache has these."""
        for page in pages:
            self._owners[page] += 1

    def is_shared(self, page: int) -> bool:
        """Whether several caches have it."""
        self._collect()
        return self._owners[page] > 1

    def release(self, pages: Iterable[int]) -> None:
        """A cache does not have them any more."""
        for page in pages:
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)

    def drop(self, pages: list[int]) -> None:
        """`release`, from a finalizer."""
        self._dropped.append(pages)

    def _collect(self) -> None:
        while self._dropped:
            self.release(self._dropped.popleft())


class CudaCache:
    """The KV cache of one sequence. pages: their ids, in the order of its rows; there may be more than it
    needs.
    """

    def __init__(self, pool: PagePool, capacity: int) -> None:
        self._pool, self._capacity = pool, capacity
        self.length = 0
        self.pages: list[int] = []
        weakref.finalize(self, pool.drop, self.pages).atexit = False

    @property
    def capacity(self) -> int:
        """Rows it can grow to."""
        return self._capacity

    def is_of(self, pool: PagePool) -> bool:
        """Whether its pages are of this pool."""
        return self._pool is pool

    def writable(self, first: int, end: int) -> list[tuple[int, int]]:
        """Have pages of its own for rows `first` to `end`, the rows before it being in use.

        Returns what must be copied before one of them is written: (page, into page) of those that were
        shared. Raises ContextError, having changed nothing, if the pool has no more.
        """
        wanted = range(first // PAGE, -(-end // PAGE))
        shared = [at for at in wanted if at < len(self.pages) and self._pool.is_shared(self.pages[at])]
        taken = self._pool.take(len(shared) + max(0, wanted.stop - len(self.pages)))
        copies = []
        for at, own in zip(shared, taken, strict=False):
            copies.append((self.pages[at], own))
            self._pool.release([self.pages[at]])
            self.pages[at] = own
        self.pages.extend(taken[len(shared) :])
        return copies

    def share(self, rows: int, into: CudaCache) -> None:
        """Make the first rows those of another cache, which is empty."""
        pages = self.pages[: -(-rows // PAGE)]
        self._pool.share(pages)
        into.pages.extend(pages)
        into.length = rows

    def cut(self, rows: int) -> None:
        """Drop the rows after the first ones, and the pages that only they had."""
        self.length = rows
        needed = -(-rows // PAGE)
        surplus = self.pages[needed:]
        del self.pages[needed:]
        self._pool.release(surplus)
