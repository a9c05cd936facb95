"""Which guesses are worth a row of the pass: expected tokens against the measured cost of rows, V(n,
depth).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from edge.engine.costs import Curve
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.executors.drafts import MAX_BRANCHES

_MARGIN = 1.02
"""What a choice must promise beside no guesses at all: costs and chances are estimates."""

_MOST = 63  # guesses that are looked at


def least_chance(rows: int, sequences: int, curve: Curve) -> float:
    """Of a guess that can pay for its row, beside `rows` others of `sequences` that decode."""
    return min(max(curve.least_share(rows, _MOST) * sequences, 0.01), 1.0)


def most_children(rows: int, sequences: int, curve: Curve) -> int:
    """Of one token that can pay, beside `rows` others of `sequences` that decode: one is right at most. As if
    there were no further guesses in the pass, beside which its rows may cost less: then a few are missed.
    """
    return curve.most_sharing(rows, 1 / sequences, MAX_BRANCHES)


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
    chances = sorted([chance for tree in trees for chance in tree.chances], reverse=True)
    chances = chances[: min(room, _MOST)]
    seconds = curve.extra(rows + roots, each * len(chances))[::each]
    tokens, best, speed = float(sequences), 0, _MARGIN * sequences / seconds[0]
    for count, chance in enumerate(chances, 1):
        tokens += chance
        if (found := tokens / seconds[count]) > speed:
            best, speed = count, found
    return _shares(trees, chances[best - 1] if best else inf, best)


def _shares(trees: Sequence[DraftTree], threshold: float, count: int) -> list[DraftTree]:
    """The `count` best nodes; of those that are just at the threshold, the first trees get theirs."""
    above = [sum([chance > threshold for chance in tree.chances]) for tree in trees]
    left = count - sum(above)
    shares = []
    for tree, sure in zip(trees, above, strict=True):
        equal = min(left, tree.chances.count(threshold))
        left -= equal
        shares.append(tree.best(sure + equal))
    return shares
