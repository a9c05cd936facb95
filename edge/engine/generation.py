"""From a prompt to an answer: the decode loop, stop strings, streaming, cancellation and its figures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from edge.engine.sampling import Sampled, Sampler
from edge.engine.session import Session
from edge.engine.settings import GenerationSettings
from edge.errors import EdgeError
from edge.text.end_tokens import named_token
from edge.text.tokenizer.base import Tokenizer

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
    continues: bool = False,
) -> Generator[Chunk, None, Completion]:
    """Answer `prompt`, yielding chunks and returning the Completion.

    The prompt is what the session's cache shall hold before the answer; shared tokens are not computed again.
    `cancelled` is asked before every call of the executor. continues: the text goes on with the prompt's, so
    that a leading space stays. Raises ContextError if the prompt does not fit.
    """
    sampler = Sampler(settings.sampling)
    ends = answer_ends(settings, tokenizer)
    decoder, matcher = tokenizer.stream(continues=continues), StopMatcher(settings.stop)
    # A repetition penalty counts the prompt too, see SamplingParams.
    counted_from = 0 if settings.sampling.repetition_penalty != 1 else len(prompt)
    sampled: list[Sampled] = []
    pieces: list[str] = []
    ttft: float | None = None
    decoding = 0.0  # seconds
    reused, computed = session.reused_tokens, session.computed_tokens

    since = perf_counter()
    logits = session.prefill(prompt, cancelled)
    prefill = perf_counter() - since
    reused, computed = session.reused_tokens - reused, session.computed_tokens - computed
    reason: StopReason = "cancelled"
    while logits is not None:
        choice = sampler.sample(logits, session.tokens[counted_from:])
        if ttft is None:
            ttft = perf_counter() - since
        else:
            decoding += perf_counter() - since
        if choice.token in ends:
            reason = "eos"
            break
        sampled.append(choice)
        pieces.append(matcher.push(decoder.push(choice.token)))
        yield Chunk(pieces[-1], choice.token, choice.logprob, choice.top)
        since = perf_counter()
        if matcher.stopped:
            reason = "stop"
            break
        if len(sampled) == settings.max_new_tokens:
            reason = "length"
            break
        if session.length >= session.context:
            reason = "context"
            break
        if cancelled():
            break
        logits = session.step(choice.token)
    left = matcher.push(decoder.flush()) + matcher.flush()
    if left:
        pieces.append(left)
        yield Chunk(left)
    steps = len(sampled) - (reason != "eos")  # the end token took a step as well
    return Completion(
        text="".join(pieces),
        tokens=tuple(choice.token for choice in sampled),
        prompt_tokens=len(prompt),
        reused_tokens=reused,
        ttft_seconds=ttft,
        prefill_tokens_per_second=computed / prefill if prefill > 0 else 0.0,
        tokens_per_second=steps / decoding if steps > 0 and decoding > 0 else 0.0,
        stop_reason=reason,
        seed=sampler.seed,
        logprobs=tuple(sampled) if settings.sampling.logprobs is not None else None,
    )


def answer_ends(settings: GenerationSettings, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an answer with these settings; TokenizerError for one that the model does not have.

    A stop string that is a control token is one of them: such a token has no text in an answer.
    """
    stops = {tokenizer.special_tokens[text] for text in settings.stop if text in tokenizer.special_tokens}
    if settings.ignore_eos:
        return frozenset(stops)
    own = tokenizer.eos_ids if settings.eos_token_ids is None else settings.eos_token_ids
    return frozenset({*own, *stops, *(named_token(tokenizer, token) for token in settings.eos)})


class Stream:
    """An answer in the making: iterate over it for its chunks, then read `result`.

    The work is done in the iterating thread; `cancel` may be called from any thread. Leaving a `with` block,
    or `close`, cancels what is not finished.
    """

    def __init__(self, start: Callable[[Callable[[], bool]], Generator[Chunk, None, Completion]]) -> None:
        """start: makes the generator, given the function that tells whether to cancel."""
        self._cancel = threading.Event()
        self._chunks = start(self._cancel.is_set)
        self._result: Completion | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        try:
            return next(self._chunks)
        except StopIteration as end:
            if end.value is not None:
                self._result = end.value
            raise StopIteration from None
        except BaseException as error:
            self._error = error
            raise

    def cancel(self) -> None:
        """Ask the answer to end before the next call of the executor; it then has stop reason `cancelled`."""
        self._cancel.set()

    def close(self) -> None:
        """Cancel, and wait until the answer has ended."""
        self.cancel()
        for _ in self:
            pass

    @property
    def result(self) -> Completion:
        """The finished answer; computes the rest of it first. Raises what made the answer fail, if it did."""
        for _ in self:
            pass
        if self._result is None:
            raise self._error or EdgeError("The answer was never finished.")
        return self._result

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
