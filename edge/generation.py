"""From a prompt to an answer: the decode loop, stop strings, streaming, cancellation and the figures of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from edge.sampling import Sampled, Sampler
from edge.session import Session
from edge.settings import GenerationSettings
from edge.tokenizer.base import Tokenizer

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

    text: without the stop string. tokens: the answer's ids, without the end-of-sequence token but with those of
    a stop string. prompt_tokens: length of the prompt, of which reused_tokens were in the cache already.
    ttft_seconds: from the start of prefill to the first token, None if there was none.
    prefill_tokens_per_second: computed prompt tokens over the time of prefill. tokens_per_second: tokens after
    the first over the time that they took; the consumer's own time is not counted. Both 0 if not measurable.
    stop_reason: `eos` (an end token), `stop` (a stop string), `length` (max_new_tokens), `context` (the window
    is full) or `cancelled`. logprobs: one entry per token, None if not asked for.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    reused_tokens: int
    ttft_seconds: float | None
    prefill_tokens_per_second: float
    tokens_per_second: float
    stop_reason: StopReason
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
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            ready, self._held = self._held[: min(found)], ""
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


class _Clock:
    """Adds up the time between resume() and pause()."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = perf_counter()

    def pause(self) -> None:
        self.seconds += perf_counter() - self._since

    def resume(self) -> None:
        self._since = perf_counter()


def generate(
    session: Session,
    prompt: Sequence[int],
    settings: GenerationSettings,
    tokenizer: Tokenizer,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Chunk, None, Completion]:
    """Answer `prompt`, yielding chunks and returning the Completion.

    The prompt is what the session's cache shall hold before the answer; shared tokens are not computed again.
    `cancelled` is asked before every call of the executor. Raises ContextError if the prompt does not fit.
    """
    sampler = Sampler(settings.sampling)
    eos = tokenizer.eos_ids if settings.eos_token_ids is None else settings.eos_token_ids
    ends = frozenset() if settings.ignore_eos else frozenset(eos)
    decoder, matcher = tokenizer.stream(), StopMatcher(settings.stop)
    count_prompt = settings.sampling.repetition_penalty != 1
    tokens: list[int] = []
    sampled: list[Sampled] = []
    pieces: list[str] = []
    ttft = prefill_seconds = None
    reused_before, computed_before = session.reused_tokens, session.computed_tokens

    clock = _Clock()
    logits = session.prefill(prompt, cancelled)
    reused = session.reused_tokens - reused_before
    computed = session.computed_tokens - computed_before
    prefill_seconds = perf_counter() - clock._since
    reason: StopReason = "cancelled"
    while logits is not None:
        history = session.tokens if count_prompt else session.tokens[len(prompt) :]
        choice = sampler.sample(logits, history)
        if ttft is None:
            ttft = perf_counter() - clock._since
            clock = _Clock()
        if choice.token in ends:
            reason = "eos"
            break
        tokens.append(choice.token)
        sampled.append(choice)
        text = matcher.push(decoder.push(choice.token))
        pieces.append(text)
        clock.pause()
        yield Chunk(text, choice.token, choice.logprob, choice.top)
        clock.resume()
        if matcher.stopped:
            reason = "stop"
            break
        if len(tokens) == settings.max_new_tokens:
            reason = "length"
            break
        if session.length >= session.context:
            reason = "context"
            break
        if cancelled():
            break
        logits = session.step(choice.token)
    clock.pause()
    left = matcher.push(decoder.flush()) + matcher.flush()
    if left:
        pieces.append(left)
        yield Chunk(left)
    steps = len(tokens) - (reason != "eos")
    return Completion(
        text="".join(pieces),
        tokens=tuple(tokens),
        prompt_tokens=len(prompt),
        reused_tokens=reused,
        ttft_seconds=ttft,
        prefill_tokens_per_second=computed / prefill_seconds if prefill_seconds > 0 else 0.0,
        tokens_per_second=steps / clock.seconds if steps > 0 and clock.seconds > 0 else 0.0,
        stop_reason=reason,
        logprobs=tuple(sampled) if settings.sampling.logprobs is not None else None,
    )
