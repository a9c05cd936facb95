"""How far one model is from another on a text: KL divergence of their predictions, and how often they agree.

Both models must have the same vocabulary: two quantizations, KV types or kinds of activations of one network.
The text is cut into disjoint windows; every token of a window is predicted from all before it in the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edge.errors import EdgeError
from edge.executors.protocol import Executor, KVCache, SequenceStep, run_step
from edge.runtime import Model

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Divergence:
    """kl_divergence: mean over positions of KL(A || B) in nats. kl_p50, kl_p90, kl_p99, kl_max: over
    positions.

    top1_agreement: share of positions whose likeliest token is the same. perplexity_a, perplexity_b: of the
    text, by the same windows. tokens: positions compared.
    """

    kl_divergence: float
    kl_p50: float
    kl_p90: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    perplexity_a: float
    perplexity_b: float
    tokens: int
    protocol: str
    seconds: float


def divergence(
    a: Model,
    b: Model,
    text: str | Sequence[int],
    *,
    window: int | None = None,
    max_tokens: int | None = None,
    step: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Divergence:
    """Compare B with A, the reference, on a text (or token ids).

    window: tokens, by default 512 or the shorter context. max_tokens: use the beginning of the text. step:
    most positions of one call, whose distributions over a large vocabulary take much memory; 1 compares
    decode steps. Raises EdgeError for vocabularies that differ and for a text that leaves nothing to compare.
    """
    if a.config.vocab_size != b.config.vocab_size:
        raise EdgeError(
            f"The models have vocabularies of {a.config.vocab_size} and {b.config.vocab_size} tokens: "
            "compare two quantizations of one model."
        )
    context = min(a.context, b.context)
    window = min(512, context) if window is None else window
    if not 2 <= window <= context:
        raise EdgeError(
            f"The window must be from 2 to the shorter context of {context} tokens, got {window}."
        )
    ids = a.tokenizer.encode(text, add_bos=False) if isinstance(text, str) else list(text)
    if isinstance(text, str) and b.tokenizer.encode(text, add_bos=False) != ids:
        raise EdgeError(
            "The models split the text into different tokens: compare two quantizations of one model."
        )
    tokens = np.array(ids[:max_tokens], np.int32)
    if len(tokens) < 2:
        raise EdgeError(
            f"The text has {len(tokens)} tokens, which leaves none to compare: give a longer one."
        )

    started = perf_counter()
    caches = a.executor.new_cache(), b.executor.new_cache()
    step = min(a.executor.max_batch, b.executor.max_batch, step)
    divergences: list[npt.NDArray[np.float64]] = []
    agreed, losses = 0, np.zeros(2)
    for begin in range(0, len(tokens) - 1, window):
        piece = tokens[begin : begin + window]
        for model, cache in zip((a, b), caches, strict=True):
            model.executor.truncate(cache, 0)
        for start in range(0, len(piece) - 1, step):
            stop = min(start + step, len(piece) - 1)
            logs = [
                _log_probabilities(model.executor, cache, piece[start:stop])
                for model, cache in zip((a, b), caches, strict=True)
            ]
            divergences.append((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1))
            agreed += int((logs[0].argmax(axis=1) == logs[1].argmax(axis=1)).sum())
            targets = piece[start + 1 : stop + 1, None]
            losses -= [np.take_along_axis(log, targets, 1).sum() for log in logs]
            if progress is not None:
                progress(begin + stop, len(tokens) - 1)
    found = np.maximum(np.concatenate(divergences), 0.0)  # rounding can leave -1e-17
    p50, p90, p99 = (float(value) for value in np.percentile(found, _PERCENTILES))
    perplexities = [math.exp(min(loss / found.size, 700)) for loss in losses]
    return Divergence(
        kl_divergence=float(found.mean()),
        kl_p50=p50,
        kl_p90=p90,
        kl_p99=p99,
        kl_max=float(found.max()),
        top1_agreement=agreed / found.size,
        perplexity_a=perplexities[0],
        perplexity_b=perplexities[1],
        tokens=found.size,
        protocol=f"disjoint windows of {window} tokens, {found.size} positions, KL(A || B) in nats",
        seconds=perf_counter() - started,
    )


def _log_probabilities(
    executor: Executor, cache: KVCache, tokens: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """float64 [n, vocab_size] after each of the n tokens, which continue the cache."""
    step = run_step(executor, SequenceStep(cache, tokens, logits="all"))
    assert step.logits is not None
    shifted = step.logits.astype(np.float64) - step.logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
