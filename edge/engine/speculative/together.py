"""Two drafters as one: lookup costs next to nothing, and a network is asked where it knows too little."""

from __future__ import annotations

from dataclasses import replace

from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.tree import DraftTree
from edge.executors.drafts import DraftAhead
from edge.executors.protocol import NextToken

_SURE = 0.6
"""Chance of the likeliest first guess from which on nobody else is asked: more of the same token costs a step
of the network and saves nothing."""


class Together(Drafter):
    """`first` is asked always, `second` where that is not sure; what both guess is laid over each other."""

    def __init__(self, first: Drafter, second: Drafter) -> None:
        """Of the two only `second` may want hidden states or soft rows."""
        self._first, self._second = first, second
        self._asked = False  # the second, for the last tree
        self.wants_hidden, self.taps, self.soft = second.wants_hidden, second.taps, second.soft

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """See `Drafter`."""
        found = self._first.propose(tokens, budget)
        first = max((found.chances[child] for child in found.children(-1)), default=0.0)
        self._asked = not (first >= _SURE or self._second.rests())
        return united(found, self._second.propose(tokens, budget)) if self._asked else found

    def accepted(self, accepted: Accepted) -> None:
        """See `Drafter`."""
        self._first.accepted(accepted)
        self._second.accepted(accepted)

    def search_behind(self, step: NextToken, start: int) -> DraftAhead | None:
        """See `Drafter`: where the second was asked, as it will be again, more often than not."""
        return self._second.search_behind(step, start) if self._asked else None

    def verified(self, depth: int) -> None:
        """See `Drafter`."""
        self._first.verified(depth)
        if self._asked:
            self._second.verified(depth)

    def settled(self, gained: float) -> None:
        """See `Drafter`."""
        self._first.settled(gained)
        if self._asked:
            self._second.settled(gained)

    def close(self) -> None:
        """See `Drafter`."""
        self._first.close()
        self._second.close()


def united(one: DraftTree, other: DraftTree) -> DraftTree:
    """Every path of either tree; what is in both has the higher of its chances. The nodes of `one` come
    first, and soft rows are those of `other`.
    """
    if not len(one) or not len(other):
        return replace(one, group=other.group) if len(one) else other
    nodes = list(zip(one.tokens, one.parents, one.chances, strict=True))
    places = {(parent, token): node for node, (token, parent, _) in enumerate(nodes)}
    moved = [-1] * (len(other) + 1)  # place of each of the other's nodes; the last one is the root's
    added = zip(other.tokens, other.parents, other.chances, strict=True)
    for node, (token, parent, chance) in enumerate(added):
        above = moved[parent]
        place = places.setdefault((above, token), len(nodes))
        moved[node] = place
        if place == len(nodes):
            nodes.append((token, above, chance))
        else:
            nodes[place] = token, above, max(chance, nodes[place][2])
    for node, (token, parent, chance) in enumerate(nodes):  # none is likelier than what it hangs on
        if parent >= 0:
            nodes[node] = token, parent, min(chance, nodes[parent][2])
    return replace(DraftTree.of(nodes), group=other.group)
