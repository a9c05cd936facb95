"""Threads for what takes longer than the event loop may be held up."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any, TypeVar

_T = TypeVar("_T")


class Workers:
    """So many threads at most, begun when they are needed.

    Unlike those of `ThreadPoolExecutor` they hold up neither `close` nor the end of the process: a call that
    hangs is left to itself.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closing = False

    def submit(self, function: Callable[..., _T], *values: object) -> Future[_T]:
        """Run it in one of the threads; cancelled at once after `close`."""
        future: Future[_T] = Future()
        with self._changed:
            if self._closing:
                future.cancel()
                return future
            self._calls.append((future, partial(function, *values)))
            if len(self._calls) > self._idle and len(self._threads) < self._most:
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
                self._threads[-1].start()
            self._changed.notify()
        return future

    def close(self, patience: float) -> bool:
        """Cancel what has not begun, and wait so many seconds for the rest; whether all has ended."""
        end = monotonic() + patience
        with self._changed:
            self._closing = True
            for future, _ in self._calls:
                future.cancel()
            self._calls.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, end - monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not (self._calls or self._closing):
                    self._changed.wait()
                self._idle -= 1
                if self._closing:
                    return
                future, call = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del future, call  # nothing of it lives on while the thread sleeps
