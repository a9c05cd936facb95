"""What drafts search behind a pass, on a thread of its pool, while Python goes on."""

from __future__ import annotations

from collections.abc import Sequence

from edge.executors.native.pool import ThreadPool
from edge.system.guards import OneCall


class Searches:
    """Of one model. For who holds its lock."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._under_way: Sequence[object] = ()
        self.pool = pool.handle if pool.threads > 1 else None
        """For libedge; None where they are made in the call of the pass."""

    def begin(self, memory: Sequence[object]) -> None:
        """Searches may be under way from now on. memory: what owns all that they read and write."""
        self._under_way = memory

    def join(self) -> None:
        """Until they are over."""
        if self._under_way:
            self._pool.join()
            self._under_way = ()


class Alone:
    """A model's lock, for who would disturb searches: they are over when it is let in."""

    def __init__(self, lock: OneCall, searches: Searches) -> None:
        self._lock, self.searches = lock, searches

    def __call__(self) -> Alone:
        """To be entered."""
        return self

    def __enter__(self) -> None:
        self._lock().__enter__()
        self.searches.join()

    def __exit__(self, *_: object) -> None:
        self._lock.leave()

    @property
    def is_inherited(self) -> bool:
        """See `OneCall`."""
        return self._lock.is_inherited
