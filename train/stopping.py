"""Stopping a run by SIGTERM or SIGINT: after the step that is under way, with a checkpoint.

Processes of one run get their signal at different moments, so each step adds up who got one and all stop
together.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While it is open, a signal only asks for a stop; a second SIGINT is as it was before.

    received: the number of this process's signal, 0 if there was none. agreed: the number on which all
    processes stop, None as long as they go on.
    """

    def __init__(self) -> None:
        self.received = 0
        self.agreed: int | None = None
        self._before: dict[int, object] = {}

    def agree(self, total: int) -> None:
        """total: `received` of all processes, added up."""
        if total:
            self.agreed = self.received or int(signal.SIGTERM)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # others can't have handlers
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def _receive(self, number: int, _: FrameType | None) -> None:
        # Who starts many processes sends each a signal of its own beside the terminal's, so only a person's
        # second Ctrl-C is taken for one who won't wait.
        if number == signal.SIGINT and self.received == signal.SIGINT:
            self._put_back()
            signal.raise_signal(signal.SIGINT)
        self.received = self.received or number

    def _put_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
