"""Connections whose clients do not go on: they end, and with them all that waits for such a client."""

from __future__ import annotations

import asyncio
from typing import Any


def connection_type(stalled: float, head: float) -> type[asyncio.Protocol]:
    """What uvicorn shall make of each connection.

    stalled: seconds after which one ends that takes nothing of its response. head: seconds in which the head
    of a request has to be there, from the connection's start or from the first byte of a later one.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Connection(H11Protocol):
        """One that a client can't hold for ever."""

        _writing: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._reading = self.loop.call_later(head, self.transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answers = self.cycle is not None and not self.cycle.response_complete
            if answers or self.transport.is_closing():
                self._reading = _end(self._reading)
            elif self._reading is None:
                self._reading = self.loop.call_later(head, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            # Closing would wait until the rest is written, which is what does not happen.
            self._writing = self.loop.call_later(stalled, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._writing = _end(self._writing)

        def connection_lost(self, exc: Exception | None) -> None:
            self._writing, self._reading = _end(self._writing), _end(self._reading)
            super().connection_lost(exc)

    return Connection


def _end(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """What stands for a timer that has been ended."""
    if timer is not None:
        timer.cancel()
    return None
