"""Log-probabilities of drawn tokens and of the best ones, under the model's own distribution. Reference:
kernels/src/sampler/sampler.cpp.
"""

import triton
import triton.language as tl

from edge.executors.cuda.operators.draws import MAX_TOP
from edge.executors.cuda.operators.sampling import CHUNK, MAX_CHUNKS
from edge.kernels.entry import Entry
from edge.kernels.tokens import LOGPROBS, WORDS, exponential

_NONE = tl.constexpr(2**31 - 1)


@triton.jit
def _best(logits, peaks, log_total, n, tokens, found, vocabulary, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """The n best tokens of one row, one after another, each from the first chunk that has the best of what is
    left. peaks float32 [CHUNKS]: of its chunks.
    """
    peak = tl.max(peaks)
    chunks = tl.arange(0, CHUNKS)
    value_before = tl.full((), float("inf"), tl.float32)
    token_before = tl.full((), -1, tl.int32)
    for i in range(n):
        value = tl.max(peaks)
        chunk = tl.min(tl.where(peaks == value, chunks, CHUNKS - 1))
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(logits + at, mask=at < vocabulary, other=float("-inf"))
        left = (x < value_before) | ((x == value_before) & (at > token_before))
        token = tl.min(tl.where((x == value) & left, at, _NONE))
        rest = tl.max(tl.where((x < value) | ((x == value) & (at > token)), x, float("-inf")))
        peaks = tl.where(chunks == chunk, rest, peaks)
        tl.store(tokens + i, tl.where(value > float("-inf"), token, -1))
        tl.store(found + i, value - peak - log_total)
        value_before = value
        token_before = token


@triton.jit
def logprobs(
    settings,
    logits,
    plain_peaks,
    plain_sums,
    tokens,
    found,
    top_tokens,
    top_found,
    vocabulary,
    chunks,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    TOP: tl.constexpr,
):
    """A program for a row: found float32 [rows] for its token; top_tokens int32 and top_found float32 [rows,
    TOP], as many as its settings ask for. Does nothing for rows that want none or have no token.
    """
    row = tl.program_id(0).to(tl.int64)
    wanted = tl.load(settings + row * WORDS + LOGPROBS) - 1
    token = tl.load(tokens + row)
    if (wanted >= 0) & (token >= 0):
        own = logits + row * vocabulary
        at = tl.arange(0, CHUNKS)
        peaks = tl.load(plain_peaks + row * chunks + at, mask=at < chunks, other=float("-inf"))
        sums = tl.load(plain_sums + row * chunks + at, mask=at < chunks, other=0.0)
        peak = tl.max(peaks)
        log_total = tl.log(tl.sum(sums * exponential(peaks - peak)))
        tl.store(found + row, tl.load(own + token) - peak - log_total)
        top = row * TOP
        _best(own, peaks, log_total, wanted, top_tokens + top, top_found + top, vocabulary, CHUNKS, CHUNK)


ENTRIES = [
    Entry(
        "logprobs",
        logprobs,
        {
            "settings": "*i32",
            "logits": "*fp32",
            "plain_peaks": "*fp32",
            "plain_sums": "*fp32",
            "tokens": "*i32",
            "found": "*fp32",
            "top_tokens": "*i32",
            "top_found": "*fp32",
            "vocabulary": "i32",
            "chunks": "i32",
        },
        {"CHUNKS": MAX_CHUNKS, "CHUNK": CHUNK, "TOP": MAX_TOP},
    )
]
