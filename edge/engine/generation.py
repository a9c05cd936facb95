"""From a prompt to an answer: in one go, chunk by chunk, or in the background of an event loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Collection, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from edge.engine.answer import Answer
from edge.engine.completion import Chunk, Completion
from edge.engine.constraints.constraint import Constraint
from edge.engine.session import Session
from edge.engine.settings import GenerationSettings
from edge.errors import EdgeError
from edge.system.guards import OneThread
from edge.text.tokenizer.base import Tokenizer

_T = TypeVar("_T")


def generate(
    session: Session,
    prompt: Sequence[int],
    settings: GenerationSettings,
    tokenizer: Tokenizer,
    cancelled: Callable[[], bool] = lambda: False,
    ended: Callable[[Completion], None] = lambda done: None,
    continues: bool = False,
    constraint: Constraint | None = None,
    visible: Collection[int] = (),
) -> Generator[Chunk, None, Completion]:
    """Answer `prompt`, yielding chunks and returning the Completion.

    The prompt is what the session's cache shall hold before the answer; shared tokens are not computed again.
    Answers of other sessions with the same scheduler go through the executor together with this one.
    `cancelled` is asked before every call of the executor. `ended` gets the Completion too, and gets what
    there is of it when an interrupt (KeyboardInterrupt) or `close` ends the generator in its middle; an error
    is no end. continues: the text goes on with the prompt's, so that a leading space stays. constraint: which
    tokens it may consist of. visible: control tokens that belong to its text. Raises ContextError if the
    prompt does not fit.
    """
    answer = Answer(session, prompt, settings, tokenizer, cancelled, continues, constraint, visible)
    try:
        yield from answer.chunks()
        if left := answer.flush():
            yield Chunk(left)
    except (KeyboardInterrupt, GeneratorExit):
        answer.flush()
        ended(answer.completion())
        raise
    done = answer.completion()
    ended(done)
    return done


class Stream:
    """An answer in the making: iterate over it for its chunks, or read `result`, or `await` the same.

    The work is done in the thread that iterates, for `async for` and `await` in a worker thread. `cancel` may
    be called from any thread; everything else belongs to one at a time. Leaving a `with` block, or `close`,
    cancels what is not finished. A task that is cancelled while it waits cancels the answer too, and ends
    after the step that is running.
    """

    def __init__(
        self,
        start: Callable[
            [Callable[[], bool], Callable[[Completion], None]], Generator[Chunk, None, Completion]
        ],
    ) -> None:
        """start: makes the generator, given the function that tells whether to cancel, and the one to call
        with the Completion (see `generate`).
        """
        self._cancel = threading.Event()
        self._alone = OneThread("answer")
        self._owner = threading.current_thread()
        self._ends: list[Completion] = []
        # Nothing in the generator knows this object: who lets go of it ends the answer at once.
        self._chunks = start(self._cancel.is_set, self._ends.append)
        self._begun = False
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._owner = threading.current_thread()
        chunk = self._next()
        if chunk is None:
            raise StopIteration
        return chunk

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await self._in_worker(self._next)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._in_worker(lambda: self.result).__await__()

    def cancel(self) -> None:
        """Ask the answer to end before the next call of the executor; it then has stop reason `cancelled`."""
        self._cancel.set()

    def close(self) -> None:
        """Cancel, and wait until the answer has ended. What it has so far is its `result`."""
        self.cancel()
        while self._next() is not None:
            pass

    def give_way(self) -> None:
        """End, because its session is wanted; EdgeError if it still belongs to another thread.

        Does nothing inside of this answer, which uses the session itself.
        """
        if self._is_over or self._alone.entered:
            return
        mine = self._owner is threading.current_thread() or not self._owner.is_alive()
        if not mine and not self._cancel.is_set():
            raise EdgeError(
                "Another thread has an unfinished answer here: wait for it, or cancel it (Stream.cancel), or "
                "make a chat or session for each thread."
            )
        self.close()

    @property
    def result(self) -> Completion:
        """The finished answer. If no chunk was taken yet, all of it is computed now; if some were, it ends
        with those (stop reason `cancelled`). Raises what made the answer fail, if it did.
        """
        try:
            if self._begun:
                self.close()
            while self._next() is not None:
                pass
        except KeyboardInterrupt:
            self.close()  # so that what there is of the answer is kept
            raise
        if not self._ends:
            raise self._error or EdgeError("The answer was never finished.")
        return self._ends[0]

    @property
    def _is_over(self) -> bool:
        return bool(self._ends) or self._error is not None

    def _next(self) -> Chunk | None:
        """The next chunk; None after the last."""
        with self._alone:
            if self._is_over:
                return None
            self._begun = True
            try:
                return next(self._chunks, None)
            except BaseException as error:
                self._error = error
                self._chunks.close()  # an interrupt may have come from outside of it
                raise

    async def _in_worker(self, call: Callable[[], _T]) -> _T:
        """Run `call` in a worker thread; a task that is cancelled cancels the answer, and waits for it."""
        import asyncio  # takes as long to import as the rest of a chat

        self._owner = threading.current_thread()
        work = asyncio.get_running_loop().run_in_executor(None, call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self.cancel()
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            work.exception()  # nobody else asks for it
            self.close()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._in_worker(self.close)
