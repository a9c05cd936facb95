"""Which guesses are worth a row of the pass: expected tokens against the measured cost of rows, V(n,
depth).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.engine.costs import PassCosts
from edge.engine.speculative.tree import DraftTree

_MARGIN = 1.02
"""What a choice must promise beside no guesses at all: costs and chances are estimates."""

_ROUGH = (
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    63,
)  # numbers of guesses whose cost a least chance is taken from


def least_chance(rows: int, sequences: int, depth: int, costs: PassCosts) -> float:
    """Of a guess that can pay for its row, beside `rows` others of `sequences` that decode; 1 before any cost
    is known.
    """
    base = costs.seconds(rows, depth)
    if not base:
        return 1.0
    extra = ((costs.seconds(rows + guesses, depth) or base) - base for guesses in _ROUGH)
    a_row = min(cost / guesses for cost, guesses in zip(extra, _ROUGH, strict=True))
    return float(np.clip(a_row * sequences / base, 0.01, 1.0))


def choose(
    trees: Sequence[DraftTree], rows: int, sequences: int, depth: int, costs: PassCosts, most: int
) -> list[DraftTree]:
    """Of all trees of a pass the nodes that together bring most tokens per second.

    The pass has `rows` rows without them, in which `sequences` decode, and has room for `most` more. A node
    that is verified brings its chance of a token to its sequence; so the best n of all trees are those with
    the highest chances, and n is where (sequences + their sum) / V(rows + n) is highest.
    """
    chances = np.sort(np.concatenate([tree.chances for tree in trees] or [np.empty(0, np.float32)]))[::-1]
    chances = chances[:most]
    base = costs.seconds(rows, depth)
    if not chances.size or not base:
        return [tree.best(0) for tree in trees]
    tokens = sequences + np.concatenate([[0.0], np.cumsum(chances, dtype=np.float64)])
    seconds = [costs.seconds(rows + count, depth) or base for count in range(len(tokens))]
    speeds = tokens / np.array(seconds)
    count = int(np.argmax(speeds))
    if speeds[count] < speeds[0] * _MARGIN:
        count = 0
    return _shares(trees, chances[count - 1] if count else np.inf, count)


def _shares(trees: Sequence[DraftTree], threshold: float, count: int) -> list[DraftTree]:
    """The `count` best nodes; of those that are just at the threshold, the first trees get theirs."""
    above = [int(np.count_nonzero(tree.chances > threshold)) for tree in trees]
    left = count - sum(above)
    shares = []
    for tree, sure in zip(trees, above, strict=True):
        equal = min(left, int(np.count_nonzero(tree.chances == threshold)))
        left -= equal
        shares.append(tree.best(sure + equal))
    return shares
