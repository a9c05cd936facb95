"""Guesses that do not pay are given up soon, and tried again later; what is told of them adds up."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from edge.engine.costs import PassCosts
from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.drafting import Drafting
from edge.engine.speculative.sequence import PassCost, SequenceSpeculation
from edge.engine.speculative.track_record import TrackRecord
from edge.engine.speculative.tree import NOTHING, DraftTree

BUDGET = Budget(rows=8, depth=4, token_seconds=1.0, least_chance=0.1)


class Sleeper(Drafter):
    """Guesses one token, after a pause."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked, self.closed, self._seconds = 0, 0, seconds
        self.gained: list[float] = []
        self.left = 0  # passes of its rest

    def rests(self) -> int:
        return self.left

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        self.asked += 1
        time.sleep(self._seconds)
        return DraftTree.of([(5, -1, 0.9), (6, 0, 0.8), (7, -1, 0.1), (8, 1, 0.7), (9, 3, 0.6), (1, 4, 0.5)])

    def accepted(self, accepted: Accepted) -> None:
        pass

    def settled(self, gained: float) -> None:
        self.gained.append(gained)

    def close(self) -> None:
        self.closed += 1


def proposed(speculation: SequenceSpeculation, budget: Budget = BUDGET) -> DraftTree:
    """What a pass gets of it."""
    if not speculation.is_awake():
        return NOTHING
    return speculation.propose(np.arange(3, dtype=np.int32), budget)


def passes(speculation: SequenceSpeculation, count: int, *, right: int, extra: float) -> list[int]:
    """Nodes of each pass, which costs a second, and `extra` with guesses, of which `right` are accepted."""
    sizes = []
    for _ in range(count):
        tree = proposed(speculation)
        accepted = min(right, tree.depth)
        sizes.append(len(tree))
        speculation.count(tree, accepted, 1 + accepted)
        added = extra if len(tree) else 0.0
        speculation.settle(1 + accepted, PassCost(1.0 + added, 1.0, added, 1, True))
    return sizes


def test_what_does_not_pay_rests_ever_longer():
    drafter = Sleeper()
    speculation = SequenceSpeculation(drafter, "sleeper", TrackRecord())
    sizes = passes(speculation, 2000, right=0, extra=0.3)
    assert sizes[:3] == [2, 2, 0]  # two guesses of one level until some have paid; a second one is too many
    tried = [at for at, size in enumerate(sizes) if size]
    assert drafter.asked == len(tried) < 60
    rests = [b - a - 1 for a, b in pairwise(tried) if b - a > 1]
    assert rests[:6] == [24, 48, 96, 192, 384, 384]
    assert speculation.statistics.seconds < 2000 * 1.01


@pytest.mark.parametrize("needs_all", [False, True])
def test_early_in_a_rest_nobody_is_told_hidden_states(needs_all: bool):
    """So that passes may be plain ones; the last 16 before it is asked again have them, and every guess."""
    drafter = Sleeper()
    drafter.wants_hidden, drafter.needs_all_hidden = True, needs_all
    speculation = SequenceSpeculation(drafter, "sleeper", TrackRecord())
    wanted: list[bool] = []
    for _ in range(300):
        asked = drafter.asked
        passes(speculation, 1, right=0, extra=0.3)
        wanted.append(speculation.wants_hidden)
        if drafter.asked > asked:
            assert all(wanted[-17:-1])
    assert all(wanted) == needs_all and wanted.count(True) > 30


def test_a_drafter_that_rests_for_all_is_not_asked():
    """Nor told hidden states, until 16 passes before it is asked again."""
    drafter = Sleeper()
    drafter.wants_hidden = True
    speculation = SequenceSpeculation(drafter, "sleeper", TrackRecord())
    wanted = []
    for drafter.left in range(40, -1, -1):
        speculation.is_awake()
        wanted.append(speculation.wants_hidden)
    assert wanted == [False] * 24 + [True] * 17
    assert passes(speculation, 1, right=1, extra=0.1) == [2] and drafter.asked == 1
    drafter.left = 1
    assert passes(speculation, 1, right=1, extra=0.1) == [0] and drafter.asked == 1


def test_time_of_drafting_counts():
    drafter = Sleeper(0.02)
    speculation = SequenceSpeculation(drafter, "sleeper", TrackRecord())
    cost = PassCost(0.01, 0.01, 0.0, 1, True)
    for _ in range(30):
        proposed(speculation)
        speculation.settle(2, cost)
    assert drafter.asked < 10 and not speculation.is_awake()


def test_what_pays_goes_on():
    speculation = SequenceSpeculation(Sleeper(), "sleeper", TrackRecord())
    assert all(passes(speculation, 300, right=2, extra=0.5))
    found = speculation.statistics
    assert found.largest_tree == 5
    assert passes(speculation, 1, right=2, extra=0.5) == [5]
    speculation.begin()
    passes(speculation, 300, right=2, extra=0.5)
    found = speculation.statistics
    assert found.mean_accepted_length == 3 and found.speedup == pytest.approx(2.0, rel=0.01)
    assert (found.passes, found.tokens, found.drafted, found.accepted) == (300, 900, 1500, 600)
    assert found.offered_at == (300,) * 4 and found.accepted_at == (300, 300, 0, 0)
    assert found.largest_tree == 5 and found.plain_tokens_per_second == pytest.approx(1.0)
    assert 0 <= found.draft_share < 0.01
    # After a bad stretch, and a good one, the next rest is short again.
    passes(speculation, 100, right=0, extra=0.5)
    passes(speculation, 300, right=2, extra=0.5)
    sizes = passes(speculation, 40, right=0, extra=0.5)
    assert sizes.count(0) >= 24 and any(sizes[-10:])


def test_one_unlucky_tree_is_no_reason_to_rest():
    """It may cost more than any token, where those that are right win more; two of them are one too many."""
    drafter = Sleeper()
    speculation = SequenceSpeculation(drafter, "sleeper", TrackRecord())
    passes(speculation, 1, right=1, extra=0.5)
    assert passes(speculation, 1, right=0, extra=1.9) == [5]
    assert drafter.gained == pytest.approx([0.5, -1.9], abs=0.01)
    assert all(passes(speculation, 8, right=4, extra=1.9))
    speculation = SequenceSpeculation(Sleeper(), "sleeper", TrackRecord())
    passes(speculation, 1, right=1, extra=0.5)
    assert passes(speculation, 3, right=0, extra=1.9) == [5, 5, 0]


def test_what_paid_elsewhere_is_trusted_at_first():
    """A sequence begins with whole trees, and may lose three tokens' time; behind a rest it begins small."""
    record = TrackRecord()
    assert all(passes(SequenceSpeculation(Sleeper(), "sleeper", record), 300, right=2, extra=0.5))
    assert record.patience == 3.0
    unlucky = SequenceSpeculation(Sleeper(), "sleeper", record)
    sizes = passes(unlucky, 34, right=0, extra=0.45)
    assert sizes[:10] == [5] * 8 + [0] * 2  # 3, and what one pass costs: that may be bad luck
    assert sizes[31:] == [0, 2, 0]
    for _ in range(20):
        passes(SequenceSpeculation(Sleeper(), "sleeper", record), 300, right=0, extra=0.5)
    assert record.patience == 0.0
    assert passes(SequenceSpeculation(Sleeper(), "sleeper", record), 1, right=0, extra=0.5) == [2]


def test_what_loses_little_by_little_rests_too():
    """A twentieth of a token a pass never adds up to much in eight passes."""
    record = TrackRecord()
    assert all(passes(SequenceSpeculation(Sleeper(), "sleeper", record), 300, right=2, extra=0.5))
    paid = SequenceSpeculation(Sleeper(), "sleeper", TrackRecord())
    passes(paid, 1, right=1, extra=0.05)
    for speculation, most in ((SequenceSpeculation(Sleeper(), "sleeper", record), 70), (paid, 55)):
        sizes = passes(speculation, 1000, right=0, extra=0.05)
        assert 20 < sizes.index(0) < most
        assert speculation.statistics.seconds < 1000 * 1.015


def test_what_a_prompt_costs_is_not_held_against_guesses():
    speculation = SequenceSpeculation(Sleeper(), "sleeper", TrackRecord())
    speculation.accepted(Accepted(0, np.zeros(200, np.int32)))
    assert passes(speculation, 2, right=0, extra=5.0) == [2, 2]  # the first with the prompt
    assert passes(speculation, 1, right=0, extra=5.0) == [0]


def test_nothing_is_concluded_from_what_is_not_certain():
    speculation = SequenceSpeculation(Sleeper(), "sleeper", TrackRecord())
    for _ in range(50):
        assert len(proposed(speculation))
        speculation.settle(1, PassCost(9.0, 1.0, 8.0, 1, False))


def test_a_tree_keeps_to_the_budget():
    speculation = SequenceSpeculation(Sleeper(), "sleeper", TrackRecord())
    assert proposed(speculation, Budget(3, 2, 1.0, 0.1)).tokens == [5, 7]
    speculation.settle(3, PassCost(1.1, 1.0, 0.1, 1, True))
    assert proposed(speculation, Budget(3, 2, 1.0, 0.1)).tokens == [5, 6, 7]
    assert proposed(speculation, Budget(5, 3, 1.0, 0.1)).tokens == [5, 6, 7, 8]


def test_time_of_drafting_counts_once():
    """A pass may come without being asked for guesses: at the end of an answer, or where costs are stale."""
    speculation = SequenceSpeculation(Sleeper(0.01), "sleeper", TrackRecord())
    proposed(speculation)
    cost = PassCost(1.0, 1.0, 0.0, 1, True)
    speculation.settle(1, cost)
    once = speculation.statistics.draft_seconds
    for _ in range(2):
        speculation.settle(1, cost)
    assert speculation.statistics.draft_seconds == once >= 0.01


def test_a_search_that_nobody_asked_about_lengthens_no_rest():
    """One behind the last pass before a rest: its cost is counted, but says nothing of guesses."""
    sizes, spent = [], []
    for seconds in (0.0, 5.0):
        speculation, found = SequenceSpeculation(Sleeper(), "sleeper", TrackRecord()), [1]
        for _ in range(80):
            if found[-1] == 0:
                speculation.charge(seconds)
            found += passes(speculation, 1, right=0, extra=0.9)
        sizes.append(found)
        spent.append(speculation.statistics.draft_seconds)
    assert sizes[0] == sizes[1] and sizes[0].count(0) > 40
    assert spent[1] - spent[0] == pytest.approx(5.0 * (sizes[0].count(0) - (sizes[0][-1] == 0)), abs=0.1)


class Waited:
    """A job that does not guess, with a search behind its last pass."""

    decodes, depth, speculates, tree, error = True, 9, True, NOTHING, None

    def __init__(self, wait: float, seconds: float) -> None:
        self.wait, self.seconds, self.charged = lambda: time.sleep(wait), seconds, 0.0

    def wants_to_guess(self) -> bool:
        return False

    def take_search(self) -> Waited:
        return self

    def charge(self, seconds: float) -> None:
        self.charged += seconds


def test_sequences_share_the_wait_for_their_searches():
    """Whoever comes first waits for all of them; what a search took of the pass is its own."""
    jobs = [Waited(0.05, 0.0), Waited(0.0, 1.0)]
    drafting = Drafting([(job, 1) for job in jobs], PassCosts(), most_rows=16, most_in_tree=16, branches=True)
    first, second = (job.charged for job in jobs)
    assert 0.025 <= first == pytest.approx(second - 1.0) and drafting.seconds >= 0.05
