"""From logits to a token: the sampling parameters, their checks, and the call into the native sampler.

Filters apply in this order: logit bias, penalties, temperature, top-k, typical, top-p, min-p; then one token
is drawn. Ties go to the lower token id. What a request may set besides sampling is in `edge.engine.settings`.
"""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError
from edge.executors.native.library import MAX_LOGPROBS, SampleResult, Sampling, check, library

_EMPTY = np.empty(0, np.int32)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen; the defaults switch every filter off.

    temperature: 0 is greedy. top_k: 0 is off. top_p, typical_p: 1 is off. min_p: smallest probability
    relative to the best token's, 0 is off.
    repetition_penalty: divides positive and multiplies negative logits of tokens seen before (CTRL), 1 is
    off. frequency_penalty, presence_penalty: subtracted from a logit per occurrence and once, 0 is off.
    penalty_window: penalties count this many last tokens, None all. With a repetition penalty the prompt
    counts too (as in Hugging Face); frequency and presence penalties alone count the answer only (as in
    OpenAI's API).
    logit_bias: added to the logits of these token ids; -inf forbids one.
    seed: None draws a fresh one. logprobs: None for none, 0 for the chosen token's, n for the n best as well.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not _is_float32(value):
                raise EdgeError(f"{name} must be a finite number, got {value!r}.")
        for name in ("top_k", "penalty_window", "seed", "logprobs"):
            value = getattr(self, name)
            optional = name != "top_k" and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise EdgeError(f"{name} must be a whole number of 0 or more, got {value!r}.")
        if self.temperature < 0:
            raise EdgeError(f"temperature must be 0 (greedy) or more, got {self.temperature}.")
        for name in ("top_p", "min_p", "typical_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise EdgeError(f"{name} must be from 0 to 1, got {getattr(self, name)}.")
        if self.repetition_penalty <= 0:
            raise EdgeError(f"repetition_penalty must be above 0 (1 is off), got {self.repetition_penalty}.")
        if self.logprobs is not None and self.logprobs > MAX_LOGPROBS:
            raise EdgeError(f"logprobs must be at most {MAX_LOGPROBS}, got {self.logprobs}.")
        if not isinstance(self.logit_bias, Mapping):
            raise EdgeError(f"logit_bias must map token ids to numbers, got {self.logit_bias!r}.")
        for token, bias in self.logit_bias.items():
            number = _is_float32(bias) or bias == -math.inf
            if isinstance(token, bool) or not isinstance(token, int) or token < 0 or not number:
                raise EdgeError(f"logit_bias must map token ids to numbers, got {token!r}: {bias!r}.")
            if token >= 2**31:
                raise EdgeError(
                    f"logit_bias has the token id {token}, but no vocabulary is that large: token ids are "
                    "below 2147483648."
                )

    @property
    def has_penalties(self) -> bool:
        """True if earlier tokens change the logits."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


_FLOAT32_MAX = float(np.finfo(np.float32).max)


def _is_float32(value: object) -> bool:
    """True for a number that stays finite as float32, the sampler's type."""
    return isinstance(value, (int, float)) and abs(value) <= _FLOAT32_MAX


_NUMBERS = tuple(f.name for f in fields(SamplingParams) if f.type == "float")


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
    """Draws the tokens of one answer; the same seed and logits give the same tokens. For one thread."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.seed = random.SystemRandom().getrandbits(63) if params.seed is None else params.seed
        self._random = random.Random(self.seed)
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
        self._result = SampleResult()
        self._sample = library().edge_sample
        self._bias_tokens = np.fromiter(params.logit_bias.keys(), np.int32, len(params.logit_bias))
        self._bias_values = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))

    def sample(
        self, logits: npt.NDArray[np.float32], history: Sequence[int] | npt.NDArray[np.int32] = ()
    ) -> Sampled:
        """The next token for `logits`, float32 [vocab_size], which stay unchanged.

        history: the tokens that penalties may count, oldest first. Raises NativeError for logits that are not
        finite and TokenizerError for an id outside the vocabulary.
        """
        params = self.params
        seen = _EMPTY
        if params.has_penalties and params.penalty_window != 0:
            last = history if params.penalty_window is None else history[-params.penalty_window :]
            seen = np.ascontiguousarray(last, np.int32)
        plain = np.ascontiguousarray(logits, np.float32)
        if plain.ndim != 1:
            raise EdgeError(f"A sampler takes the logits of one token, got an array of shape {plain.shape}.")
        check(
            self._sample(
                *(plain.ctypes.data, plain.size, self._options),
                *(seen.ctypes.data, seen.size),
                *(self._bias_tokens.ctypes.data, self._bias_values.ctypes.data, self._bias_tokens.size),
                *(self._random.random(), params.logprobs is not None, self._result),
            )
        )
        result = self._result
        if params.logprobs is None:
            return Sampled(result.token)
        count = min(params.logprobs, plain.size)
        top = zip(result.top_tokens[:count], result.top_logprobs[:count], strict=True)
        return Sampled(
            result.token, result.logprob, tuple((token, value) for token, value in top if token >= 0)
        )
