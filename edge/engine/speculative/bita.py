"""Guesses that the model makes itself, in the pass that verifies those before (BiTA, arXiv 2401.12522): soft
rows behind every token that may become the last one guess what comes after its next.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edge.engine.speculative.calibration import Calibration, Guesses
from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.tree import DraftTree
from edge.executors.soft import SoftPrompt

_MOST_BRANCHES = 4


class Bita:
    """The soft prompt, and what its drafters have learned together: how often the guesses of each row are
    right.
    """

    def __init__(self, prompt: SoftPrompt) -> None:
        self.prompt = prompt
        self.calibrations = [Calibration() for _ in range(prompt.count)]


class BitaDrafter(Drafter):
    """Of every soft row the likeliest tokens, behind the likeliest of the row before."""

    def __init__(self, bita: Bita) -> None:
        self.soft = bita.prompt
        self._calibrations = bita.calibrations
        self._group = bita.prompt.count
        self._behind = 0  # tokens that stand before the soft rows whose logits these are
        self._logits: npt.NDArray[np.float32] | None = None
        self._guesses: Guesses | None = None
        self._guessed = self._first = 0  # tokens that the guesses stand behind, and the row of their first

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """See `Drafter`. The token after those that the rows stand behind is drawn by now; what a grammar has
        forced beside it needs no guess.
        """
        self._learn(tokens)
        self._guesses = None
        known = len(tokens) - self._behind - 1
        nodes: list[tuple[int, int, float]] = []
        if self._logits is not None and known >= 0:
            nodes = self._nodes(self._logits[known:], known, budget)
            self._guessed, self._first = len(tokens), known
        return replace(DraftTree.of(nodes), group=self._group)

    def accepted(self, accepted: Accepted) -> None:
        """See `Drafter`."""
        self._behind, self._logits = accepted.start + len(accepted.tokens), accepted.soft

    def _nodes(
        self, rows: npt.NDArray[np.float32], first: int, budget: Budget
    ) -> list[tuple[int, int, float]]:
        branches = max(1, min(int(1 / max(budget.least_chance, 1 / _MOST_BRANCHES)), budget.rows))
        nodes: list[tuple[int, int, float]] = []
        parent, above = -1, 1.0
        self._guesses = around = Guesses()
        for row, calibration in zip(rows[: budget.depth], self._calibrations[first:], strict=False):
            best = np.argpartition(-row, min(branches, len(row) - 1))[:branches]
            best = best[np.argsort(-row[best], kind="stable")]
            highest = row[best[0]]
            shares = np.exp(row[best] - highest) / np.exp(row - highest).sum()
            around.probabilities = dict(zip(best.tolist(), shares.tolist(), strict=True))
            chances = [above * calibration.chance(share) for share in shares.tolist()]
            behind = len(nodes)
            nodes += [(token, parent, chance) for token, chance in zip(best.tolist(), chances, strict=True)]
            parent, above = behind, chances[0]
            around = around.behind.setdefault(int(best[0]), Guesses())
        return nodes

    def _learn(self, tokens: Tokens) -> None:
        came = tokens[self._guessed :].tolist()
        for token, calibration in zip(came, self._calibrations[self._first :], strict=False):
            if self._guesses is None:
                return
            self._guesses = self._guesses.follow(token, calibration)
