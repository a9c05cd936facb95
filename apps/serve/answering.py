"""Answers on the side of the event loop: after every pass what it brought for one request, as one event each.

Leaving the `async with` block ends what is not finished before the next pass: that is all that a client's
disconnect, a time limit or an error has to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from edge.apps.serve.errors import ApiError, too_late
from edge.apps.serve.metrics import Metrics
from edge.engine.completion import Chunk, Completion
from edge.engine.driver import Driver, NeverBegunError, Work
from edge.text.reply import ReplyParser, ReplyPart, joined

if TYPE_CHECKING:
    from edge.apps.serve.state import Note

KEEP_ALIVE_SECONDS = 10.0
"""After so long without an event there is an empty list, so that a stream can show that it is alive."""

_MOST_GAPS = 64  # a gap alone takes the metrics ten times as long as one of many


@dataclass(frozen=True)
class Piece:
    """What a pass brought for one answer. parts: empty without a parser."""

    choice: int
    chunks: Sequence[Chunk]
    parts: Sequence[ReplyPart]

    @property
    def text(self) -> str:
        """Of all chunks."""
        return "".join(chunk.text for chunk in self.chunks)


@dataclass(frozen=True)
class End:
    """An answer has ended. parts: the last ones."""

    choice: int
    completion: Completion
    parts: Sequence[ReplyPart]


Event = Piece | End


class Answers:
    """The answers to one request: iterate for lists of events, each of what came since the last one."""

    def __init__(
        self,
        driver: Driver,
        works: Sequence[Work],
        parsers: Sequence[ReplyParser] | None,
        started: float,
        metrics: Metrics,
        time_limit: float,
        note: Note,
        remember: Callable[[Sequence[int], Completion], Any],
    ) -> None:
        """parsers: one for each of `works`, None to leave the texts as they are. started: when the request
        came, of `perf_counter`. remember: gets the prompt and the completion of each answer with a parser.
        Raises as `Driver.submit` does.
        """
        self._loop = asyncio.get_running_loop()
        self._works, self._parsers, self._remember = works, parsers, remember
        self._started, self._metrics, self._note = started, metrics, note
        self._time_limit, self._is_late = time_limit, False
        self._events: list[Event] = []
        self._error: Exception | None = None
        self._left = len(works)
        self._last: list[float | None] = [None] * len(works)  # when each had its last token
        self._gaps: list[float] = []  # seconds between tokens that the metrics do not have yet
        self._waiter: asyncio.Future[None] | None = None
        self._heard = self._loop.time()
        self._handle = driver.submit(works, self._on_chunks, self._on_done)
        self._ticking = self._loop.call_later(KEEP_ALIVE_SECONDS, self._tick)
        self._ending = self._loop.call_later(
            max(0.0, time_limit - (perf_counter() - started)), self._time_is_up
        )

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._handle.cancel()
        self._ticking.cancel()
        self._ending.cancel()

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> list[Event]:
        """The events since the last call, an empty list if there were none for some seconds.

        Raises what ended an answer before its time, ApiError if that was the time limit or the server's end.
        """
        if not self._events and self._error is None:
            if self._left == 0:
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._events:
            events, self._events = self._events, []
            return events
        if self._error is not None:
            raise self._error
        return []

    async def completions(self) -> list[End]:
        """All ends, in the order of the choices, when they are there; their parts are all parts."""
        parts: list[list[ReplyPart]] = [[] for _ in self._last]
        ends: dict[int, Completion] = {}
        async for events in self:
            for each in events:
                parts[each.choice] += each.parts
                if isinstance(each, End):
                    ends[each.choice] = each.completion
        return [End(choice, ends[choice], parts[choice]) for choice in range(len(parts))]

    # ---- Called by the driver, in the loop's thread --------------------------------------------------------

    def _on_chunks(self, choice: int, chunks: list[Chunk]) -> None:
        now = perf_counter()
        before, self._last[choice] = self._last[choice], now
        if before is None:
            self._metrics.first_token.observe(now - self._started)
        else:
            self._gaps.append(now - before)
            if len(self._gaps) >= _MOST_GAPS:
                self._count_gaps()
        try:
            parser = None if self._parsers is None else self._parsers[choice]
            if parser is not None:
                chunks = [
                    Chunk(each.text, each.token, each.logprob, each.top, tuple(parser.push(each.text)))
                    for each in chunks
                ]
            parts = [] if parser is None else joined(part for chunk in chunks for part in chunk.parts)
        except Exception as error:  # it belongs to this request, and not to the loop
            self._fail(error)
        else:
            self._add(Piece(choice, chunks, parts))

    def _on_done(self, choice: int, outcome: Completion | Exception) -> None:
        self._left -= 1
        self._count_gaps()
        if isinstance(outcome, Exception):
            self._fail(self._reason() if isinstance(outcome, NeverBegunError) else outcome)
            return
        self._note.completion_tokens = (self._note.completion_tokens or 0) + len(outcome.tokens)
        self._note.prompt_tokens = outcome.prompt_tokens
        if choice == 0:
            self._note.cached_tokens = outcome.reused_tokens
        self._note.ended.append(outcome.stop_reason)
        self._metrics.ended(outcome)
        if outcome.stop_reason == "cancelled":
            self._fail(self._reason())
            return
        if self._parsers is not None:
            self._remember(self._works[choice].prompt, outcome)
        try:
            parts = [] if self._parsers is None else self._parsers[choice].finish()
        except Exception as error:
            self._fail(error)
        else:
            self._add(End(choice, outcome, parts))

    def _count_gaps(self) -> None:
        for gap in self._gaps:
            self._metrics.next_token.observe(gap)
        self._gaps.clear()

    def _reason(self) -> ApiError:
        if self._is_late:
            return too_late(self._time_limit)
        return ApiError(503, "The server is shutting down.", "server_error", code="shutting_down")

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._handle.cancel()
        self._wake()

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        self._heard = self._loop.time()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tick(self) -> None:
        if self._loop.time() - self._heard >= KEEP_ALIVE_SECONDS / 2:
            self._wake()
        self._ticking = self._loop.call_later(KEEP_ALIVE_SECONDS, self._tick)

    def _time_is_up(self) -> None:
        self._is_late = True
        self._handle.cancel()
