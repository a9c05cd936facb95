"""Trees of a given size in place of those that pay, to see where they stop paying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from edge.engine.costs import Curve
from edge.engine.speculative import drafting, eagle, sequence
from edge.engine.speculative.eagle import Eagle
from edge.engine.speculative.tree import DraftTree
from edge.executors.drafts import MAX_BRANCHES

_NO_LIMIT = 1e9


@contextmanager
def trees_of(nodes: int | None) -> Iterator[None]:
    """Inside, every pass verifies the likeliest `nodes` guesses, whatever they cost; None changes nothing."""
    if nodes is None:
        yield
        return

    def choose(
        trees: Sequence[DraftTree], rows: int, sequences: int, curve: Curve, most: int
    ) -> list[DraftTree]:
        return [tree.best(min(nodes, most)) for tree in trees]

    with (
        patch.object(drafting, "choose", choose),
        patch.object(drafting, "least_chance", lambda *_: 0.01),
        patch.object(drafting, "most_children", lambda *_: MAX_BRANCHES),
        patch.object(sequence, "_MOST_LOST", _NO_LIMIT),
        patch.object(sequence, "_AT_FIRST", nodes),
        patch.object(Eagle, "_cost", lambda *_: 0.0),
        patch.object(eagle, "_LEARNED", 0.0),  # what plans give, which stays above that
        patch.object(eagle, "_LEAST_WON", -_NO_LIMIT),
    ):
        yield
