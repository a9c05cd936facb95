"""What drafts search behind a pass, on a thread of its pool, while Python goes on."""

from __future__ import annotations

from collections.abc import Sequence

from edge.executors.native.pool import ThreadPool


class Searches:
    """Of one model. `begin` and `join` are for who holds its lock, or nobody else can reach it any more."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._held: Sequence[object] = ()
        self.handle = pool.handle if pool.threads > 1 else None
        """Of the pool, for libedge; None where they are made in the call of the pass."""

    def begin(self, held: Sequence[object]) -> None:
        """They may be under way from now on. held: what owns all that they read and write, beside the model,
        to which it does not lead.
        """
        self._held = held

    def wait(self) -> None:
        """Until they are over. For any thread."""
        self._pool.join()

    def join(self) -> None:
        """Until they are over, and whatever they use may be changed or go."""
        if self._held:
            self.wait()
            self._held = ()
