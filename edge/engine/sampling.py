"""From logits to a token: the call into the native sampler. Its parameters are in `edge.engine.settings`.

Filters apply in this order: allowed tokens, logit bias, penalties, temperature, top-k, typical, top-p,
min-p; then one token is drawn. Ties go to the lower token id.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.engine.settings import SamplingParams
from edge.errors import EdgeError
from edge.executors.native.library import Draw, SampleResult, Sampling, check, library

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


class Sampler:
    """Draws the tokens of one answer; the same seed, index and logits give the same token. For one thread."""

    def __init__(self, params: SamplingParams, *, choice: int = 0) -> None:
        """choice: which of several answers to the same prompt; each has random numbers of its own."""
        self.params = params
        self.seed = random.SystemRandom().getrandbits(63) if params.seed is None else params.seed
        self._options = Sampling(
            size=ctypes.sizeof(Sampling),
            temperature=params.temperature,
            top_k=min(params.top_k, 2**31 - 1),
            top_p=params.top_p,
            min_p=params.min_p,
            typical_p=params.typical_p,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            logprobs=params.logprobs or 0,
        )
        self._bias_tokens = np.fromiter(params.logit_bias.keys(), np.int32, len(params.logit_bias))
        self._bias_values = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
        self._draw = Draw(
            size=ctypes.sizeof(Draw),
            bias_tokens=self._bias_tokens.ctypes.data,
            bias_values=self._bias_values.ctypes.data,
            bias_count=self._bias_tokens.size,
            seed=self.seed % 2**64,
            choice=choice,
            want_logprob=params.logprobs is not None,
        )
        self._result = SampleResult()
        self._sample = library().edge_sample

    def sample(
        self,
        logits: npt.NDArray[np.float32],
        history: Sequence[int] | npt.NDArray[np.int32] = (),
        *,
        index: int = 0,
        allowed: npt.NDArray[np.uint32] | None = None,
    ) -> Sampled:
        """The next token for `logits`, float32 [vocab_size], which stay unchanged.

        history: the tokens that penalties may count, oldest first. index: of the token in its answer; with
        the seed it decides the random number, so that a token is the same however those before it came
        about. allowed: uint32 [ceil(vocab_size / 32)], bit t % 32 of word t // 32 says whether token t may
        be drawn; None allows all. Raises NativeError for logits that are not finite and TokenizerError for
        an id outside the vocabulary.
        """
        params = self.params
        seen = _EMPTY
        if params.has_penalties and params.penalty_window != 0:
            last = history if params.penalty_window is None else history[-params.penalty_window :]
            seen = np.ascontiguousarray(last, np.int32)
        plain = np.ascontiguousarray(logits, np.float32)
        if plain.ndim != 1:
            raise EdgeError(f"A sampler takes the logits of one token, got an array of shape {plain.shape}.")
        if allowed is not None and (allowed.dtype != np.uint32 or allowed.shape != (-(-plain.size // 32),)):
            raise EdgeError(
                f"A token mask for {plain.size} tokens is uint32 [{-(-plain.size // 32)}], got "
                f"{allowed.dtype} {allowed.shape}."
            )
        mask = None if allowed is None else np.ascontiguousarray(allowed)
        draw = self._draw
        draw.logits, draw.vocab_size = plain.ctypes.data, plain.size
        draw.history, draw.history_length = seen.ctypes.data, seen.size
        draw.allowed = None if mask is None else mask.ctypes.data
        draw.index = index
        check(self._sample(self._options, draw, self._result))
        result = self._result
        if params.logprobs is None:
            return Sampled(result.token)
        count = min(params.logprobs, plain.size)
        top = zip(result.top_tokens[:count], result.top_logprobs[:count], strict=True)
        return Sampled(
            result.token, result.logprob, tuple((token, value) for token, value in top if token >= 0)
        )
