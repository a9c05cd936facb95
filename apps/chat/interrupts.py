"""What Ctrl-C does during a chat: it ends what is running, and the conversation stays."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.engine.generation import Stream


@contextmanager
def cancel_on_interrupt(stream: Stream) -> Iterator[None]:
    """While this lasts, Ctrl-C cancels the answer, which then ends as soon as the running step is done."""
    before = signal.signal(signal.SIGINT, lambda signum, frame: stream.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupts:
    """While this lasts, Ctrl-C raises KeyboardInterrupt in `armed` blocks only, and once in each.

    So a second, impatient Ctrl-C cannot hit the code that handles the first one.
    """

    def __init__(self) -> None:
        self._armed = False

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Code that Ctrl-C may end; catch the KeyboardInterrupt around the block."""
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def _interrupt(self, signum: int, frame: Any) -> None:
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)
