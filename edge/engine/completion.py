"""What readers get of an answer: its pieces, and in the end all of it with what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge.engine.speculative.sequence import SpeculationStatistics
from edge.executors.sampling import Sampled
from edge.text.messages import ToolCall
from edge.text.reply import ReplyPart, why_empty

StopReason = Literal["eos", "stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: one for every token, and one for text that was left when the answer ended.

    text: may be empty, while characters or possible stop strings are incomplete. token: None for left text.
    logprob, top: as in `Sampled`. parts: what became certain of the reply with it, where that is read
    (`edge.text.reply`).
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    parts: tuple[ReplyPart, ...] = ()


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
    asked for. speculation: what guesses did for it, None without any. is_complete: False where the answer was
    to have a form (a `Constraint`) and ended in its middle. stop_string: the one that ended it, with
    `eos` a control token. reasoning, content, calls: what the text says as a reply, thinking and calls taken
    out of the content; None and nothing where it is not read as one (`edge.engine.request`).
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
    speculation: SpeculationStatistics | None = None
    is_complete: bool = True
    stop_string: str | None = None
    reasoning: str | None = None
    content: str | None = None
    calls: tuple[ToolCall, ...] = ()

    @property
    def note(self) -> str | None:
        """Why there is nothing to read, if there is nothing."""
        if self.calls or (self.text if self.content is None else self.content):
            return None
        return why_empty(bool(self.reasoning), self.stop_reason)
