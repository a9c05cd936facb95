"""Random answers of a grammar: any token that its mask allows, drawn by a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.engine.constraints.constraint import Constraint
from edge.text.tokenizer.base import Tokenizer

Bits = npt.NDArray[np.bool_]


def allowed_bits(constraint: Constraint, size: int) -> Bits:
    mask = constraint.allowed()
    assert mask is not None and mask.dtype == np.uint32
    return np.unpackbits(mask.view(np.uint8), bitorder="little")[:size].astype(bool)


def allowed_tokens(constraint: Constraint, size: int) -> list[int]:
    return [int(token) for token in np.flatnonzero(allowed_bits(constraint, size))]


@lru_cache(4)
def kinds(tokenizer: Any) -> tuple[Bits, Bits, Bits, Bits]:
    """Which tokens end an answer, stand for nothing, end a JSON value, are a byte."""
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    ends = np.zeros(len(pieces), bool)
    ends[[*tokenizer.eos_ids]] = True
    empty = np.array([not data for data in pieces])
    closing = np.array([data[:1] in (b'"', b"}", b"]") for data in pieces])
    short = np.array([len(data) == 1 for data in pieces])
    return ends, empty, closing, short & ~ends


def walk(
    make: Callable[[], Constraint], tokenizer: Tokenizer, seed: int, *, forced: bool = True, most: int = 120
) -> tuple[str, bool]:
    """A text, and whether it is whole. Short tokens and ends are likelier than they would be, so that texts
    end. forced: take forced tokens together, or each out of its mask.
    """
    constraint, rng, tokens = make(), random.Random(seed), list[int]()
    ends, empty, closing, short = kinds(tokenizer)
    while len(tokens) < most:
        run = [token for token in constraint.forced() if not ends[token]]
        if run and forced:
            for token in run:
                constraint.advance(token)
            tokens += run
            continue
        bits = allowed_bits(constraint, len(ends))
        assert bits.any(), f"stuck behind {tokenizer.decode(tokens)!r}"
        assert not (bits & empty).any()
        may_end = constraint.is_complete
        assert (bits & ends).sum() == (ends.sum() if may_end else 0)
        rest = bits & ~ends
        if run:  # takes no random number, so that both ways are at the same one
            assert rest.sum() == 1 and rest[run[0]]
        elif not rest.any() or (may_end and rng.random() < 0.3):
            break
        else:
            wanted, chance = (closing, 1.0) if rng.random() < 0.3 else (short, 0.8)
            if (rest & wanted).any() and rng.random() < chance:
                rest &= wanted
        token = run[0] if run else int(rng.choice(np.flatnonzero(rest)))
        assert constraint.fits([token]) == 1
        constraint.advance(token)
        tokens.append(token)
    return tokenizer.decode(tokens, continues=True), constraint.is_complete
