"""From a prompt to an answer: the decode loop, stop strings, streaming, cancellation and its figures."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, TypeVar

from edge.engine.sampling import Sampled, Sampler
from edge.engine.session import Session
from edge.engine.settings import GenerationSettings
from edge.errors import EdgeError
from edge.system.guards import OneThread
from edge.text.end_tokens import named_token
from edge.text.tokenizer.base import Tokenizer

_T = TypeVar("_T")

StopReason = Literal["eos", "stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: one for every token, and one for text that was left when the answer ended.

    text: may be empty, while characters or possible stop strings are incomplete. token: None for left text.
    logprob, top: as in `Sampled`.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A finished answer and what it cost.

    text: without the stop string. tokens: the answer's ids, without the end-of-sequence token but with those
    of a stop string. prompt_tokens: length of the prompt, of which reused_tokens were in the cache already.
    ttft_seconds: from the start of prefill to the first token, None if there was none.
    prefill_tokens_per_second: computed prompt tokens over the time of prefill. tokens_per_second: tokens
    after the first over the time that they took, without the consumer's own. Both 0 if not measurable.
    stop_reason: `eos` (an end token), `stop` (a stop string), `length` (max_new_tokens), `context` (the
    window is full) or `cancelled`. seed: what repeats this answer. logprobs: one entry per token, None if not
    asked for.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    reused_tokens: int
    ttft_seconds: float | None
    prefill_tokens_per_second: float
    tokens_per_second: float
    stop_reason: StopReason
    seed: int
    logprobs: tuple[Sampled, ...] | None = None


class StopMatcher:
    """Cuts a growing text at the first stop string, holding back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take more text; returns what is certain to lie before any stop string."""
        if self.stopped:
            return ""
        self._held += text
        # The one that is complete first counts, so that the pieces in which text arrives make no difference.
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            ready, self._held = self._held[: min(found)[1]], ""
            return ready
        keep = max((self._overlap(s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def flush(self) -> str:
        """The text that was held back: no stop string came of it."""
        ready, self._held = self._held, ""
        return ready

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def generate(
    session: Session,
    prompt: Sequence[int],
    settings: GenerationSettings,
    tokenizer: Tokenizer,
    cancelled: Callable[[], bool] = lambda: False,
    ended: Callable[[Completion], None] = lambda done: None,
    continues: bool = False,
) -> Generator[Chunk, None, Completion]:
    """Answer `prompt`, yielding chunks and returning the Completion.

    The prompt is what the session's cache shall hold before the answer; shared tokens are not computed again.
    `cancelled` is asked before every call of the executor. `ended` gets the Completion too, and gets what
    there is of it when an interrupt (KeyboardInterrupt) or `close` ends the generator in its middle; an error
    is no end. continues: the text goes on with the prompt's, so that a leading space stays. Raises
    ContextError if the prompt does not fit.
    """
    answer = _Answer(session, prompt, settings, tokenizer, continues)
    try:
        yield from answer.decode(cancelled)
        if left := answer.flush():
            yield Chunk(left)
    except (KeyboardInterrupt, GeneratorExit):
        answer.flush()
        ended(answer.completion())
        raise
    done = answer.completion()
    ended(done)
    return done


class _Answer:
    """The state of `generate`: what there is of an answer, and what it cost so far."""

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        settings: GenerationSettings,
        tokenizer: Tokenizer,
        continues: bool,
    ) -> None:
        self._session, self._prompt, self._settings = session, prompt, settings
        self._sampler = Sampler(settings.sampling)
        self._ends = answer_ends(settings, tokenizer)
        self._decoder, self._matcher = tokenizer.stream(continues=continues), StopMatcher(settings.stop)
        self._steps: list[tuple[Sampled, str]] = []  # tokens with the text that became certain with them
        self._left = ""
        self._reason: StopReason = "cancelled"
        self._ttft: float | None = None
        self._prefill = self._decoding = 0.0  # seconds
        self._reused_before, self._computed_before = session.reused_tokens, session.computed_tokens
        self._reused = self._computed = 0

    def decode(self, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        session, settings = self._session, self._settings
        # A repetition penalty counts the prompt too, see SamplingParams.
        counted_from = 0 if settings.sampling.repetition_penalty != 1 else len(self._prompt)
        since = perf_counter()
        logits = session.prefill(self._prompt, cancelled)
        self._prefill = perf_counter() - since
        self._reused = session.reused_tokens - self._reused_before
        self._computed = session.computed_tokens - self._computed_before
        while logits is not None:
            choice = self._sampler.sample(logits, session.tokens[counted_from:])
            if self._ttft is None:
                self._ttft = perf_counter() - since
            else:
                self._decoding += perf_counter() - since
            if choice.token in self._ends:
                self._reason = "eos"
                return
            text = self._matcher.push(self._decoder.push(choice.token))
            self._steps.append((choice, text))
            yield Chunk(text, choice.token, choice.logprob, choice.top)
            since = perf_counter()
            if self._matcher.stopped:
                self._reason = "stop"
            elif len(self._steps) == settings.max_new_tokens:
                self._reason = "length"
            elif session.length >= session.context:
                self._reason = "context"
            elif not cancelled():
                logits = session.step(choice.token)
                continue
            return

    def flush(self) -> str:
        """The text that was held back."""
        self._left += self._matcher.push(self._decoder.flush()) + self._matcher.flush()
        return self._left

    def completion(self) -> Completion:
        steps = len(self._steps) - (self._reason != "eos")  # the end token took a step as well
        sampled = tuple(choice for choice, _ in self._steps)
        return Completion(
            text="".join(text for _, text in self._steps) + self._left,
            tokens=tuple(choice.token for choice in sampled),
            prompt_tokens=len(self._prompt),
            reused_tokens=self._reused,
            ttft_seconds=self._ttft,
            prefill_tokens_per_second=self._computed / self._prefill if self._prefill > 0 else 0.0,
            tokens_per_second=steps / self._decoding if steps > 0 and self._decoding > 0 else 0.0,
            stop_reason=self._reason,
            seed=self._sampler.seed,
            logprobs=sampled if self._settings.sampling.logprobs is not None else None,
        )


def answer_ends(settings: GenerationSettings, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an answer with these settings; TokenizerError for one that the model does not have.

    A stop string that is a control token is one of them: such a token has no text in an answer.
    """
    stops = {tokenizer.special_tokens[text] for text in settings.stop if text in tokenizer.special_tokens}
    if settings.ignore_eos:
        return frozenset(stops)
    instead = settings.eos_token_ids
    own = tokenizer.eos_ids if instead is None else [named_token(tokenizer, str(token)) for token in instead]
    return frozenset({*own, *stops, *(named_token(tokenizer, token) for token in settings.eos)})


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
