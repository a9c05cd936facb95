"""Trees of guesses: parts of them, what their rows see, and which nodes a pass takes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from edge.engine.costs import Curve, PassCosts
from edge.engine.speculative.choice import choose, least_chance, most_children
from edge.engine.speculative.tree import NOTHING, DraftTree


def grown(seed: int, nodes: int) -> DraftTree:
    """A random tree whose chances fall along its paths."""
    numbers = np.random.default_rng(seed)
    found: list[tuple[int, int, float]] = []
    for node in range(nodes):
        parent = int(numbers.integers(-1, node))
        above = 1.0 if parent < 0 else found[parent][2]
        found.append((node + 100, parent, above * float(numbers.uniform(0.2, 1.0))))
    return DraftTree.of(found)


def path(tree: DraftTree, node: int) -> list[int]:
    """Tokens from the root to a node."""
    found: list[int] = []
    while node >= 0:
        found.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_trees_with_the_same_paths(seed):
    tree = grown(seed, 30)
    paths = {tuple(path(tree, node)) for node in range(30)}
    for part in (*(tree.best(count) for count in range(32)), *(tree.within(depth) for depth in range(9))):
        assert {tuple(path(part, node)) for node in range(len(part))} <= paths
    assert [len(tree.best(count)) for count in (0, 1, 7, 30, 31)] == [0, 1, 7, 30, 30]
    kept = tree.best(7)
    assert sorted(kept.chances) == sorted(np.sort(tree.chances)[-7:])
    assert [len(path(tree, node)) for node in range(30)] == tree.depths
    shallow = tree.within(2)
    assert len(shallow) == sum(depth <= 2 for depth in tree.depths) and shallow.depth <= 2


def test_equal_chances_keep_parents():
    tree = DraftTree.of([(5, -1, 0.5), (6, 0, 0.5), (7, 1, 0.5), (8, -1, 0.5)])
    for count in range(5):
        part = tree.best(count)
        assert len(part) == count and all(parent < node for node, parent in enumerate(part.parents))


@pytest.mark.parametrize("seed", range(3))
def test_a_row_sees_its_path(seed):
    tree = grown(seed, 20)
    masks = tree.masks()
    assert masks.dtype == np.uint64 and masks[0] == 1
    for node in range(20):
        seen = {bit for bit in range(21) if int(masks[node + 1]) >> bit & 1}
        assert [100 + bit - 1 for bit in sorted(seen - {0})] == path(tree, node) and 0 in seen


def test_the_likeliest_path():
    tree = DraftTree.of([(5, -1, 0.4), (6, -1, 0.5), (7, 0, 0.4), (8, 1, 0.1), (9, 1, 0.3)])
    chain = tree.likeliest_path()
    assert chain.tokens == [6, 9] and chain.is_chain and not tree.is_chain
    assert len(NOTHING.likeliest_path()) == 0 and NOTHING.is_chain


def measured(*seconds: float) -> PassCosts:
    """Costs of 1, 2, ... rows."""
    costs = PassCosts()
    for rows, each in enumerate(seconds, 1):
        costs.record(rows, 100, each)
    return costs


COSTS = measured(1.0, 1.2, 1.25, 1.35, 1.9, 2.0, 2.05, 2.1, 3.0, 3.5)
CURVE = COSTS.curve(100)


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all(seed):
    """Of two sequences, against every set of nodes that contains its parents."""
    trees = [grown(seed, 4), grown(seed + 50, 4)]

    def speed(chosen: list[DraftTree]) -> float:
        rows = 2 + sum(map(len, chosen))
        tokens = 2 + sum(sum(tree.chances) for tree in chosen)
        return tokens / float(COSTS.seconds(rows, 100) or 0)

    everything = [
        [
            DraftTree([0] * count, list(kept), [tree.chances[node] for node in kept])
            for count in range(5)
            for kept in combinations(range(4), count)
            if all(tree.parents[node] in (-1, *kept) for node in kept)
        ]
        for tree in trees
    ]
    best = max(speed([a, b]) for a in everything[0] for b in everything[1])
    chosen = choose(trees, 2, 2, CURVE, most=8)
    assert speed(chosen) == pytest.approx(best) or best < speed([NOTHING, NOTHING]) * 1.02
    few = choose(trees, 2, 2, CURVE, most=3)
    assert sum(map(len, few)) <= 3


def test_what_cannot_pay_is_not_chosen():
    unlikely = DraftTree.of([(5, -1, 0.1), (6, 0, 0.05)])
    assert [len(tree) for tree in choose([unlikely], 1, 1, CURVE, most=8)] == [0]
    assert [len(tree) for tree in choose([unlikely], 1, 1, CURVE, most=0)] == [0]
    assert choose([], 1, 1, CURVE, most=8) == []
    sure = DraftTree.of([(n, n - 1, 0.999**n) for n in range(8)])
    assert len(choose([sure], 1, 1, CURVE, most=8)[0]) == 7
    assert least_chance(1, 1, CURVE) == pytest.approx(0.35 / 3) == least_chance(1, 2, CURVE) / 2


@pytest.mark.parametrize("seed", range(20))
def test_no_more_children_are_chosen_than_can_pay(seed):
    """Of one token, whose chances add up to 1 at most."""
    numbers = np.random.default_rng(seed)
    curve = Curve(np.cumsum([1.0, *numbers.uniform(0.0, 0.3, 40)]))
    most = most_children(1, 1, curve)
    assert 1 <= most <= 16
    for _ in range(200):
        chances = numbers.dirichlet(np.full(16, numbers.choice([0.1, 1.0, 10.0])))
        tree = DraftTree.of([(at, -1, float(chance)) for at, chance in enumerate(sorted(chances)[::-1])])
        assert len(choose([tree], 1, 1, curve, most=16)[0]) <= most


def test_many_children_pay_where_rows_cost_nothing():
    flat, steep = Curve(np.linspace(1, 1.001, 41)), Curve(np.arange(1.0, 42.0))
    assert most_children(1, 1, flat) == 16 and most_children(1, 1, steep) == 1
    assert most_children(2, 2, flat) == 16 and most_children(2, 2, Curve(np.linspace(1, 5, 41))) == 5
