"""One thread that runs the passes of a model for the answers of many readers, as a server has them.

A reader submits what it wants and is called back: after every pass with the chunks that it brought, at the
end with the Completion or with what went wrong. So many answers are made at once, so many requests wait for
their turn in the order in which they came, and more are refused. A request of many answers takes turns with
the others. A prompt whose beginning is in a file waits until that has been read, and the others go on. While
there is nothing to do, the thread sleeps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from edge.engine.answer import Answer
from edge.engine.answer_settings import check_settings
from edge.engine.completion import Chunk, Completion
from edge.engine.constraints.constraint import Constraint
from edge.engine.prefix_cache import Fetch
from edge.engine.prefix_tree import BLOCK
from edge.engine.session import Session
from edge.engine.settings import GenerationSettings
from edge.errors import ContextError, EdgeError
from edge.executors.checks import token_ids
from edge.text.tokenizer.base import Tokenizer

Call = Callable[[], Any]
OnChunks = Callable[[int, list[Chunk]], Any]
OnDone = Callable[[int, Completion | Exception], Any]

LAST_SECONDS = 10.0
"""What a pass or a callback may take when all has been told to end."""


class BusyError(EdgeError):
    """As many requests wait already as may."""


class ClosedError(EdgeError):
    """No more requests are taken: the driver has been closed, or is about to be."""


class NeverBegunError(EdgeError):
    """A request was cancelled before its turn came."""


def _free() -> Constraint | None:
    return None


@dataclass(frozen=True)
class Work:
    """One answer that is wanted.

    prompt: token ids; equal prompts of one request that are the same object are computed once. constraint:
    makes what the answer has to keep to. visible: control tokens that belong to its text. choice: which of
    several answers to the same prompt, see `Sampler`.
    continues: the text goes on with the prompt's, see `generate`.
    """

    prompt: Sequence[int]
    settings: GenerationSettings
    constraint: Callable[[], Constraint | None] = _free
    visible: Collection[int] = ()
    choice: int = 0
    continues: bool = False


class Handle:
    """A request under way."""

    def __init__(self, works: Sequence[Work], on_chunks: OnChunks, on_done: OnDone, wake: Call) -> None:
        """wake: called when it is cancelled."""
        self.works = tuple(works)
        self.on_chunks, self.on_done = on_chunks, on_done
        self._wake = wake
        self._cancelled = False

    def cancel(self) -> None:
        """End all its answers before the next pass, with what they have; may be called from any thread."""
        self._cancelled = True
        self._wake()

    def is_cancelled(self) -> bool:
        """Whether somebody did."""
        return self._cancelled


@dataclass(eq=False)
class _Waiting:
    """Answers of a request that have not begun. fetch: of the next one's prompt, while it takes the place of
    an answer that runs.
    """

    handle: Handle
    left: deque[int]
    fetch: Fetch | None = None


@dataclass(eq=False)
class _Running:
    handle: Handle
    index: int
    answer: Answer


@dataclass(frozen=True)
class DriverLoad:
    """running: answers that are made. waiting: requests of which none is."""

    running: int
    waiting: int


@dataclass
class _Batch:
    """Calls of readers after a pass."""

    calls: list[Call] = field(default_factory=list)

    def chunks(self, run: _Running, chunks: list[Chunk]) -> None:
        self.calls.append(lambda: run.handle.on_chunks(run.index, chunks))

    def done(self, handle: Handle, index: int, outcome: Completion | Exception) -> None:
        self.calls.append(lambda: handle.on_done(index, outcome))


def _at_once(calls: list[Call]) -> None:
    for call in calls:
        call()


class Driver:
    """Answers of one model. Its methods may be called from any thread, callbacks of its own included."""

    def __init__(
        self,
        new_session: Callable[[], Session],
        tokenizer: Tokenizer,
        *,
        parallel: int = 4,
        queue: int = 16,
        hand_over: Callable[[list[Call]], Any] = _at_once,
        ended: Call = lambda: None,
        rest_after: float | None = None,
    ) -> None:
        """parallel: answers that are made at once. queue: requests that may wait. rest_after: seconds
        without a request after which the executor gives memory back; None: it keeps all.

        hand_over: gets all calls of readers that a pass led to, together, to make them in their order; by
        default the driver's thread makes them. It must not raise. ended: called in the driver's thread after
        each answer, for what is quick.
        """
        self._new_session, self._tokenizer = new_session, tokenizer
        self._probe = new_session()  # never used: it knows the context and the scheduler
        self._scheduler = self._probe.scheduler
        self._parallel, self._queue = parallel, queue
        self._hand_over, self._ended = hand_over, ended
        self._rest_after = rest_after
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # the same lock, which is quicker taken by itself
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Running] = []
        self._closing = self._broken = False
        self._woken = False  # something has changed for those that wait
        self._has_memory = True  # for one more answer, as far as is known
        self._thread = threading.Thread(target=self._run, name="edge-driver", daemon=True)
        self._thread.start()

    @property
    def load(self) -> DriverLoad:
        """At this moment."""
        with self._lock:
            return DriverLoad(len(self._running), len(self._waiting))

    def submit(self, works: Sequence[Work], on_chunks: OnChunks, on_done: OnDone) -> Handle:
        """Ask for answers, which belong together as one request.

        on_chunks: called with the number of one of `works` and all its chunks of a pass. on_done: once for
        each of them, with the Completion, or with the error that ended it. Raises ContextError or EdgeError
        for a prompt or settings that can't be answered, BusyError if too many wait, ClosedError after `stop`
        or `close`.
        """
        for work in works:
            self._probe.check_prompt(work.prompt)
        for settings in {id(work.settings): work.settings for work in works}.values():
            check_settings(settings, self._tokenizer)
        handle = Handle(works, on_chunks, on_done, self._wake)
        with self._lock:
            if self._broken:
                raise ClosedError("No answers can be made any more after an error: start the server again.")
            if self._closing:
                raise ClosedError("The server is shutting down: ask again when it is back.")
            waiting, running = len(self._waiting), len(self._running)
            if running + waiting >= self._parallel + self._queue:
                raise BusyError(
                    f"{running} answers are being made and {waiting} requests wait already: ask again later."
                )
            self._waiting.append(_Waiting(handle, deque(range(len(works)))))
            self._wake()
        return handle

    def stop(self) -> None:
        """Take no more, and end all that runs and waits, as `Handle.cancel` does."""
        with self._lock:
            self._closing = True
            self._wake()
            for handle in (*(run.handle for run in self._running), *(each.handle for each in self._waiting)):
                handle.cancel()

    def close(self, deadline: float = 0.0, patience: float = LAST_SECONDS) -> bool:
        """Take no more, give what is there so many seconds to finish, and end the rest.

        patience: seconds in which that has to be done. Returns whether it was: a call that hangs, of a reader
        or of a constraint, is left to itself.
        """
        end = monotonic() + deadline
        with self._lock:
            self._closing = True
            self._wake()
            while (self._running or self._waiting) and (left := end - monotonic()) > 0:
                self._changed.wait(left)
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join(patience)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        with self._lock:
            self._woken = True
            self._changed.notify_all()

    # ---- The thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        batch = _Batch()
        try:
            while self._has_work():
                self._turn(batch)
                calls, batch = batch.calls, _Batch()
                if calls:
                    self._hand_over(calls)
        except BaseException:  # a mistake of ours: without this thread its readers would wait for ever
            self._end_all(batch)
            raise

    def _has_work(self) -> bool:
        """Sleeps until there is some; False when there will be none."""
        within = self._rest_after
        while True:
            with self._lock:
                while not (self._running or self._woken):
                    if self._closing and not self._waiting:
                        return False
                    if not self._changed.wait(within):
                        break
                else:
                    self._woken = False
                    return bool(self._waiting or self._running) or not self._closing
            self._scheduler.rest()  # without the lock: who asks now must not wait for it
            within = None

    def _turn(self, batch: _Batch) -> None:
        """One pass, and what it leads to."""
        self._begin_waiting(batch)
        failed: BaseException | None = None
        try:
            if self._running:
                self._scheduler.run_pass()
        except BaseException as error:  # of the executor, for all that had a part in the pass
            failed = error
        for run in list(self._running):
            self._take(run, batch, failed)

    def _end_all(self, batch: _Batch) -> None:
        """With an error, and take no more."""
        with self._lock:
            self._closing = self._broken = True
            running, waiting = list(self._running), list(self._waiting)
            self._running.clear()
            self._waiting.clear()
            self._changed.notify_all()
        ended = EdgeError("The answer was interrupted by an error: start the server again.")
        for run in running:
            with suppress(BaseException):
                run.answer.leave()
            batch.done(run.handle, run.index, ended)
        for each in waiting:
            _let_go(each)
            for index in each.left:
                batch.done(each.handle, index, ended)
        self._hand_over(batch.calls)

    def _begin_waiting(self, batch: _Batch) -> None:
        """Begin what there is room for, oldest first; what nobody wants any more leaves the queue."""
        with self._lock:
            waiting = list(self._waiting)
        for each in waiting:
            before = len(each.left)
            while each.left:
                if each.handle.is_cancelled():
                    _let_go(each)
                    never = NeverBegunError("The request was cancelled.")
                    batch.done(each.handle, each.left.popleft(), never)
                elif not self._has_place(each) or self._must_wait(each) or self._is_reading(each):
                    break
                else:
                    self._begin(each, batch)
                    _let_go(each)
            if len(each.left) < before:
                with self._lock:
                    self._waiting.remove(each)
                    if each.left:  # others come first now
                        self._waiting.append(each)
                    self._wake()  # a place may be free again

    def _has_place(self, each: _Waiting) -> bool:
        """Whether one more may run, those included whose prompts are read from files."""
        with self._lock:
            reading = sum(other.fetch is not None for other in self._waiting if other is not each)
        return len(self._running) + reading < self._parallel and self._has_memory

    def _is_reading(self, each: _Waiting) -> bool:
        """Whether the beginning of the next prompt is on its way from a file; begins with that."""
        prefixes = self._scheduler.prefixes
        if prefixes is None:
            return False
        while True:
            if each.fetch is None:
                prompt = token_ids(each.handle.works[each.left[0]].prompt)
                each.fetch = prefixes.fetch(prompt[:-1], self._wake)
            if each.fetch is None or each.fetch.is_there:
                return False
            if not each.fetch.is_over:
                return True
            _let_go(each)  # the file is damaged, or others needed the memory

    def _must_wait(self, each: _Waiting) -> bool:
        """Whether another answer is about to leave the same prompt in the prefix cache."""
        prompt = each.handle.works[each.left[0]].prompt
        return (
            self._scheduler.prefixes is not None
            and len(prompt) > BLOCK
            and any(
                run.handle is each.handle
                and each.handle.works[run.index].prompt is prompt
                and not run.answer.decodes
                for run in self._running
            )
        )

    def _begin(self, each: _Waiting, batch: _Batch) -> None:
        """The next answer of a request, unless there is no memory for it beside the others.

        To ask for memory empties the prefix cache: it is done again when one of the others has ended.
        """
        handle, index = each.handle, each.left[0]
        work = handle.works[index]
        try:
            answer = Answer(
                self._new_session(),
                work.prompt,
                work.settings,
                self._tokenizer,
                handle.is_cancelled,
                work.continues,
                work.constraint(),
                work.visible,
                choice=work.choice,
            )
            answer.begin()
        except ContextError as error:
            if self._running:
                self._has_memory = False
                return
            batch.done(handle, index, error)
        except BaseException as error:  # whatever it is, it belongs to this request
            batch.done(handle, index, _told(error))
        else:
            with self._lock:
                self._running.append(_Running(handle, index, answer))
        each.left.popleft()

    def _take(self, run: _Running, batch: _Batch, failed: BaseException | None) -> None:
        """Pass on what the pass has brought for one answer, and its end."""
        answer = run.answer
        if chunks := answer.take():
            batch.chunks(run, chunks)
        error = failed or answer.error
        if error is None and not answer.has_ended:
            return
        outcome: Completion | Exception
        try:
            answer.leave()
            if error is not None:
                raise error
            answer.finish()
            if left := answer.flush():
                batch.chunks(run, [Chunk(left)])
            outcome = answer.completion()
        except BaseException as problem:
            outcome = _told(problem)
        batch.done(run.handle, run.index, outcome)
        with self._lock:
            self._running.remove(run)
            self._has_memory = True
            self._wake()
        self._ended()


def _told(error: BaseException) -> Exception:
    """To readers, who expect no end of a thread or a panic of native code."""
    return error if isinstance(error, Exception) else EdgeError("The answer was interrupted.")


def _let_go(each: _Waiting) -> None:
    """The rows of its prompt need not stay in memory for it any more."""
    if each.fetch is not None:
        each.fetch.release()
        each.fetch = None
