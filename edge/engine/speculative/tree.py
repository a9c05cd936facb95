"""The tree of guesses that one pass verifies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class DraftTree:
    """Guesses at how a sequence goes on behind its last token, the root, which is no part of the tree.

    tokens: of the nodes. parents: the index of an earlier node, -1 for the root; the children of one node
    have different tokens. chances: the estimated probability that the target draws the whole path from the
    root to this node; no higher than the parent's. Of each there is one for every node: lists, as arrays so
    small take longer. group: soft rows that stand behind the root and behind each node, one behind the other
    (`Drafter.soft`); that may be all that is wanted.
    """

    tokens: list[int]
    parents: list[int]
    chances: list[float]
    group: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def rows(self) -> int:
        """What it adds to a pass: its nodes and all groups."""
        return len(self) + self.group * (len(self) + 1)

    @classmethod
    def of(cls, nodes: Sequence[tuple[int, int, float]]) -> DraftTree:
        """From (token, parent, chance) of every node."""
        tokens, parents, chances = zip(*nodes, strict=True) if nodes else ((), (), ())
        return cls(list(tokens), list(parents), list(chances))

    def best(self, count: int) -> DraftTree:
        """The likeliest `count` nodes, in their order; a node never comes without its parent."""
        if count >= len(self):
            return self
        # Stable: of nodes that are alike the earlier stays, which may be the other's parent.
        likeliest = sorted(range(len(self)), key=self.chances.__getitem__, reverse=True)
        return self._only(sorted(likeliest[: max(0, count)]))

    def within(self, depth: int) -> DraftTree:
        """Without the nodes that are deeper."""
        if self.depth <= depth:
            return self
        return self._only([node for node, found in enumerate(self.depths) if found <= depth])

    def fitting(self, fits: Callable[[Sequence[int]], int]) -> DraftTree:
        """Without what may not come. fits: how many tokens of a path from the root may, one after another."""
        kept: set[int] = set()
        inner = set(self.parents)
        for leaf in range(len(self)):
            if leaf in inner:
                continue
            path = [leaf]
            while (parent := self.parents[path[-1]]) >= 0:
                path.append(parent)
            path.reverse()
            kept.update(path[: fits([self.tokens[node] for node in path])])
        return self if len(kept) == len(self) else self._only(sorted(kept))

    def likeliest_path(self) -> DraftTree:
        """Without branches: from the root always on to the likeliest child."""
        path: list[int] = []
        while children := self.children(path[-1] if path else -1):
            path.append(max(children, key=self.chances.__getitem__))
        return self._only(path)

    @cached_property
    def is_chain(self) -> bool:
        """Whether every node is the child of the one before it."""
        return self.parents == [*range(-1, len(self) - 1)]

    def children(self, node: int) -> list[int]:
        """Indices of the nodes whose parent is `node`."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    @cached_property
    def depths(self) -> list[int]:
        """Of every node, 1 for children of the root."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 1)
        return depths

    @property
    def depth(self) -> int:
        """Of the deepest node, 0 without any."""
        return max(self.depths, default=0)

    def positions(self, root: int = 0) -> npt.NDArray[np.int32]:
        """Of all rows of such a step as `masks` has, from 0 on."""
        ends = [0, *self.depths]
        groups = [end + place for end in ends for place in range(1, self.group + 1)]
        return np.array([*range(root), *(root + each for each in (*ends, *groups))], np.int32)

    def masks(self, root: int = 0) -> npt.NDArray[np.uint64]:
        """What a step of `root` tokens, the root, all nodes and their groups sees of itself: uint64 [root + 1
        + rows], see `SequenceStep.tree`.
        """
        masks = [(1 << at + 1) - 1 for at in range(root + 1)]
        for node, parent in enumerate(self.parents):
            masks.append(masks[root + parent + 1] | 1 << root + node + 1)
        for before in masks[root:]:
            for _ in range(self.group):
                before |= 1 << len(masks)
                masks.append(before)
        return np.array(masks, np.uint64)

    def _only(self, kept: Sequence[int]) -> DraftTree:
        """The nodes with these indices, ascending, among them every parent."""
        places = {node: place for place, node in enumerate(kept)}
        places[-1] = -1
        return replace(
            self,
            tokens=[self.tokens[node] for node in kept],
            parents=[places[self.parents[node]] for node in kept],
            chances=[self.chances[node] for node in kept],
        )


NOTHING = DraftTree.of(())
"""No guess at all."""
