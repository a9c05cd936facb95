"""How tokens are drawn on the device, as its tables say it, and what comes back.

The kernels draw as `edge.executors.sampling` does on the host, but for locally typical sampling and more than
MAX_TOP best tokens: see `fits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError, NativeError, TokenizerError
from edge.executors.sampling import DrawOptions, Sampled

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

MAX_TOP = 20
"""Most tokens whose log-probabilities are reported."""

LEAST_TEMPERATURE = np.float32(1e-6)
"""Smaller ones are as this, see `kernels/src/sampler/sampler.cpp`."""

SETTINGS = np.dtype(
    [
        ("inverse_temperature", np.float32),  # 0: greedy
        ("top_k", np.int32),  # 0: off
        ("top_p", np.uint64),  # of 2^64, rounded down; all ones: off
        ("min_p", np.float32),
        ("repetition_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("presence_penalty", np.float32),
        ("history_start", np.int32),  # where its tokens begin among all histories
        ("history_length", np.int32),  # 0 without penalties
        ("bias_start", np.int32),
        ("bias_length", np.int32),
        ("mask", np.int32),  # which of the masks, from 1; 0: all tokens are allowed
        ("logprobs", np.int32),  # 1 + the best tokens to report; 0: not even the chosen one's
        ("seed", np.uint64),
        ("index", np.uint64),
        ("choice", np.uint64),
    ]
)
"""One row's settings, in 4-byte words; the kernels read them by these names. All zeros: greedy, no more."""

_OFF = 2**64 - 1
_SENTENCES = {
    -1: "The logits contain NaN or infinity: the weights are damaged.",
    -2: "No token is allowed: all logits are -infinity.",
    -3: "Bias and penalties make a logit infinite: lower them.",
    -4: "No token is allowed: the mask leaves none that logits and bias allow.",
    -5: "The logit bias forbids every token.",
}


@dataclass(frozen=True, eq=False)
class Draw:
    """One token to be drawn; see `edge.executors.protocol.Executor.sample`."""

    options: DrawOptions
    history: Sequence[int] | Int32 = ()
    index: int = 0
    allowed: npt.NDArray[np.uint32] | None = None


@dataclass(frozen=True, eq=False)
class DrawTables:
    """What is uploaded for the rows of a launch.

    settings: SETTINGS [rows]. history, bias_tokens, bias_values: of all rows, one row's after another's.
    masks: uint32 [rows with one, ceil(vocab_size / 32)].
    """

    settings: npt.NDArray[np.void]
    history: Int32
    bias_tokens: Int32
    bias_values: Float32
    masks: npt.NDArray[np.uint32]

    @property
    def greedy(self) -> bool:
        """True if all rows take their likeliest token."""
        return not self.settings["inverse_temperature"].any()

    @property
    def logprobs(self) -> bool:
        """True if a row wants some."""
        return bool(self.settings["logprobs"].any())


def fits(options: DrawOptions) -> bool:
    """False for what is left to the host."""
    return options.typical_p >= 1 and (options.logprobs or 0) <= MAX_TOP


def tables(draws: Sequence[Draw], vocab_size: int) -> DrawTables:
    """Raises TokenizerError for ids outside the vocabulary and EdgeError for a mask of another size."""
    made = _Tables()
    for draw in draws:
        made.add(draw, vocab_size)
    words = -(-vocab_size // 32)
    return DrawTables(
        np.array(made.settings, SETTINGS),
        _joined(made.histories, np.int32),
        _joined([options.bias_tokens for options in made.biased], np.int32),
        _joined([options.bias_values for options in made.biased], np.float32),
        _joined(made.masks, np.uint32).reshape(-1, words),
    )


@dataclass
class _Tables:
    settings: list[tuple[float, ...]] = field(default_factory=list)
    histories: list[Int32] = field(default_factory=list)
    biased: list[DrawOptions] = field(default_factory=list)
    masks: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    _history: int = 0
    _bias: int = 0

    def add(self, draw: Draw, vocab_size: int) -> None:
        options = draw.options
        assert fits(options)
        history = np.ascontiguousarray(draw.history, np.int32)
        _check(history, "history", vocab_size)
        _check(options.bias_tokens, "logit bias", vocab_size)
        if not _penalized(options):
            history = history[:0]
        if draw.allowed is not None:
            self.masks.append(_checked_mask(draw.allowed, vocab_size))
        top_p = np.float32(options.top_p)
        self.settings.append(
            (
                _inverse(options.temperature),
                options.top_k if options.top_k < vocab_size else 0,
                int(float(top_p) * 2.0**64) if top_p < 1 else _OFF,
                options.min_p,
                options.repetition_penalty,
                options.frequency_penalty,
                options.presence_penalty,
                self._history,
                history.size,
                self._bias,
                options.bias_tokens.size,
                0 if draw.allowed is None else len(self.masks),
                0 if options.logprobs is None else 1 + options.logprobs,
                options.seed % 2**64,
                draw.index,
                options.choice,
            )
        )
        self.histories.append(history)
        self.biased.append(options)
        self._history += history.size
        self._bias += options.bias_tokens.size


def _penalized(options: DrawOptions) -> bool:
    penalties = options.repetition_penalty, options.frequency_penalty, options.presence_penalty
    return penalties != (1.0, 0.0, 0.0)


def _inverse(temperature: float) -> float:
    given = np.float32(temperature)
    return float(np.float32(1) / max(given, LEAST_TEMPERATURE)) if given > 0 else 0.0


def _check(tokens: Int32, name: str, vocab_size: int) -> None:
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.size:
        raise TokenizerError(
            f"Token id {outside[0]} in the {name} is outside the vocabulary of {vocab_size}."
        )


def _checked_mask(mask: npt.NDArray[np.uint32], vocab_size: int) -> npt.NDArray[np.uint32]:
    words = -(-vocab_size // 32)
    if mask.dtype != np.uint32 or mask.shape != (words,):
        raise EdgeError(
            f"A token mask for {vocab_size} tokens is uint32 [{words}], got {mask.dtype} {list(mask.shape)}."
        )
    return mask


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the kernels found. tokens int32 [rows], below 0 what was wrong; logprobs float32 [rows];
    top_tokens int32 and top_logprobs float32 [rows, MAX_TOP], best first, -1 where there is none.
    """

    tokens: Int32
    logprobs: Float32
    top_tokens: Int32
    top_logprobs: Float32

    def sampled(self, row: int, options: DrawOptions) -> Sampled:
        """As the host says it; raises NativeError where no token could be drawn."""
        token = int(self.tokens[row])
        if token < 0:
            raise NativeError(_SENTENCES[token])
        if options.logprobs is None:
            return Sampled(token)
        top = zip(
            self.top_tokens[row, : options.logprobs].tolist(),
            self.top_logprobs[row, : options.logprobs].tolist(),
            strict=True,
        )
        return Sampled(token, float(self.logprobs[row]), tuple(pair for pair in top if pair[0] >= 0))
