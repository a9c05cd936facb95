"""Guesses of a smaller model with the same tokenizer (Leviathan et al. 2023, Chen et al. 2023)."""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edge.engine.scheduler import Scheduler
from edge.engine.session import Session
from edge.engine.speculative.calibration import Calibration, Guesses
from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.reach import Reach
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.errors import ContextError
from edge.executors.protocol import Executor

_BRANCHES = 3  # likeliest tokens at every place
_RIGHT = 0.8  # of its likeliest tokens, where it is good
_SAMPLES = 9  # of the latest steps of the model; their median is what one costs
_PATIENCE = 256  # guesses after which steps that were too slow are timed again: they may have had bad luck


class SmallModel:
    """The model, and what its drafters have learned together."""

    def __init__(self, executor: Executor, *, vocab_size: int, share: float) -> None:
        """vocab_size: of the target; tokens beyond it are none of its. share: bytes of the smaller model's
        weights over those of the target, which its steps cost until some were timed.
        """
        self.executor = executor
        self.vocab_size = vocab_size
        self.scheduler = Scheduler(executor)
        self.calibration = Calibration()
        self.reach = Reach()
        self._share = share
        self._seconds: list[float] = []
        self._refused = 0  # first steps in a row

    def pays(self, chance: float, token_seconds: float) -> bool:
        """Whether another step can save more than it costs, behind a guess that is right with this chance."""
        step = float(np.median(self._seconds)) if self._seconds else self._share * token_seconds
        return chance * _RIGHT * token_seconds > step

    def begins(self, token_seconds: float) -> bool:
        """Whether the first step of a guess pays; now and then one is made to find out."""
        self._refused = 0 if self.pays(1.0, token_seconds) else self._refused + 1
        if self._refused == _PATIENCE:
            self._refused, self._seconds = 0, []
        return self._refused == 0

    def record(self, seconds: float) -> None:
        """A step took so long."""
        self._seconds = [*self._seconds[1 - _SAMPLES :], seconds]


class SmallModelDrafter(Drafter):
    """Decodes ahead with the smaller model: its likeliest token at each place leads on, and the next likely
    ones stand beside it.
    """

    def __init__(self, model: SmallModel) -> None:
        self._model = model
        self._session = Session(model.executor, model.scheduler)
        self._guesses: Guesses | None = None
        self._before = 0  # tokens that the guesses stand behind
        self._made = 0  # steps, for them

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """See `Drafter`. A step is made while the guess before it, if right, saves more than the step
        costs.
        """
        self._learn(tokens)
        self._before, self._guesses, self._made = len(tokens), None, 0
        if not self._model.begins(budget.token_seconds):
            return NOTHING
        self._guesses = here = Guesses()
        nodes: list[tuple[int, int, float]] = []
        parent, most = -1, min(budget.depth, self._model.reach.depth)
        with suppress(ContextError):  # the smaller model's may be shorter: what there is of guesses will do
            logits = self._session.prefill(tokens)
            while logits is not None:
                parent, self._made = self._guess(logits, here, nodes, parent), self._made + 1
                token, _, chance = nodes[parent]
                full = self._made >= most or len(nodes) >= budget.rows
                if full or not self._model.pays(chance, budget.token_seconds):
                    break
                here = here.behind.setdefault(token, Guesses())
                started = perf_counter()
                logits = self._session.step(token)
                self._model.record(perf_counter() - started)
        return DraftTree.of(nodes)

    def accepted(self, accepted: Accepted) -> None:
        """See `Drafter`. What became of guesses shows in the tokens of the next call of `propose`."""

    def verified(self, depth: int) -> None:
        """See `Drafter`."""
        if self._made:
            self._model.reach.learn(depth, self._made)

    def _learn(self, tokens: Tokens) -> None:
        for token in tokens[self._before :].tolist():
            if self._guesses is None:
                return
            self._guesses = self._guesses.follow(token, self._model.calibration)

    def _guess(
        self,
        logits: npt.NDArray[np.float32],
        here: Guesses,
        nodes: list[tuple[int, int, float]],
        parent: int,
    ) -> int:
        """Add the likeliest tokens to the nodes; returns the index of the first."""
        logits = logits[: self._model.vocab_size]
        best = np.argpartition(logits, -_BRANCHES)[-_BRANCHES:]
        best = best[np.argsort(-logits[best], kind="stable")]
        top = float(logits[best[0]])
        total = float(np.exp(logits - top).sum())
        first, chance = len(nodes), nodes[parent][2] if nodes else 1.0
        for token in best.tolist():
            probability = float(np.exp(logits[token] - top)) / total
            here.probabilities[token] = probability
            nodes.append((token, parent, chance * self._model.calibration.chance(probability)))
        return first
