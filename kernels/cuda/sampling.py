"""One token of each row: filters, exactly, and a draw. Reference: kernels/src/sampler/sampler.cpp.

A filter keeps the best tokens up to a boundary: a key, which is a logit or weight as an integer of the same
order, and the last id of the tokens that have this key. It is found by bisection; nothing is sorted.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from edge.executors.cuda.operators.sampling import CAPACITY, CHUNK, MAX_CHUNKS, OCTAVES
from edge.kernels.entry import Entry
from edge.kernels.random_numbers import uniform
from edge.kernels.tokens import (
    CHOICE,
    INDEX,
    INVERSE_TEMPERATURE,
    LEAST,
    LEAST_OCTAVE,
    MASK,
    MIN_P,
    ONE,
    SEED,
    TOP_K,
    TOP_P,
    WORDS,
    decimal,
    mass,
    order,
    peak_of,
    share_of,
    weight,
    wide,
)

BLOCK = 2048
"""Tokens that a program takes at a time."""

_ALL = tl.constexpr(-(2**31))
_NONE = tl.constexpr(2**31 - 1)


class Left(NamedTuple):
    """Tokens of a row that can be drawn: `listed` ids, or, if that is 0, all `length` of the vocabulary."""

    logits: Any
    ids: Any
    listed: Any
    length: Any
    peak: Any
    inverse_temperature: Any


@triton.jit
def _tokens(left, floor, last, start, BLOCK: tl.constexpr):
    """Ids, orders of logits and bits of weights of the tokens from place `start` on; the weight is 0 beyond
    the boundary (floor, last) of logits.
    """
    at = start + tl.arange(0, BLOCK)
    token = tl.load(left.ids + at, mask=at < left.listed, other=at)
    x = tl.load(left.logits + token, mask=at < left.length, other=float("-inf"))
    key = order(x)
    kept = (key > floor) | ((key == floor) & (token <= last))
    return token, key, tl.where(kept, weight(x, left.peak, left.inverse_temperature), 0)


@triton.jit
def _measure(left, floor, last, level, BY_WEIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """(amount int64, number) of tokens whose key, of weights or of logits, is `level` or more. The amount is
    their mass or, of logits, their number.
    """
    amount = tl.full((), 0, tl.int64)
    count = tl.full((), 0, tl.int32)
    for start in range(0, left.length, BLOCK):
        _, key, bits = _tokens(left, floor, last, start, BLOCK)
        if BY_WEIGHT:
            above = (bits > 0) & (bits >= level)
            amount += tl.sum(tl.where(above, mass(bits), 0))
        else:
            above = (bits > 0) & (key >= level)
        count += tl.sum(above.to(tl.int32))
    if not BY_WEIGHT:
        amount = count.to(tl.int64)
    return amount, count


@triton.jit
def _nth(left, floor, last, level, n, BY_WEIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """Id of the n-th token, counted from 1, whose key is `level`."""
    found = tl.full((), -1, tl.int32)
    count = tl.full((), 0, tl.int32)
    for start in range(0, left.length, BLOCK):
        token, key, bits = _tokens(left, floor, last, start, BLOCK)
        if BY_WEIGHT:
            key = bits
        hit = (bits > 0) & (key == level)
        number = count + tl.cumsum(hit.to(tl.int32))
        found = tl.maximum(found, tl.max(tl.where(hit & (number <= n), token, -1)))
        count += tl.sum(hit.to(tl.int32))
    return found


@triton.jit
def _boundary(
    left, floor, last, low, high, amount, count, wanted, BY_WEIGHT: tl.constexpr, BLOCK: tl.constexpr
):
    """The key and the last id up to which the best tokens first have the amount `wanted`.

    low: a key such that the tokens from it on have enough: `amount`, and their number. high: above all keys.
    """
    amount_above = tl.full((), 0, tl.int64)
    count_above = tl.full((), 0, tl.int32)
    middle = (low & high) + ((low ^ high) >> 1)
    while (middle != low) & (amount != wanted) & (count - count_above > 1):
        found, number = _measure(left, floor, last, middle, BY_WEIGHT, BLOCK)
        enough = found >= wanted
        low = tl.where(enough, middle, low)
        amount = tl.where(enough, found, amount)
        count = tl.where(enough, number, count)
        high = tl.where(enough, high, middle)
        amount_above = tl.where(enough, amount_above, found)
        count_above = tl.where(enough, count_above, number)
        middle = (low & high) + ((low ^ high) >> 1)
    end = tl.full((), _NONE, tl.int32)
    if middle == low:
        each = tl.full((), 1, tl.int64)
        if BY_WEIGHT:
            each = tl.maximum(mass(low), 1)
        n = ((wanted - amount_above + each - 1) // each).to(tl.int32)
        if n < count - count_above:
            end = _nth(left, floor, last, low, n, BY_WEIGHT, BLOCK)
    return low, end


@triton.jit
def _fall(left, floor, last, lightest, light_last, random, BLOCK: tl.constexpr):
    """The token in which the random number, a uint64 of 2^64, of the mass of all that is kept falls, in the
    order of ids. Kept is what is within (floor, last) of logits and (lightest, light_last) of weights.
    """
    wanted = tl.full((), 0, tl.int64)
    for start in range(0, left.length, BLOCK):
        token, _, bits = _tokens(left, floor, last, start, BLOCK)
        kept = (bits > lightest) | ((bits == lightest) & (token <= light_last))
        wanted += tl.sum(tl.where(kept, mass(bits), 0))
    wanted = tl.umulhi(wanted.to(tl.uint64), random).to(tl.int64)
    found = tl.full((), _NONE, tl.int32)
    before = tl.full((), 0, tl.int64)
    start = tl.full((), 0, tl.int32)
    while (start < left.length) & (found == _NONE):
        token, _, bits = _tokens(left, floor, last, start, BLOCK)
        kept = (bits > lightest) | ((bits == lightest) & (token <= light_last))
        own = tl.where(kept, mass(bits), 0)
        after = before + tl.cumsum(own)
        found = tl.min(tl.where((own > 0) & (after > wanted), token, _NONE))
        before += tl.sum(own)
        start += BLOCK
    return found


@triton.jit
def _chosen(own, left, octave, total, BLOCK: tl.constexpr):
    """The token of a row that is not greedy. octave: candidates weigh 2^-octave or more. total: the mass of
    the whole vocabulary.
    """
    floor = tl.full((), _ALL, tl.int32)
    last = tl.full((), _NONE, tl.int32)
    top_k = tl.load(own + TOP_K)
    if top_k > 0:
        # An octave less, so that rounding does not matter.
        low = order(left.peak - (octave + 1).to(tl.float32) * 0.6931472 / left.inverse_temperature)
        _, count = _measure(left, floor, last, low, False, BLOCK)
        if count > top_k:
            high = order(left.peak) + 1
            floor, last = _boundary(
                left, floor, last, low, high, count.to(tl.int64), count, top_k.to(tl.int64), False, BLOCK
            )
    lightest = tl.maximum(decimal(own, MIN_P).to(tl.int32, bitcast=True), LEAST)
    light_last = tl.full((), _NONE, tl.int32)
    top_p = wide(own, TOP_P)
    if top_p != 0xFFFFFFFFFFFFFFFF:
        least = (127 - octave) << 23
        amount, count = _measure(left, floor, last, least, True, BLOCK)
        if top_k > 0:
            total = amount
        wanted = share_of(total, top_p)
        if amount > wanted:
            key, end = _boundary(
                left, floor, last, least, tl.full((), ONE + 1, tl.int32), amount, count, wanted, True, BLOCK
            )
            if key >= lightest:
                lightest = key
                light_last = end
    return _fall(left, floor, last, lightest, light_last, _random(own), BLOCK)


@triton.jit
def _random(own):
    return uniform(wide(own, SEED), wide(own, INDEX), wide(own, CHOICE))


@triton.jit
def _first(logits, peaks, peak, vocabulary, chunks, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """The first token with the peak's logit; peaks: of the row's chunks."""
    places = tl.arange(0, CHUNKS)
    found = tl.load(peaks + places, mask=places < chunks, other=float("-inf"))
    at = tl.min(tl.where(found == peak, places, CHUNKS)) * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + at, mask=at < vocabulary, other=float("-inf"))
    return tl.min(tl.where(x == peak, at, _NONE))


@triton.jit
def _error(own, plain, peak):
    """0, or what is wrong with the peaks of a row, see `draws.Drawn`."""
    forbidden = tl.where(tl.load(own + MASK) > 0, -4, -5)
    of_adjusted = tl.where(peak == float("inf"), -3, tl.where(peak == float("-inf"), forbidden, 0))
    return tl.where(plain == float("inf"), -1, tl.where(plain == float("-inf"), -2, of_adjusted))


@triton.jit
def draw(
    settings,
    adjusted,
    peaks,
    plain_peaks,
    found,
    candidates,
    tokens,
    vocabulary,
    chunks,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    OCTAVES: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program for a row: tokens int32 [rows], below 0 for what is wrong. found, candidates: see
    candidates.py; not read for greedy rows.
    """
    row = tl.program_id(0).to(tl.int64)
    own = settings + row * WORDS
    logits = adjusted + row * vocabulary
    peak = peak_of(peaks, row, chunks, CHUNKS)
    token = _error(own, peak_of(plain_peaks, row, chunks, CHUNKS), peak)
    inverse_temperature = decimal(own, INVERSE_TEMPERATURE)
    if token == 0:
        if inverse_temperature > 0:
            state = tl.load(found + 2 * row + 1).to(tl.int64)
            listed = state >= 0
            length = tl.where(listed, state // 256, vocabulary).to(tl.int32)
            octave = tl.where(listed & (state % 256 < OCTAVES - 1), state % 256, LEAST_OCTAVE).to(tl.int32)
            ids = candidates + row * CAPACITY
            left = Left(logits, ids, tl.where(listed, length, 0), length, peak, inverse_temperature)
            token = _chosen(own, left, octave, tl.load(found + 2 * row).to(tl.int64), BLOCK)
        else:
            token = _first(logits, peaks + row * chunks, peak, vocabulary, chunks, CHUNKS, CHUNK)
    tl.store(tokens + row, token)


ENTRIES = [
    Entry(
        "draw",
        draw,
        {
            "settings": "*i32",
            "adjusted": "*fp32",
            "peaks": "*fp32",
            "plain_peaks": "*fp32",
            "found": "*u64",
            "candidates": "*i32",
            "tokens": "*i32",
            "vocabulary": "i32",
            "chunks": "i32",
        },
        {
            "CHUNKS": MAX_CHUNKS,
            "CHUNK": CHUNK,
            "OCTAVES": OCTAVES,
            "CAPACITY": CAPACITY,
            "BLOCK": BLOCK,
        },
        warps=8,
        registers=128,
    )
]
