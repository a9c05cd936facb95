"""Which guesses are worth a row of the pass: expected tokens against the measured cost of rows, V(n,
depth).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.engine.costs import Curve
from edge.engine.speculative.tree import NOTHING, DraftTree

_MARGIN = 1.02
"""What a choice must promise beside no guesses at all: costs and chances are estimates."""

_MOST = 63  # guesses that are looked at


def least_chance(rows: int, sequences: int, curve: Curve) -> float:
    """Of a guess that can pay for its row, beside `rows` others of `sequences` that decode."""
    return min(max(curve.least_share(rows, _MOST) * sequences, 0.01), 1.0)


def choose(trees: Sequence[DraftTree], rows: int, sequences: int, curve: Curve, most: int) -> list[DraftTree]:
    """Of all trees of a pass the nodes that together bring most tokens per second.

    The pass has `rows` rows without them, in which `sequences` decode, and has room for `most` more. A node
    that is verified brings its chance of a token to its sequence; so the best n of all trees are those with
    the highest chances, and n is where (sequences + their sum) / V(rows + n) is highest. Trees with groups of
    soft rows have those behind their roots in any case, and n nodes take n (1 + group) rows beside them.
    """
    each, roots = 1 + max((tree.group for tree in trees), default=0), sum(tree.group for tree in trees)
    room = (most - roots) // each
    if most < roots:
        return [NOTHING for _ in trees]
    if room < 1 or not any(map(len, trees)):
        return [tree.best(0) for tree in trees]
    chances = np.sort(np.concatenate([tree.chances for tree in trees]))[::-1][: min(room, _MOST)]
    seconds = curve.extra(rows + roots, each * len(chances))[::each]
    speeds = (sequences + np.cumsum(chances, dtype=np.float64)) / seconds[1:]
    best = int(np.argmax(speeds))
    count = best + 1 if speeds[best] >= _MARGIN * sequences / seconds[0] else 0
    return _shares(trees, chances[best] if count else np.inf, count)


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
