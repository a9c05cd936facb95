"""Guesses that are right as often as a test wants, and rows that cost next to nothing, so that they are
verified.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edge.engine.costs import Curve, PassCosts
from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.speculation import Speculation
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.executors.soft import SoftPrompt


class FreeRows(PassCosts):
    """As if a row cost a thousandth of a pass."""

    def seconds(self, rows: int, depth: int) -> float | None:
        return 1.0 + 0.001 * rows

    def curve(self, depth: int) -> Curve:
        return Curve(1.0 + 0.001 * np.arange(1, 513))

    def is_fresh(self, rows: int, depth: int) -> bool:
        return True


class PlantedDrafter(Drafter):
    """Knows how `sequences` go on, and guesses right with probability `right` at each depth.

    Around the right path stand wrong guesses: siblings, and branches of their own. It keeps what it was told.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        right: float,
        vocab_size: int,
        seed: int = 0,
        hidden: bool = False,
        taps: tuple[int, ...] = (),
        soft: SoftPrompt | None = None,
    ) -> None:
        self.wants_hidden, self.taps, self.soft = hidden, taps, soft
        self.told: list[Accepted] = []
        self.proposed = 0
        self._sequences, self._right, self._vocab = [list(each) for each in sequences], right, vocab_size
        self._random = random.Random(seed)

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        self.proposed += 1
        known = tokens.tolist()
        after = next((each[len(known) :] for each in self._sequences if each[: len(known)] == known), [])
        nodes: list[tuple[int, int, float]] = []
        parent = -1
        for token in after[: self._random.randrange(1, 9)]:
            if self._random.random() > self._right:
                break
            wrong = [each for each in self._others(2) if each != token]
            place = self._random.randrange(len(wrong) + 1)
            siblings = [*wrong[:place], token, *wrong[place:]]
            first = len(nodes)
            nodes += [(each, parent, 0.9 ** (len(nodes) + 1)) for each in siblings]
            nodes += [(each, first, 0.9 ** (first + 3) * 0.5) for each in self._others(1)]
            parent = first + place
            if place == 0:
                parent, nodes = first, [each for each in nodes if each[1] != first]
        for each in self._others(2):
            if all(node[:2] != (each, parent) for node in nodes):
                nodes.append((each, parent, 1e-4))
        return replace(_falling(nodes), group=0 if self.soft is None else self.soft.count)

    def accepted(self, accepted: Accepted) -> None:
        self.told.append(accepted)

    def _others(self, count: int) -> list[int]:
        return self._random.sample(range(self._vocab), count)


def _falling(nodes: list[tuple[int, int, float]]) -> DraftTree:
    """With chances that fall along every path."""
    falling: list[tuple[int, int, float]] = []
    for token, parent, chance in nodes:
        above = falling[parent][2] if parent >= 0 else 1.0
        falling.append((token, parent, min(chance, above * 0.999)))
    return DraftTree.of(falling) if falling else NOTHING


def planted(drafters: list[PlantedDrafter]) -> Speculation:
    """Speculation that gives each new sequence the next of the drafters, the last one for good."""
    left = list(drafters)
    return Speculation("planted", lambda: lambda: left.pop(0) if len(left) > 1 else left[0])
