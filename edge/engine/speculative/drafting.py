"""The guesses of one pass: who is asked, whose are verified, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

from edge.engine.costs import Curve, PassCosts
from edge.engine.speculative.choice import choose, least_chance, most_children
from edge.engine.speculative.drafter import Budget
from edge.engine.speculative.sequence import PassCost
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.executors.drafts import DraftAhead


class Speculating(Protocol):
    """What is used of a job, `edge.engine.scheduler.Job`."""

    decodes: bool
    tree: DraftTree
    error: BaseException | None

    @property
    def speculates(self) -> bool:
        """Whether it has a drafter."""

    def wants_to_guess(self) -> bool:
        """Whether it guesses in the pass that comes; asked once for each."""

    def take_search(self) -> DraftAhead | None:
        """See `SequenceSpeculation.take_search`."""

    def charge(self, seconds: float) -> None:
        """See `SequenceSpeculation.charge`."""

    @property
    def depth(self) -> int:
        """Rows of its cache."""

    def propose(self, budget: Budget) -> DraftTree:
        """Guesses behind its last token."""

    def settle(self, cost: PassCost) -> None:
        """What the pass took, see `SequenceSpeculation.settle`."""


def is_uniform(shares: Sequence[tuple[Speculating, int]]) -> bool:
    """Whether every row of a pass has logits: what rows cost follows from such passes alone."""
    return all(job.decodes and rows == 1 for job, rows in shares)


class Drafting:
    """Made before a pass, settled after it."""

    def __init__(
        self,
        shares: Sequence[tuple[Speculating, int]],
        costs: PassCosts,
        *,
        most_rows: int,
        most_in_tree: int,
        branches: bool,
    ) -> None:
        """Gives every job of the pass its `tree`. shares: the jobs and their rows without guesses. most_rows:
        of the pass. most_in_tree: rows of one step with a tree. branches: whether the executor takes more
        than chains.
        """
        started = perf_counter()
        self._jobs = [job for job, _ in shares]
        self._decoding = [job for job in self._jobs if job.decodes]
        self._rows = sum(rows for _, rows in shares)
        self._is_uniform = is_uniform(shares)
        self._plain: float | None = None  # seconds of the same pass without guesses
        for job in self._jobs:
            job.tree = NOTHING
        guessing = [job for job in self._decoding if job.wants_to_guess()]
        depth = max(job.depth for job in self._jobs) if guessing else 0
        curve = costs.curve(depth) if guessing and self._is_known(costs, depth) else None
        room = min(most_rows - self._rows, most_in_tree - 1)
        if curve is not None:
            (self._plain,) = curve.extra(self._rows, 0)
        self._end_searches()  # as late as can be, but not in the pass
        if curve is not None and room > 0:
            self._propose(guessing, curve, room, branches)
        self.seconds = perf_counter() - started

    def settle(self, seconds: float) -> None:
        """The pass took so long, drafting apart."""
        speculating = [job for job in self._decoding if job.speculates]
        if not speculating:
            return
        rows = max(1, sum(job.tree.rows for job in self._decoding))
        plain = seconds if self._plain is None else self._plain
        certain = self._is_uniform and self._plain is not None
        for job in speculating:
            extra = (seconds - plain) * job.tree.rows / rows
            job.settle(PassCost(seconds, plain, extra, len(self._decoding), certain))

    def _end_searches(self) -> None:
        """They are made one behind the other, so that whoever waits first waits for all."""
        searches = [(job, search) for job in self._decoding if (search := job.take_search()) is not None]
        if searches:
            started = perf_counter()
            for _, search in searches:
                search.wait()
            waited = (perf_counter() - started) / len(searches)
            for job, search in searches:
                job.charge(waited + search.seconds)

    def _is_known(self, costs: PassCosts, depth: int) -> bool:
        """A pass whose cost without guesses was not seen lately goes without them, so that it is."""
        return not self._is_uniform or costs.is_fresh(self._rows, depth)

    def _propose(self, jobs: list[Speculating], curve: Curve, room: int, branches: bool) -> None:
        sequences = len(self._decoding)
        budget = Budget(
            rows=room,
            depth=room,
            token_seconds=(self._plain or 0.0) / sequences,
            least_chance=least_chance(self._rows, sequences, curve),
            children=most_children(self._rows, sequences, curve),
        )
        trees = [_proposed(job, budget) for job in jobs]
        if not any(tree.rows for tree in trees):
            return
        if not branches:
            trees = [tree.likeliest_path() for tree in trees]
        chosen = choose(trees, self._rows, sequences, curve, room)
        for job, tree in zip(jobs, chosen, strict=True):
            job.tree = tree


def _proposed(job: Speculating, budget: Budget) -> DraftTree:
    try:
        return job.propose(budget)
    except Exception as error:  # of this job, as in the rest of a pass
        job.error = error
        return NOTHING
