"""Guesses of a draft network beside the model (`edge.config.draft`), on any executor that runs it: the search
for a tree is EAGLE-2's (arXiv 2406.16858). Of a block draft the first step is all of the network, and the
chances are those of its confidence head.
"""

from __future__ import annotations

from math import exp
from statistics import median_low

from edge.engine.speculative.calibration import Calibration, Guesses
from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.known_rows import KnownRows
from edge.engine.speculative.reach import Reach
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.executors.drafts import (
    MAX_BRANCHES,
    DraftAhead,
    DraftNetwork,
    DraftPlan,
    DraftsAhead,
    Tried,
)
from edge.executors.protocol import NextToken

_MOST_STEPS = 12
_SLACK = 0.5  # a guess may be right this much more often than the network says
_SAMPLES = 9  # of the latest steps of one number; their median is what one costs
_YIELD, _LEAST_YIELD = 0.6, 0.1  # of a step, before any was made, and however little the last ones gave
_LEARNED = 0.1  # share of the newest step in what steps are expected to give
_WON, _LEAST_WON = 0.3, -0.05  # tokens by a pass, less all costs: before any was made, and where it rests
_WEIGHT, _FIRST_PASSES = 0.01, 10  # of the newest pass in that: little, but soon enough at first
_MOST_LOST = 1.0  # by one pass; more was a hiccup of the machine
_REST = 256  # passes in which nobody asks a network whose guesses cost more than they give
_TRIES = 8  # guesses after that: the text may have changed, or the machine have been busy
_FEW_ROWS = 8  # what the first step costs is told by those that come after a pass, not by prompts


class Eagle:
    """The network, and what its drafters have learned together."""

    def __init__(self, network: DraftNetwork, share: float = 0.0) -> None:
        """share: bytes that a step reads over those that a token of the target does, which is its cost until
        some were timed.
        """
        self.network = network
        self._share = share
        self.calibration = Calibration()
        self._seconds: list[list[float]] = [[] for _ in range(_MOST_STEPS)]
        self._medians: list[float | None] = [None] * _MOST_STEPS
        self._yields = [_YIELD] * _MOST_STEPS
        self._given = _YIELD  # tokens by a plan, less what further steps cost
        self._won, self._settled = _WON, 0  # what it came to, with all that a pass takes beside the network
        self._rest, self._tries = 0, _TRIES
        self.reach = Reach()

    def rests(self) -> int:
        """See `Drafter`: what one has learned holds for all."""
        self._rest = max(0, self._rest - 1)
        return self._rest

    def settled(self, gained: float) -> None:
        """See `Drafter`."""
        self._settled += 1
        weight = max(_WEIGHT, 1 / (_FIRST_PASSES + self._settled))
        self._won += weight * (max(gained, -_MOST_LOST) - self._won)

    def plan(self, budget: Budget) -> DraftPlan | None:
        """What to try; None if the first step costs more than the tokens that it may save (one, or as many as
        a block tells), or than plans have given lately, or where guesses have lost time.

        Of the children of one token the n-th has at most the chance 1 / n: more than 1 / least_chance of them
        can't pay. Step i is made if what it gives at its leaves' chances, in tokens, is worth its time.
        """
        if budget.token_seconds <= 0:
            return None
        config = self.network.config
        first = self._cost(0, budget.token_seconds)
        if first > (config.guessed_rows if config.is_block else 1):
            self._seconds[0], self._medians[0] = [], None
            self._rest, self._tries = _REST, _TRIES
            return None
        if self._given > first and self._won > _LEAST_WON:
            self._tries = _TRIES
        elif self._tries:
            self._tries -= 1
        else:
            self._rest, self._tries = _REST, _TRIES
            self._won = max(self._won, _LEAST_WON)  # so that a few good tries are enough
            return None
        reach = config.guessed_rows if config.is_block else self.reach.depth
        steps = max(1, min(budget.depth, budget.rows, reach, _MOST_STEPS))
        branches = int(1 / max(budget.least_chance, 1 / MAX_BRANCHES))
        return DraftPlan(
            steps=steps,
            branches=max(
                1, min(branches, budget.children, budget.rows, config.head_rows or config.vocab_size)
            ),
            rows=budget.rows,
            least_chance=budget.least_chance * _SLACK,
            least_gains=[
                self._cost(step, budget.token_seconds) / self._yields[step] for step in range(steps)
            ],
        )

    def record(self, tried: Tried, rows: int, tree: DraftTree, budget: Budget) -> None:
        """What the steps took, after so many rows were appended, and what they gave: the tree's nodes are
        worth their chances, less what their rows in the pass cost.
        """
        gains = [0.0] * max(tree.depth, len(tried.seconds))
        for chance, depth in zip(tree.chances, tree.depths, strict=True):
            gains[depth - 1] += max(0.0, chance - budget.least_chance)
        further = sum(tried.seconds[1:]) / budget.token_seconds
        self._given += _LEARNED * (sum(gains) - further - self._given)
        parents, logprobs = tried.parents, tried.logprobs
        first = 0  # token of the step
        for step, seconds in enumerate(tried.seconds):
            last = first
            while last < len(parents) and parents[last] < first:
                last += 1
            leaves = set(parents[first:last])
            promised = 1.0 if step == 0 else sum(exp(logprobs[leaf]) for leaf in leaves)
            if promised > 0:
                found = max(_LEAST_YIELD, gains[step] / promised)
                self._yields[step] += _LEARNED * (found - self._yields[step])
            if step > 0 or rows <= _FEW_ROWS:
                self._seconds[step] = [*self._seconds[step][1 - _SAMPLES :], seconds]
                self._medians[step] = median_low(self._seconds[step])
            first = last

    def _cost(self, step: int, token_seconds: float) -> float:
        """In tokens of the target; of a step that was never made, that of the one before it, or nothing where
        the first one computes a block.
        """
        if step > 0 and self._medians[step] is None and self.network.config.is_block:
            return 0.0
        while step > 0 and self._medians[step] is None:
            step -= 1
        seconds = self._medians[step]
        return self._share if seconds is None else seconds / token_seconds


class EagleDrafter(Drafter):
    """Keeps the rows of the draft's cache true: they are made of hidden states of the target alone."""

    wants_hidden = True

    def __init__(self, eagle: Eagle) -> None:
        config = eagle.network.config
        self._eagle = eagle
        self.taps = config.taps
        self._cache = eagle.network.new_cache()
        self._known = KnownRows(config.rows_seen)
        self._guesses: Guesses | None = None
        self._before = 0  # tokens that the guesses stand behind
        self._made = 0  # steps, for them
        network = eagle.network
        self._search = network.ahead(self._cache) if isinstance(network, DraftsAhead) else None
        self._is_searching = False  # as far as is known
        self._searched = 0  # tokens that the last search behind a pass was made behind, 0 if it is of no use
        self._plan: DraftPlan | None = None  # of the tree for this pass, and for the search behind it

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """See `Drafter`: nothing where the hidden state of the token before the last is not known."""
        self._learn(tokens)
        self._before, self._guesses, self._made, self._plan = len(tokens), None, 0, None
        plan = self._eagle.plan(budget)
        if plan is None:
            return NOTHING
        found = self._found_behind(tokens) or self._found(tokens, plan)
        if found is None:
            return NOTHING
        tried, appended = found
        tree, self._made, self._plan = self._calibrated(tried, budget), len(tried.seconds), plan
        self._eagle.record(tried, appended, tree, budget)
        return tree

    def search_behind(self, step: NextToken, start: int) -> DraftAhead | None:
        """See `Drafter`. What is tried is what was worth trying in this pass."""
        search, plan, self._plan = self._search, self._plan, None
        if search is None or plan is None:
            return None
        memory = self._known.memory_behind(start, step.rows)
        if memory is None:
            return None
        search.behind(step, start, memory, plan)
        self._is_searching = True
        return search

    def _end_search(self) -> Tried | None:
        """What the one that is under way has found, if there is one."""
        if self._search is None or not self._is_searching:
            return None
        tried = self._search.tried()
        self._is_searching = False
        return tried

    def _found_behind(self, tokens: Tokens) -> tuple[Tried, int] | None:
        """By the search behind the last pass, with the rows that it appended."""
        tried, before, self._searched = self._end_search(), self._searched, 0
        search = self._search
        if search is None or tried is None or before != len(tokens) or int(tokens[-1]) != search.root:
            return None
        self._known.rows_written(search.rows)
        return tried, search.rows

    def _found(self, tokens: Tokens, plan: DraftPlan) -> tuple[Tried, int] | None:
        """By one that is made now; None if the last hidden state is not known."""
        kept, parts = self._known.missing(tokens)
        if not parts:
            return None
        network = self._eagle.network
        self._known.cut(kept)  # first: after an error or an interrupt it never knows of rows that are gone
        if kept < self._cache.length:
            network.truncate(self._cache, kept)
        for rows in parts[:-1]:
            network.append(self._cache, rows)
        tried = network.run(self._cache, parts[-1], plan)
        self._known.appended(parts)
        return tried, sum(len(rows.tokens) for rows in parts)

    def rests(self) -> int:
        """See `Drafter`."""
        return self._eagle.rests()

    def accepted(self, accepted: Accepted) -> None:
        """See `Drafter`. What became of guesses shows in the tokens of the next call of `propose`."""
        count = len(accepted.tokens)
        self._searched = accepted.start + count + 1 if accepted.searched else 0
        if accepted.searched:
            self._known.states_written(accepted.start, count)
            return
        self._end_search()  # it reads what is written now
        self._known.tell(accepted.start, count, accepted.hidden)

    def settled(self, gained: float) -> None:
        """See `Drafter`."""
        self._eagle.settled(gained)

    def verified(self, depth: int) -> None:
        """See `Drafter`."""
        if self._made:
            self._eagle.reach.learn(depth, self._made)

    def _learn(self, tokens: Tokens) -> None:
        for token in tokens[self._before :].tolist():
            if self._guesses is None:
                return
            self._guesses = self._guesses.follow(token, self._eagle.calibration)

    def _calibrated(self, tried: Tried, budget: Budget) -> DraftTree:
        """The likeliest of what was tried, with chances as guesses of such probabilities have them."""
        along = [exp(min(0.0, logprob)) for logprob in tried.logprobs]
        best = DraftTree(tried.tokens, tried.parents, along).best(budget.rows)
        here: list[Guesses] = []
        chances: list[float] = []
        self._guesses = root = Guesses()
        for token, parent, reached in zip(best.tokens, best.parents, best.chances, strict=True):
            before = best.chances[parent] if parent >= 0 else 1.0
            probability = min(1.0, reached / before) if before > 0 else 0.0
            around = here[parent] if parent >= 0 else root
            around.probabilities[token] = probability
            here.append(around.behind.setdefault(token, Guesses()))
            chance = self._eagle.calibration.chance(probability)
            chances.append(chance * (chances[parent] if parent >= 0 else 1.0))
        return DraftTree(best.tokens, best.parents, chances)
