"""Perplexity of a text under a model, by a protocol that the result states.

Windows of `window` tokens advance by `stride` tokens. A window scores the tokens that no earlier one has
scored, each given all that stands before it in the window (Hugging Face's "perplexity of fixed-length
models"). With stride = window the windows are disjoint. A token with nothing before it in its window is not
scored; a BOS token in front of every window sees to it that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError, NativeError
from edge.executors.protocol import Executor, KVCache, SequenceStep, run_step
from edge.runtime import Model


@dataclass(frozen=True)
class PerplexityResult:
    """perplexity = exp(nll); nll: mean negative log-likelihood in nats over `tokens` scored tokens.

    protocol: window, stride, BOS and text length in words. seconds: wall time of the evaluation.
    """

    perplexity: float
    nll: float
    tokens: int
    protocol: str
    seconds: float


def perplexity(
    model: Model,
    text: str | Sequence[int],
    *,
    window: int | None = None,
    stride: int | None = None,
    bos: bool = False,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Score `text` (or token ids) with the protocol above.

    window: tokens of a window, a BOS included; by default 2048 or the context, if that is less. stride: by
    default half a window. bos: put the BOS token in front of every window. max_tokens: use the first so many
    tokens of the text. progress: called with (tokens done, tokens of the text).
    Raises EdgeError if the settings contradict each other or nothing is left to score.
    """
    window = min(2048, model.context) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 2 <= window <= model.context:
        raise EdgeError(f"The window must be from 2 to the context of {model.context} tokens, got {window}.")
    lead = [model.tokenizer.bos_id] if bos else []
    if None in lead:
        raise EdgeError("The model has no BOS token: leave it out.")
    body = window - len(lead)
    if not 1 <= stride <= body:
        raise EdgeError(f"The stride must be from 1 to the {body} text tokens of a window, got {stride}.")
    if max_tokens is not None and max_tokens < 1:
        raise EdgeError(f"max_tokens must be 1 or more, got {max_tokens}.")
    ids = model.tokenizer.encode(text, add_bos=False) if isinstance(text, str) else list(text)
    ids = ids[:max_tokens]
    if len(ids) + len(lead) < 2:
        raise EdgeError(f"The text has {len(ids)} tokens, which leaves none to score: give a longer one.")

    started = perf_counter()
    cache = model.executor.new_cache()
    loss, scored, done = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + body, len(ids))
        tokens = np.array([*lead, *ids[begin:end]], np.int32)
        first = len(lead) + done - begin  # of those that no window has scored yet, as a place in this window
        model.executor.truncate(cache, 0)
        losses = _losses(model.executor, cache, tokens, max(first, 1))
        loss += float(losses.sum())
        scored += losses.size
        done = end
        if progress is not None:
            progress(done, len(ids))
        if end == len(ids):
            break
    nll = loss / scored
    return PerplexityResult(
        perplexity=math.exp(nll) if nll < 700 else math.inf,
        nll=nll,
        tokens=scored,
        protocol=(
            f"sliding windows of {window} tokens, stride {stride}, {'BOS' if bos else 'no BOS'} in front, "
            f"{scored} of {len(ids)} tokens scored"
        ),
        seconds=perf_counter() - started,
    )


def _losses(
    executor: Executor, cache: KVCache, tokens: npt.NDArray[np.int32], first: int
) -> npt.NDArray[np.float64]:
    """Negative log-likelihoods of tokens[first:], each given all before it; the cache is empty."""
    parts = [np.empty(0)]
    # Tokens before `first` - 1 predict tokens that are not scored: they need no logits.
    for start, stop, wanted in _pieces(len(tokens), first - 1, executor.max_batch):
        step = SequenceStep(cache, tokens[start:stop], logits="all" if wanted else "none")
        result = run_step(executor, step)
        if wanted:
            assert result.logits is not None
            targets = tokens[start + 1 : stop + 1]
            parts.append(_negative_log_likelihood(result.logits[: len(targets)], targets))
    return np.concatenate(parts)


def _pieces(length: int, first: int, step: int) -> list[tuple[int, int, bool]]:
    """Cuts 0 .. length - 1 (the last token predicts nothing) at `first` and into pieces of at most `step`.

    True: the piece needs logits.
    """
    borders = [*range(0, first, step), *range(first, length - 1, step), length - 1]
    return [(a, b, a >= first) for a, b in pairwise(borders) if b > a]


def _negative_log_likelihood(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """float64 [n] for logits [n, vocab_size]."""
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - peak).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    losses = np.log(total) + peak[:, 0] - chosen
    if not np.isfinite(losses).all():
        raise NativeError("The logits contain NaN or infinity: the weights are damaged.")
    checked: npt.NDArray[np.float64] = losses
    return checked
