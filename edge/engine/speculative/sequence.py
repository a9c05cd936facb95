"""Speculation for one sequence: its drafter, whether that pays, and what is told of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.track_record import TrackRecord
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.executors.drafts import DraftAhead
from edge.executors.protocol import NextToken
from edge.executors.soft import SoftPrompt
from edge.system.notices import notice

_WINDOW = 8  # passes with guesses that are looked at together
_MOST_LOST = 0.4  # tokens' time that they may lose together before the drafter rests: so much at first ...
_UNLUCKY = 1.0  # ... and once one has paid, this times what the dearest of them cost: one may be bad luck
_MOST_BLED, _MOST_SAVED = 1.5, 3.0  # tokens' time: lost little by little, before a rest; and won, that counts
_FEW_ROWS = 64  # of a pass with guesses, at most; more are of a prompt, or of plain passes during a rest
_MOST_UNTOLD = 512  # rows, whose hidden states take memory
_AT_FIRST = 2  # guesses in a tree, of one level, until then
_CATCH_UP = 16  # of a rest's last passes, whose hidden states a network is told before it is asked again
_FIRST_REST, _LONGEST_REST = 24, 384  # plain passes after guesses that did not pay, twice as many each time


@dataclass(frozen=True)
class SpeculationStatistics:
    """What speculation did for one answer.

    drafter: its name. passes: of the executor, after the prompt's. tokens: that they brought. drafted:
    guesses that were verified, in trees of largest_tree at most. accepted: of them. offered_at, accepted_at:
    by depth from 1 on, how many passes had a guess so deep and how many accepted one. draft_seconds: that
    drafting took. seconds: of all passes, drafting included. plain_seconds: what the same tokens would have
    taken one by one, after the plain passes of this run that were timed last; 0 if there were none.
    """

    drafter: str
    passes: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    largest_tree: int = 0
    offered_at: tuple[int, ...] = ()
    accepted_at: tuple[int, ...] = ()
    draft_seconds: float = 0.0
    seconds: float = 0.0
    plain_seconds: float = 0.0

    @property
    def mean_accepted_length(self) -> float:
        """Tokens per pass: 1 without any accepted guess."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def draft_share(self) -> float:
        """Of the time that drafting took."""
        return self.draft_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def plain_tokens_per_second(self) -> float:
        """Of decoding without guesses, 0 if not measurable."""
        return self.tokens / self.plain_seconds if self.plain_seconds > 0 else 0.0

    @property
    def speedup(self) -> float:
        """Over plain decoding, 0 if not measurable."""
        return self.plain_seconds / self.seconds if self.seconds > 0 else 0.0


class PassCost(NamedTuple):
    """What a pass was for one of its sequences that decode.

    seconds: it took, drafting apart. plain_seconds: the same pass takes without guesses. extra_seconds: what
    the guesses of this sequence added. sequences: that decode in it. is_certain: whether something can be
    concluded from it for one sequence.
    """

    seconds: float
    plain_seconds: float
    extra_seconds: float
    sequences: int
    is_certain: bool


@dataclass
class _Counts:
    passes: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    largest_tree: int = 0
    offered_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    seconds: float = 0.0
    plain_seconds: float = 0.0


class SequenceSpeculation:
    """Used by the scheduler and the answer that holds the sequence."""

    def __init__(self, drafter: Drafter, name: str, record: TrackRecord) -> None:
        """record: what such drafters have won elsewhere; this one is trusted so far, until it rests."""
        self.name = name
        self._record = record
        self._patience = record.patience
        self._drafter: Drafter | None = drafter  # None once it has failed
        self._counts = _Counts()
        self._rest = 0  # plain passes before guesses are tried again
        self._left = 0  # of them behind this pass, or of passes in which nobody asks the drafter
        self._next_rest = _FIRST_REST
        self._trial: list[tuple[float, float]] = []  # seconds won and spent by the latest passes with guesses
        self._balance = 0.0  # tokens' time, of all of them since it began or rested
        self._asked = False  # for guesses of this pass
        self._catches_up = False  # with a prompt, which takes time in that pass alone
        self._draft_seconds = 0.0  # of this pass
        self._search: DraftAhead | None = None  # behind the pass that comes
        self._searching: DraftAhead | None = None  # behind the last one
        self._has_paid = self._patience > 0  # since it began, or rested
        self._untold: list[Accepted] = []
        self._untold_rows = 0

    @property
    def wants_hidden(self) -> bool:
        """Whether the drafter needs the target's hidden states: not early in a rest, as they take time."""
        drafter = self._drafter
        if drafter is None or not drafter.wants_hidden:
            return False
        return drafter.needs_all_hidden or self._left <= _CATCH_UP

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers after which it needs them, see `Drafter.taps`."""
        return () if self._drafter is None else self._drafter.taps

    @property
    def soft(self) -> SoftPrompt | None:
        """What the soft rows of its trees are of, see `Drafter.soft`."""
        return None if self._drafter is None else self._drafter.soft

    @property
    def statistics(self) -> SpeculationStatistics:
        """Of the present answer."""
        counts = vars(self._counts)
        lists = {name: tuple(counts[name]) for name in ("offered_at", "accepted_at")}
        return SpeculationStatistics(self.name, **{**counts, **lists})

    def begin(self) -> None:
        """Another answer begins."""
        self._counts, self._draft_seconds = _Counts(), 0.0
        self._search = self._searching = None

    def end(self) -> None:
        """The answer has ended."""
        if self._drafter is None:
            return
        try:
            self._tell(self._drafter)
            self._drafter.close()
        except Exception as error:
            self._give_up(error)

    def is_awake(self) -> bool:
        """Whether it guesses in the pass that comes: not while its guesses have not paid lately."""
        self._asked, self._search = False, None  # an interrupt may have left them
        if self._rest > 0:
            self._rest -= 1
            self._left = self._rest
        elif self._drafter is not None:
            self._left = self._drafter.rests()
            return not self._left
        return False

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """The drafter's guesses. budget: rows of the pass; with soft rows a guess takes several."""
        group = 0 if self.soft is None else self.soft.count
        if budget.rows < group:
            return NOTHING
        if group:
            budget = budget._replace(
                rows=(budget.rows - group) // (1 + group),
                least_chance=min(1.0, (1 + group) * budget.least_chance),
            )
        if not self._has_paid:
            budget = budget._replace(rows=min(budget.rows, _AT_FIRST), depth=1)
        started, tree, self._asked = perf_counter(), NOTHING, True
        self._catches_up = self._catches_up or self._untold_rows > _FEW_ROWS
        if self._drafter is not None:
            try:
                self._tell(self._drafter)
                tree = self._drafter.propose(tokens, budget)
            except Exception as error:
                self._give_up(error)
        if len(tree):
            tree = tree.within(budget.depth).best(budget.rows)
        self._draft_seconds += perf_counter() - started
        return tree

    def search_behind(self, step: NextToken, start: int) -> None:
        """See `Drafter`."""
        if self._asked and self._drafter is not None:
            try:
                self._search = self._drafter.search_behind(step, start)
            except Exception as error:
                self._give_up(error)

    def pass_ended(self, count: int) -> bool:
        """Whether the search behind it is made behind `count` tokens, those that stay of it."""
        search, self._search = self._search, None
        self._searching = search
        return search is not None and search.rows == count

    @property
    def search_seconds(self) -> float:
        """That the last pass took for it."""
        return 0.0 if self._searching is None else self._searching.seconds

    def take_search(self) -> DraftAhead | None:
        """The search behind the last pass, once."""
        search, self._searching = self._searching, None
        return search

    def charge(self, seconds: float) -> None:
        """Drafting for the pass that comes has taken so long already."""
        self._draft_seconds += seconds

    def accepted(self, accepted: Accepted) -> None:
        """The drafter is told of it when it is asked next."""
        if self._drafter is None:
            return
        self._untold.append(accepted)
        self._untold_rows += len(accepted.tokens)
        if self._untold_rows > _MOST_UNTOLD:
            try:
                self._tell(self._drafter)
            except Exception as error:
                self._give_up(error)

    def count(self, tree: DraftTree, accepted: int, tokens: int) -> None:
        """A pass verified `tree`, accepted so many of its nodes, and brought so many tokens."""
        counts = self._counts
        counts.passes += 1
        counts.tokens += tokens
        deepest = tree.depth if len(tree) else 0
        if self._asked and self._drafter is not None:
            try:
                self._drafter.verified(deepest)
            except Exception as error:
                self._give_up(error)
        if not deepest:
            return
        counts.drafted += len(tree)
        counts.accepted += accepted
        counts.largest_tree = max(counts.largest_tree, len(tree))
        for depths, reached in ((counts.offered_at, deepest), (counts.accepted_at, accepted)):
            depths.extend([0] * (deepest - len(depths)))
            for depth in range(reached):
                depths[depth] += 1

    def settle(self, tokens: int, cost: PassCost) -> None:
        """The pass brought so many tokens at such a cost."""
        counts, token_seconds = self._counts, cost.plain_seconds / cost.sequences
        counts.draft_seconds += self._draft_seconds
        counts.seconds += cost.seconds + self._draft_seconds
        counts.plain_seconds += tokens * cost.plain_seconds
        spent = cost.extra_seconds + self._draft_seconds
        self._draft_seconds = 0.0  # the next pass may come without being asked for guesses
        catches_up, self._catches_up = self._catches_up, False
        if not (self._asked and cost.is_certain) or spent == 0 or catches_up:
            return
        gained = (tokens - 1) * token_seconds - spent
        self._record.learn(gained / token_seconds)
        if self._drafter is not None:
            try:
                self._drafter.settled(gained / token_seconds)
            except Exception as error:
                self._give_up(error)
        self._trial = [*self._trial[1 - _WINDOW :], (gained, spent)]
        self._has_paid = self._has_paid or gained > 0
        self._balance = min(_MOST_SAVED, self._balance + gained / token_seconds)
        won = sum(each for each, _ in self._trial)
        most_lost = max(_MOST_LOST, self._patience) * token_seconds
        if self._has_paid:
            most_lost += _UNLUCKY * max(each for _, each in self._trial)
        bled = self._balance * token_seconds
        if won < -most_lost or bled < -max(_MOST_BLED * token_seconds, most_lost):
            self._has_paid, self._patience, self._balance = False, 0.0, 0.0
            self._rest, self._next_rest = self._next_rest, min(_LONGEST_REST, 2 * self._next_rest)
            self._trial = []
        elif len(self._trial) == _WINDOW and won > 0:
            self._next_rest = _FIRST_REST

    def _tell(self, drafter: Drafter) -> None:
        for each in self._untold:
            drafter.accepted(each)
        self._untold.clear()
        self._untold_rows = 0

    def _give_up(self, error: Exception) -> None:
        """An answer is worth more than guesses at it: a drafter that fails is not asked again."""
        self._drafter = None
        self._untold.clear()
        notice(f"Guesses by '{self.name}' have ended, and the answer goes on without: {error}")
