"""What all routes of a server share: the model, its driver, and what is counted and logged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, TypeVar

from edge import __version__
from edge.apps.serve.answering import Answers
from edge.apps.serve.errors import ApiError, too_late
from edge.apps.serve.json_in import Fields
from edge.apps.serve.logs import Log
from edge.apps.serve.metrics import Metrics
from edge.apps.serve.options import ServeOptions
from edge.apps.serve.responses.store import ResponseStore
from edge.apps.serve.workers import Workers
from edge.engine.driver import BusyError, Call, Driver, Work
from edge.engine.request import Prepared, Request
from edge.engine.saver import Saver
from edge.runtime import Model
from edge.text.reply import ReplyParser

_T = TypeVar("_T")
_WORKERS = 2  # threads that render templates and encode texts
_LEAST_SECONDS = 0.2  # for each, whatever the others took
_LAST_SECONDS = 30.0  # in which all threads have to end, a file that is being written included


@dataclass
class Note:
    """What the log shall say of a request beside its path and status."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    ended: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """A request to a route. number: its id in logs and answers, hexadecimal. fields: of its body."""

    number: str
    fields: Fields
    note: Note
    started: float


def public_name(model: Model) -> str:
    """What clients call a model: the name it was opened by, of a path the last part."""
    path = Path(model.name)
    return path.name if path.is_absolute() or path.exists() else model.name


class Served:
    """A model that is served."""

    def __init__(self, model: Model, options: ServeOptions, log: Log | None = None) -> None:
        self.model, self.options = model, options
        self.log = log or Log(options.log_prompts)
        self.name = public_name(model)
        self.listed_names = tuple(dict.fromkeys((self.name, *options.alias)))
        self.names = (*self.listed_names, model.name)
        self.created = int(time.time())
        self.fingerprint = f"edge-{__version__}-{model.files.content_hash[:8]}"
        self.is_draining = False
        _ = model.most_characters  # fetches all tokens: later an answer might wait while a prompt is encoded
        self.responses = ResponseStore()
        self._workers = Workers(_WORKERS, "edge-prepare")
        self._calls: set[Future[Any]] = set()  # until their threads are done with them
        self._loop: asyncio.AbstractEventLoop | None = None
        prefixes = model.scheduler.prefixes
        self._saver = None if prefixes is None else Saver(prefixes)
        self.driver = Driver(
            model.session,
            model.tokenizer,
            parallel=options.parallel,
            queue=options.queue,
            hand_over=self._hand_over,
            ended=lambda: None if self._saver is None else self._saver.tell(),
            rest_after=options.rest_after or None,
        )
        self.metrics = Metrics(
            self.name, lambda: self.driver.load, lambda: None if prefixes is None else prefixes.statistics
        )

    def check_model(self, fields: Fields, *, required: bool = False) -> None:
        """Raise ApiError for a body that names another model, or none where OpenAI's API wants a name."""
        wanted = fields.required_text("model") if required else fields.text("model")
        if wanted is not None and wanted not in self.names:
            known = " or ".join(map(repr, self.listed_names))
            raise ApiError(
                404,
                f"The model {wanted[:100]!r} is not served here: ask for {known}.",
                param="model",
                code="model_not_found",
            )

    def log_prompt(self, number: str, fields: Fields) -> None:
        """What was asked, if that may be written."""
        if self.log.prompts:
            self.log.write("prompt", id=number, body=fields.values)

    async def call(self, started: float, function: Callable[..., _T], *values: object) -> _T:
        """Run what takes milliseconds or more in a thread.

        started: when the request came, of `perf_counter`. Raises BusyError if more calls are under way
        than requests may be, ApiError if the request's time is up first.
        """
        if len(self._calls) >= _WORKERS + self.options.parallel + self.options.queue:
            raise BusyError(f"{len(self._calls)} requests are being read already: ask again later.")
        call = self._workers.submit(function, *values)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        limit = self.options.time_limit
        try:
            left = max(0.0, limit - (perf_counter() - started))
            return await asyncio.wait_for(asyncio.wrap_future(call), left)
        except asyncio.TimeoutError:
            raise too_late(limit) from None

    async def prepare(self, asked: Asked, request: Request) -> Prepared:
        """See `Model.prepare`; raises as `call` does."""
        return await self.call(asked.started, self.model.prepare, request)

    def answers(
        self, asked: Asked, works: Sequence[Work], parsers: Sequence[ReplyParser] | None = None
    ) -> Answers:
        """Ask the driver; to be used in an `async with` block. Raises as `Driver.submit` does."""
        self._loop = asyncio.get_running_loop()
        return Answers(
            self.driver,
            works,
            parsers,
            asked.started,
            self.metrics,
            self.options.time_limit,
            asked.note,
            self.model.remember_answer,
        )

    def close(self, patience: float = _LAST_SECONDS) -> None:
        """End what is left of answers, and the threads.

        patience: seconds for all of that. What hangs beyond them is named in the log, and ends with the
        process.
        """
        end = monotonic() + patience

        def left() -> float:
            return max(_LEAST_SECONDS, end - monotonic())

        hanging = [] if self.driver.close(patience=left()) else ["answers"]
        if self._saver is not None and not self._saver.close(left()):
            hanging.append("files of prefixes")
        if not self._workers.close(left()):
            hanging.append("requests that are read")
        if hanging:
            self.log.write("hanging", what=hanging, seconds=patience)

    def _hand_over(self, calls: list[Call]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_call_all, calls)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return


def _call_all(calls: list[Call]) -> None:
    for call in calls:
        call()


def works_of(prepared: Prepared, choices: int) -> list[Work]:
    """What the driver shall do for a prepared request."""
    return [
        Work(prepared.prompt, prepared.settings, prepared.constraint, prepared.visible, choice)
        for choice in range(choices)
    ]
