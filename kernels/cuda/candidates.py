"""Which tokens of a row can still be drawn: a short list of them, if the filters leave few.

Tokens are counted by the octave of their weight, and an octave is found below which no token survives the
filters; those above it are gathered. The filters themselves are exact and stand in sampling.py.
"""

import triton
import triton.language as tl

from edge.executors.cuda.operators.sampling import CAPACITY, CHUNK, MAX_CHUNKS, OCTAVES
from edge.kernels.entry import Entry
from edge.kernels.tokens import (
    INVERSE_TEMPERATURE,
    MIN_P,
    TOP_K,
    TOP_P,
    WORDS,
    decimal,
    mass,
    octave,
    peak_of,
    share_of,
    weight,
    wide,
)

GROUP = 32
"""Chunks that `narrow` takes at a time."""


@triton.jit
def _weights(own, adjusted, peaks, row, chunk, vocabulary, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """Ids of the tokens of a chunk and the bits of their weights."""
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(adjusted + row * vocabulary + at, mask=at < vocabulary, other=float("-inf"))
    peak = peak_of(peaks, row, tl.num_programs(0), CHUNKS)
    return at, weight(x, peak, decimal(own, INVERSE_TEMPERATURE))


@triton.jit
def weigh(
    settings,
    adjusted,
    peaks,
    counts,
    masses,
    vocabulary,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    OCTAVES: tl.constexpr,
):
    """A program for a chunk and row: counts int32 and masses int64 [rows, chunks, OCTAVES] of its tokens, by
    the octaves of their weights. Does nothing for greedy rows.
    """
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    own = settings + row * WORDS
    if decimal(own, INVERSE_TEMPERATURE) > 0:
        _, bits = _weights(own, adjusted, peaks, row, chunk, vocabulary, CHUNKS, CHUNK)
        octaves = tl.arange(0, OCTAVES)
        here = octave(bits, OCTAVES)[None, :] == octaves[:, None]
        place = (row * tl.num_programs(0) + chunk) * OCTAVES + octaves
        tl.store(counts + place, tl.sum(here.to(tl.int32), axis=1))
        tl.store(masses + place, tl.sum(tl.where(here, mass(bits)[None, :], 0), axis=1).to(tl.uint64))


@triton.jit
def _last_octave(own, counts, masses, OCTAVES: tl.constexpr):
    """The last octave with tokens that the filters may leave, from counts and masses [OCTAVES] up to each."""
    top_k = tl.load(own + TOP_K)
    top_p = wide(own, TOP_P)
    if top_k > 0:
        last = tl.sum((counts < top_k).to(tl.int32))
    else:
        least = decimal(own, MIN_P).to(tl.int32, bitcast=True)
        last = tl.where(least > 0, 127 - (least >> 23), OCTAVES - 1)
        if top_p != 0xFFFFFFFFFFFFFFFF:
            wanted = share_of(tl.max(masses), top_p)
            last = tl.minimum(last, tl.sum((masses < wanted).to(tl.int32)))
    return tl.minimum(last, OCTAVES - 1)


@triton.jit
def narrow(
    settings,
    counts,
    masses,
    offsets,
    found,
    chunks,
    OCTAVES: tl.constexpr,
    CAPACITY: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A program for a row: found int64 [rows, 2] is the mass of all its tokens, and its last octave + 256 *
    its number of candidates, which are the tokens up to that octave; or -1 if they are more than CAPACITY.
    offsets int32 [rows, chunks]: candidates in the chunks before.
    """
    row = tl.program_id(0).to(tl.int64)
    own = settings + row * WORDS
    if decimal(own, INVERSE_TEMPERATURE) > 0:
        octaves = tl.arange(0, OCTAVES)
        count = tl.zeros([OCTAVES], tl.int32)
        total = tl.zeros([OCTAVES], tl.int64)
        for start in range(0, chunks, GROUP):
            at = start + tl.arange(0, GROUP)
            places = (row * chunks + at)[:, None] * OCTAVES + octaves[None, :]
            inside = (at < chunks)[:, None]
            count += tl.sum(tl.load(counts + places, mask=inside, other=0), axis=0)
            total += tl.sum(tl.load(masses + places, mask=inside, other=0).to(tl.int64), axis=0)
        last = _last_octave(own, tl.cumsum(count), tl.cumsum(total), OCTAVES)
        candidates = tl.sum(tl.where(octaves <= last, count, 0)).to(tl.int64)
        tl.store(found + 2 * row, tl.sum(total).to(tl.uint64))
        state = tl.where(candidates <= CAPACITY, last + 256 * candidates, -1)
        tl.store(found + 2 * row + 1, state.to(tl.uint64))
        before = tl.full((), 0, tl.int32)
        for start in range(0, chunks, GROUP):
            at = start + tl.arange(0, GROUP)
            places = (row * chunks + at)[:, None] * OCTAVES + octaves[None, :]
            wanted = (at < chunks)[:, None] & (octaves <= last)[None, :]
            own_count = tl.sum(tl.load(counts + places, mask=wanted, other=0), axis=1)
            tl.store(offsets + row * chunks + at, before + tl.cumsum(own_count) - own_count, mask=at < chunks)
            before += tl.sum(own_count)


@triton.jit
def gather(
    settings,
    adjusted,
    peaks,
    offsets,
    found,
    candidates,
    vocabulary,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    OCTAVES: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """A program for a chunk and row: writes its part of candidates int32 [rows, CAPACITY], the ids of the
    row's candidates, ascending.
    """
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    own = settings + row * WORDS
    if decimal(own, INVERSE_TEMPERATURE) > 0:
        state = tl.load(found + 2 * row + 1).to(tl.int64)
        if state >= 0:
            ids, bits = _weights(own, adjusted, peaks, row, chunk, vocabulary, CHUNKS, CHUNK)
            wanted = octave(bits, OCTAVES) <= state % 256
            before = tl.load(offsets + row * tl.num_programs(0) + chunk)
            place = before + tl.cumsum(wanted.to(tl.int32)) - 1
            tl.store(candidates + row * CAPACITY + place, ids, mask=wanted)


_TOKENS = {"settings": "*i32", "adjusted": "*fp32", "peaks": "*fp32"}
_OCTAVES = {"counts": "*i32", "masses": "*u64"}

ENTRIES = [
    Entry(
        "weigh",
        weigh,
        {**_TOKENS, **_OCTAVES, "vocabulary": "i32"},
        {"CHUNKS": MAX_CHUNKS, "CHUNK": CHUNK, "OCTAVES": OCTAVES},
    ),
    Entry(
        "narrow",
        narrow,
        {"settings": "*i32", **_OCTAVES, "offsets": "*i32", "found": "*u64", "chunks": "i32"},
        {"OCTAVES": OCTAVES, "CAPACITY": CAPACITY, "GROUP": GROUP},
    ),
    Entry(
        "gather",
        gather,
        {**_TOKENS, "offsets": "*i32", "found": "*u64", "candidates": "*i32", "vocabulary": "i32"},
        {"CHUNKS": MAX_CHUNKS, "CHUNK": CHUNK, "OCTAVES": OCTAVES, "CAPACITY": CAPACITY},
    ),
]
