"""From logits to a token on the host: what every executor does whose logits are in its memory.

Filters apply in this order: allowed tokens, logit bias, penalties, temperature, top-k, typical, top-p,
min-p; then one token is drawn. Ties go to the lower token id.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.executors.native.library import Draw, SampleResult, Sampling

_EMPTY = np.empty(0, np.int32)


@dataclass(frozen=True)
class Sampled:
    """A chosen token.

    logprob: its natural log-probability under the model's own distribution (temperature 1, no filters), or
    None if not asked for. top: the most likely tokens with theirs, best first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class DrawOptions:
    """How the tokens of one answer are drawn; the filters are those of `edge.engine.settings.SamplingParams`.

    seed, choice: with the index of a token they decide its random number. choice: which of several answers
    to the same prompt. logprobs: None for none, 0 for the chosen token's, n for the n best as well. Its
    draws are for one thread at a time.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias_tokens: npt.NDArray[np.int32] = field(default_factory=lambda: _EMPTY)
    bias_values: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    seed: int = 0
    choice: int = 0
    logprobs: int | None = None

    @cached_property
    def native(self) -> tuple[Sampling, Draw, SampleResult]:
        """The same as libedge takes it, and the place of its answer."""
        from edge.executors.native.library import Draw, SampleResult, Sampling

        sampling = Sampling(
            size=ctypes.sizeof(Sampling),
            temperature=self.temperature,
            top_k=min(self.top_k, 2**31 - 1),
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logprobs=self.logprobs or 0,
        )
        draw = Draw(
            size=ctypes.sizeof(Draw),
            bias_tokens=self.bias_tokens.ctypes.data,
            bias_values=self.bias_values.ctypes.data,
            bias_count=self.bias_tokens.size,
            seed=self.seed % 2**64,
            choice=self.choice,
            want_logprob=self.logprobs is not None,
        )
        return sampling, draw, SampleResult()


class HostSampling:
    """`Executor.sample` for logits that are NumPy arrays."""

    def sample(
        self,
        logits: npt.NDArray[np.float32],
        options: DrawOptions,
        history: Sequence[int] | npt.NDArray[np.int32] = (),
        *,
        index: int = 0,
        allowed: npt.NDArray[np.uint32] | None = None,
    ) -> Sampled:
        """See `edge.executors.protocol.Executor.sample`."""
        from edge.executors.native.library import check, library  # only what draws needs it

        seen = np.ascontiguousarray(history, np.int32) if len(history) else _EMPTY
        plain = np.ascontiguousarray(logits, np.float32)
        if plain.ndim != 1:
            raise EdgeError(f"A sampler takes the logits of one token, got an array of shape {plain.shape}.")
        mask = None if allowed is None else _mask(allowed, plain.size)
        sampling, draw, result = options.native
        draw.logits, draw.vocab_size = plain.ctypes.data, plain.size
        draw.history, draw.history_length = seen.ctypes.data if seen.size else None, seen.size
        draw.allowed = None if mask is None else mask.ctypes.data
        draw.index = index
        check(library().edge_sample(sampling, draw, result))
        if options.logprobs is None:
            return Sampled(result.token)
        count = min(options.logprobs, plain.size)
        top = zip(result.top_tokens[:count], result.top_logprobs[:count], strict=True)
        return Sampled(
            result.token, result.logprob, tuple((token, value) for token, value in top if token >= 0)
        )


def _mask(allowed: npt.NDArray[np.uint32], tokens: int) -> npt.NDArray[np.uint32]:
    """The same in one piece; EdgeError for one of another size or type."""
    words = -(-tokens // 32)
    if allowed.dtype != np.uint32 or allowed.shape != (words,):
        raise EdgeError(
            f"A token mask for {tokens} tokens is uint32 [{words}], got {allowed.dtype} "
            f"{list(allowed.shape)}."
        )
    return np.ascontiguousarray(allowed)
