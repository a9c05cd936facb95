"""A sequence that a draft network follows, told by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.engine.speculative.drafter import Accepted, Budget
from edge.engine.speculative.eagle import Eagle, EagleDrafter
from edge.engine.speculative.tree import DraftTree
from edge.executors.protocol import SequenceStep, run_step
from edge.executors.sampling import DrawOptions

RICH = Budget(rows=20, depth=20, token_seconds=1e6, least_chance=0.1)
"""Everything pays."""


class Story:
    """A sequence on an executor, and a drafter that is told of it."""

    def __init__(self, executor: Any, eagle: Eagle) -> None:
        self.executor, self.eagle = executor, eagle
        self.cache = executor.new_cache()
        self.tokens: list[int] = []
        self.drafter = EagleDrafter(eagle)

    def go_on(self, tokens: list[int], tell_hidden: bool = True) -> None:
        start = self.cache.length
        taps = self.drafter.taps
        step = SequenceStep(self.cache, tokens, logits="none", hidden=not taps, layers=taps)
        result = run_step(self.executor, step)
        hidden = np.concatenate(result.layers, axis=1) if taps else result.hidden
        self.tokens[start:] = tokens
        told = np.array(tokens, np.int32)
        self.drafter.accepted(Accepted(start, told, hidden if tell_hidden else None))

    def cut(self, length: int) -> None:
        """The drafter hears of it by what comes next."""
        self.executor.truncate(self.cache, length)
        del self.tokens[length:]

    def propose(self, root: int, budget: Budget = RICH) -> DraftTree:
        return self.drafter.propose(np.array([*self.tokens, root], np.int32), budget)

    def fresh(self) -> Story:
        """The same tokens, seen for the first time."""
        other = Story(self.executor, self.eagle)
        for first in range(0, len(self.tokens), 128):
            other.go_on(self.tokens[first : first + 128])
        return other

    def draw(self, root: int, right: int = 0, wrong: int = 0, left: int = 0) -> int:
        """A pass that draws tokens behind the root, the likeliest ones, along so many guesses that are right
        and as many behind them that are not; the answer takes none of the last `left`. Returns the next root.
        """
        guesses = self._likeliest(root, right + 1)
        guesses[right:] = [token ^ 1 for token in guesses[right : right + 1]] * wrong
        start = self.cache.length
        step = self.executor.next_token(self.cache, DrawOptions(temperature=0.0))
        step.put(root, 0)
        if guesses:
            step.guess(guesses)
        step.want(not self.drafter.taps, self.drafter.taps)
        search = self.drafter.search_behind(step, start)
        (drawn,) = self.executor.decode([step])
        assert len(drawn) == right + 1
        rows = [0, *step.right][: right + 1 - left]
        searched = search is not None and search.rows == len(rows)
        states = None if searched else step.states[rows]
        assert self.cache.length == start + right + 1
        self.executor.truncate(self.cache, start + len(rows))
        told = [root, *drawn][: len(rows)]
        self.tokens[start:] = told
        self.drafter.accepted(Accepted(start, np.array(told, np.int32), states, None, searched))
        return int(drawn[len(rows) - 1])

    def _likeliest(self, root: int, count: int) -> list[int]:
        fork, tokens = self.executor.fork(self.cache, self.cache.length), [root]
        while len(tokens) <= count:
            logits = run_step(self.executor, SequenceStep(fork, tokens[-1:])).logits
            tokens.append(int(np.argmax(logits[-1])))
        return tokens[1:]
