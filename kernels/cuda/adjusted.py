"""Logits as the tokens of a row are drawn from them: after mask, bias and penalties, in this order.
Reference: `adjust` in kernels/src/sampler/sampler.cpp.
"""

import triton
import triton.language as tl

from edge.executors.cuda.operators.sampling import CHUNK
from edge.kernels.entry import Entry
from edge.kernels.tokens import (
    BIAS_LENGTH,
    BIAS_START,
    FREQUENCY,
    HISTORY_LENGTH,
    HISTORY_START,
    MASK,
    PRESENCE,
    REPETITION,
    WORDS,
    decimal,
    exponential,
)


@triton.jit
def _peak(x):
    """The largest; infinity if there is NaN or infinity."""
    finite = x < float("inf")
    peak = tl.max(tl.where(finite, x, float("-inf")))
    return tl.where(tl.min(finite.to(tl.int32)) == 0, float("inf"), peak)


@triton.jit
def _penalized(x, row, history, first, CHUNK: tl.constexpr):
    """The logits of the tokens from `first` on, with what the row's history takes from them."""
    tokens = history + tl.load(row + HISTORY_START).to(tl.int64)
    length = tl.load(row + HISTORY_LENGTH)
    counts = tl.zeros([CHUNK], tl.int32)
    for start in range(0, length, CHUNK):
        at = start + tl.arange(0, CHUNK)
        here = tl.load(tokens + at, mask=at < length, other=-1) - first
        counts += tl.histogram(here, CHUNK, mask=(here >= 0) & (here < CHUNK))
    repetition = decimal(row, REPETITION)
    less = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    less -= decimal(row, FREQUENCY) * counts.to(tl.float32) + decimal(row, PRESENCE)
    return tl.where(counts > 0, less, x)


@triton.jit
def adjust(
    logits,
    settings,
    history,
    bias_tokens,
    bias_values,
    masks,
    adjusted,
    plain_peaks,
    plain_sums,
    peaks,
    vocabulary,
    CHUNK: tl.constexpr,
):
    """A program for a chunk and row: logits and adjusted float32 [rows, vocabulary]; of every chunk, float32
    [rows, chunks], the peaks of both and plain_sums, the sum of exp(logit - peak). A peak is infinity if
    there is NaN or infinity in the chunk.
    """
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    own = settings + row * WORDS
    first = chunk * CHUNK
    at = first + tl.arange(0, CHUNK)
    inside = at < vocabulary
    x = tl.load(logits + row * vocabulary + at, mask=inside, other=float("-inf"))
    place = row * tl.num_programs(0) + chunk
    peak = _peak(x)
    tl.store(plain_peaks + place, peak)
    tl.store(plain_sums + place, tl.sum(exponential(x - peak)))
    mask = tl.load(own + MASK).to(tl.int64)
    if mask > 0:
        words = masks + (mask - 1) * tl.cdiv(vocabulary, 32)
        allowed = tl.load(words + at // 32, mask=inside, other=0) >> (at % 32)
        x = tl.where((allowed & 1) == 1, x, float("-inf"))
    bias = tl.load(own + BIAS_START)
    for i in range(bias, bias + tl.load(own + BIAS_LENGTH)):
        x = tl.where(at == tl.load(bias_tokens + i), x + tl.load(bias_values + i), x)
    x = _penalized(x, own, history, first, CHUNK)
    x = tl.where(x == 0, 0.0, x)  # the order of bits would tell two zeros apart
    tl.store(peaks + place, _peak(x))
    tl.store(adjusted + row * vocabulary + at, x, mask=inside)


ENTRIES = [
    Entry(
        "adjust",
        adjust,
        {
            "logits": "*fp32",
            "settings": "*i32",
            "history": "*i32",
            "bias_tokens": "*i32",
            "bias_values": "*fp32",
            "masks": "*i32",
            "adjusted": "*fp32",
            "plain_peaks": "*fp32",
            "plain_sums": "*fp32",
            "peaks": "*fp32",
            "vocabulary": "i32",
        },
        {"CHUNK": CHUNK},
    )
]
