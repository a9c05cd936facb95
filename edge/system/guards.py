"""Who may be inside an object: one thread at a time, and only in the process that made it.

A forked process inherits objects but not the threads that work for them: what uses those would wait for ever.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from typing import Any

from edge.errors import EdgeError


class _Guard:
    """what: the guarded thing in a word, for messages."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._process = os.getpid()
        self._lock = threading.RLock()

    @property
    def is_inherited(self) -> bool:
        """Whether this process got the object by a fork."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raise EdgeError in a process that got the object by a fork."""
        if self.is_inherited:
            raise EdgeError(
                f"This {self._what} belongs to the process that forked this one: load the model here, or "
                "start processes by multiprocessing's 'spawn'."
            )


class OneThread(_Guard):
    """A `with` block that refuses a second thread while a first one is inside; it may nest."""

    def __enter__(self) -> None:
        self.check_process()
        if not self._lock.acquire(blocking=False):
            raise EdgeError(
                f"This {self._what} is in use by another thread: wait for that one, or make a {self._what} "
                "for each thread."
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def entered(self) -> bool:
        """Whether the calling thread is inside."""
        return _is_owned(self._lock)


class OneCall(_Guard):
    """`with guard():` lets threads in one after another, and refuses one that is inside already.

    Such a thread would wait for itself: an observer that calls what it observes.
    """

    def __call__(self) -> AbstractContextManager[Any]:
        self.check_process()
        if _is_owned(self._lock):
            raise EdgeError(
                f"This {self._what} is in the middle of a call: an observer must not call what it observes."
            )
        return self._lock


def _is_owned(lock: Any) -> bool:
    """Whether the calling thread holds an RLock; `threading.Condition` asks in the same way."""
    return bool(lock._is_owned())
