"""Weights that leave memory while nobody asks for an answer, and come back with the next pass."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from edge.errors import EdgeError
from edge.executors.weights import CopiedWeights, HugePageFile, WeightMemory


class RestingWeights:
    """The copies in huge pages that an executor and its drafts read. No pass waits for them: until they are
    back it reads the file itself, which is in the system's page cache or on disk.
    """

    def __init__(self, lock: Callable[[], AbstractContextManager[Any]], settle: Callable[[], None]) -> None:
        """lock: held by whoever reads the weights. settle: called with it held, and waits for who reads them
        without.
        """
        self._lock, self._settle = lock, settle
        self._copies: weakref.WeakSet[HugePageFile] = weakref.WeakSet()
        self._returning: threading.Thread | None = None  # since the last rest

    def add(self, weights: WeightMemory) -> None:
        """Let these rest with the others, if they are a copy."""
        if isinstance(weights, CopiedWeights):
            self._copies.add(weights.copy)

    def rest(self) -> None:
        """Give the copies back; does nothing where the system can't."""
        self.join()
        with self._lock():
            self._settle()
            for copy in self._copies:
                copy.rest()
            self._returning = None

    def wake(self) -> None:
        """For who is about to read, holding the lock: let the copies come back, in a thread of its own."""
        if self._returning is None and any(copy.rests for copy in self._copies):
            self._returning = threading.Thread(target=self._bring_back, name="edge-weights", daemon=True)
            self._returning.start()

    def join(self) -> None:
        """Wait until the copies are back, if they are under way."""
        if self._returning is not None:
            self._returning.join()

    def _bring_back(self) -> None:
        for copy in list(self._copies):
            if copy.rests:
                try:
                    fresh = copy.copied()
                    with self._lock():
                        self._settle()
                        copy.wake(fresh)
                except EdgeError:  # no memory for it: until the next rest the file is read in its place
                    return
