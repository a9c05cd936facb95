"""Two drafters as one: who is asked when, and what becomes of their trees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.together import Together, united
from edge.engine.speculative.tree import NOTHING, DraftTree

BUDGET = Budget(rows=8, depth=8, token_seconds=1.0, least_chance=0.1)
TOKENS = np.array([1, 2], np.int32)


class Planned(Drafter):
    """Proposes one tree, and notes what it is told."""

    def __init__(self, tree: DraftTree, wants_hidden: bool = False) -> None:
        self.tree, self.wants_hidden = tree, wants_hidden
        self.left = 0  # passes of its rest
        self.told: list[str] = []

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        self.told.append("propose")
        return self.tree

    def rests(self) -> int:
        return self.left

    def accepted(self, accepted: Accepted) -> None:
        self.told.append("accepted")

    def verified(self, depth: int) -> None:
        self.told.append(f"verified {depth}")

    def close(self) -> None:
        self.told.append("close")


def paths(tree: DraftTree) -> dict[tuple[int, ...], float]:
    """The tokens from the root to every node, and its chance."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return dict(zip(found, tree.chances, strict=True))


def test_paths_of_both_are_there_once():
    one = DraftTree.of([(5, -1, 0.5), (6, 0, 0.4), (7, -1, 0.1)])
    other = DraftTree.of([(8, -1, 0.3), (5, -1, 0.6), (6, 1, 0.2), (9, 1, 0.55), (4, 3, 0.5)])
    found = paths(united(one, other))
    wanted = {(5,): 0.6, (5, 6): 0.4, (7,): 0.1, (8,): 0.3, (5, 9): 0.55, (5, 9, 4): 0.5}
    assert found.keys() == wanted.keys()
    for path, chance in wanted.items():
        assert found[path] == pytest.approx(chance)


def test_soft_rows_are_those_of_the_second():
    one, other = DraftTree.of([(5, -1, 0.5)]), DraftTree.of([(6, -1, 0.5)])
    asks = replace(other, group=2)
    assert united(one, asks).group == united(NOTHING, asks).group == 2
    assert united(one, replace(NOTHING, group=2)).group == 2
    assert united(one, other).group == 0


def test_no_node_is_likelier_than_its_parent():
    one = DraftTree.of([(5, -1, 0.2), (6, 0, 0.2)])
    other = DraftTree.of([(5, -1, 0.1), (6, 0, 0.1), (7, 1, 0.1)])
    tree = united(one, other)
    for node, parent in enumerate(tree.parents):
        assert parent < node and (parent < 0 or tree.chances[node] <= tree.chances[parent])


@pytest.mark.parametrize("other", [NOTHING, DraftTree.of([(3, -1, 0.5)])])
def test_nothing_changes_nothing(other: DraftTree):
    assert paths(united(other, NOTHING)) == paths(other)
    assert paths(united(NOTHING, other)) == paths(other)


def test_the_second_is_asked_where_the_first_is_not_sure():
    sure = DraftTree.of([(5, -1, 0.9), (6, 0, 0.8)])
    first, second = Planned(sure), Planned(DraftTree.of([(7, -1, 0.4)]), wants_hidden=True)
    both = Together(first, second)
    assert both.wants_hidden
    assert paths(both.propose(TOKENS, BUDGET)) == paths(sure)
    both.verified(2)
    first.tree = DraftTree.of([(5, -1, 0.3)])
    assert paths(both.propose(TOKENS, BUDGET)).keys() == {(5,), (7,)}
    both.verified(1)
    first.tree = NOTHING
    assert paths(both.propose(TOKENS, BUDGET)).keys() == {(7,)}
    both.accepted(Accepted(0, TOKENS))
    both.close()
    assert first.told == ["propose", "verified 2", "propose", "verified 1", "propose", "accepted", "close"]
    assert second.told == ["propose", "verified 1", "propose", "accepted", "close"]


def test_the_second_is_not_asked_while_it_rests():
    first, second = Planned(DraftTree.of([(5, -1, 0.3)])), Planned(DraftTree.of([(7, -1, 0.4)]))
    both = Together(first, second)
    second.left = 3
    assert not both.rests() and paths(both.propose(TOKENS, BUDGET)).keys() == {(5,)}
    both.verified(1)
    second.left = 0
    assert paths(both.propose(TOKENS, BUDGET)).keys() == {(5,), (7,)}
    assert first.told == ["propose", "verified 1", "propose"] and second.told == ["propose"]
