"""The cost model beside the engine: guesses that are right with a known probability, and cost nothing.

A chain of n guesses that are right with probability a each brings 1 + a + ... + a^n tokens, and its pass
costs V(n + 1) plain ones. The plain answer is computed first, so that right and wrong guesses are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import log, sqrt
from statistics import median
from typing import Any

import numpy as np

import edge
from edge.engine.answer import Completion
from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.speculation import Speculation
from edge.engine.speculative.tree import DraftTree
from edge.measure.profile.measure import Bench
from edge.runtime import Model

CONTEXT = 512  # tokens of the prompt
ROWS = (1, 2, 3, 4, 6, 8, 12, 16)
LONGEST = 15  # chain


class PlantedDrafter(Drafter):
    """Knows the whole sequence, and how many guesses of each chain shall be right: as often 0, 1, 2 and so on
    as chance would have it, but evenly spread, so that an answer need not be long.
    """

    def __init__(self, sequence: Sequence[int], right: float, vocab_size: int) -> None:
        self._sequence, self._right, self._vocab_size = np.asarray(sequence, np.int32), right, vocab_size
        self._chains = 0

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """A chain, with the chances that its nodes have."""
        worth = int(log(budget.least_chance) / log(self._right))
        length = min(budget.depth, budget.rows, LONGEST, worth, len(self._sequence) - len(tokens))
        self._chains += 1
        spread = 1 - self._chains * (sqrt(5) - 1) / 2 % 1  # over (0, 1]
        guesses = self._sequence[len(tokens) : len(tokens) + length].copy()
        guesses[int(log(spread) / log(self._right)) :] += 1  # other tokens, whichever
        chain = enumerate((guesses % self._vocab_size).tolist())
        return DraftTree.of([(token, at - 1, self._right ** (at + 1)) for at, token in chain])

    def accepted(self, accepted: Accepted) -> None:
        """It knows all."""


def costs_of_rows(model: Model, repeats: int) -> dict[int, float]:
    """V(n): seconds of a pass of n rows with logits of all, over those of one row."""
    bench = Bench(model.executor, "prefill")
    seconds = {rows: list[float]() for rows in ROWS}
    for _ in range(repeats):
        for rows in ROWS:
            seconds[rows].append(bench.measure("verify", rows, CONTEXT).seconds)
    return {rows: median(a / b for a, b in zip(seconds[rows], seconds[1], strict=True)) for rows in ROWS}


def predicted(right: float, costs: dict[int, float]) -> tuple[float, int]:
    """The best speed-up of a chain, and its guesses."""
    known = sorted(costs)
    best, length = 1.0, 0
    for guesses in range(1, LONGEST + 1):
        tokens = sum(right**depth for depth in range(guesses + 1))
        ratio = tokens / float(np.interp(guesses + 1, known, [costs[rows] for rows in known]))
        if ratio > best:
            best, length = ratio, guesses
    return best, length


def _answer(model: Model, prompt: Sequence[int], tokens: int, speculation: Speculation | None) -> Completion:
    model.scheduler.speculation = speculation
    try:
        return model.complete(prompt, temperature=0, ignore_eos=True, max_new_tokens=tokens)
    finally:
        model.scheduler.speculation = None


def shape_document(
    shape: str, rights: Sequence[float], tokens: int, repeats: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Of a random model: V(n), and for every probability what was predicted and what was measured in turn."""
    with edge.load(f"random:{shape}", speculate="off", prefix_memory=0, **options) as model:
        size = model.config.vocab_size
        prompt = np.random.default_rng(0).integers(3, size, CONTEXT).tolist()
        sequence = [*prompt, *_answer(model, prompt, tokens, None).tokens]
        ways: dict[float, Speculation | None] = {0.0: None}
        for right in rights:
            ways[right] = Speculation("planted", partial(PlantedDrafter, sequence, right, size))
        costs = costs_of_rows(model, repeats)
        found: dict[float, list[Completion]] = {right: [] for right in ways}
        for turn in range(repeats):
            for right in list(ways)[:: -1 if turn % 2 else 1]:
                done = _answer(model, prompt, tokens, ways[right])
                if [*prompt, *done.tokens] != sequence:
                    raise SystemExit(f"Guesses that are right with probability {right} change the answer.")
                found[right].append(done)
    return {
        "shape": shape,
        "plain_tokens_per_second": round(median(done.tokens_per_second for done in found[0.0]), 2),
        "costs_of_rows": {str(rows): round(cost, 3) for rows, cost in costs.items()},
        "rows": [_row(right, found[right], found[0.0], costs) for right in rights],
    }


def _row(
    right: float, found: Sequence[Completion], plain: Sequence[Completion], costs: dict[int, float]
) -> dict[str, Any]:
    best, guesses = predicted(right, costs)
    pairs = zip(found, plain, strict=True)
    measured = median(each.tokens_per_second / other.tokens_per_second for each, other in pairs)
    lengths = [each.speculation.mean_accepted_length for each in found if each.speculation is not None]
    return {
        "right": right,
        "guesses": guesses,
        "predicted": round(best, 3),
        "measured": round(measured, 3),
        "measured_of_predicted": round(measured / best, 3),
        "accepted_length": round(median(lengths), 2),
    }
