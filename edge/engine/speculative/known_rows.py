"""Which rows a draft's cache has, and the hidden states that are there for further ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.engine.speculative.drafter import Tokens
from edge.executors.drafts import DraftRows, Floats

_LARGEST_GAP = 16
"""Places that may be missing between two rows. After a larger gap, where a prefix came from a file for
instance, the rows before it tell little, and the cache begins anew."""


_RETAINED = 64
"""Hidden states that stay after their rows were made: the last row is made again where another token follows
it than was thought, after a cut for instance. Deeper cuts leave a gap of one row."""


class KnownRows:
    """Row i belongs to place i of the sequence: it is made of the hidden state there and the token after it.

    Rows are made as late as they are needed. Those that no later row sees never are.
    """

    def __init__(self, seen: int | None) -> None:
        """seen: rows, its own included, that the last row of a sequence depends on; None: all."""
        self._seen = seen
        self._places = np.empty(0, np.int64)  # of the cache's rows, ascending
        self._tokens = np.empty(0, np.int32)  # that they were made of
        self._states: list[tuple[int, Floats]] = []  # first place, hidden states from there on; ascending

    def tell(self, start: int, count: int, hidden: Floats | None) -> None:
        """Tokens stand at places `start` to `start + count` for good, with these hidden states; what was
        known from there on does not hold any more.
        """
        self.cut(int(np.searchsorted(self._places, start)))
        states = self._states
        while states and states[-1][0] >= start:
            states.pop()
        if states:
            place, part = states[-1]
            states[-1] = place, part[: start - place]
        if hidden is not None and count:
            first = 0 if self._seen is None else max(0, count - max(self._seen, _RETAINED))
            states.append((start + first, np.array(hidden[first:count], np.float32)))
        if self._seen is not None:
            self._forget_before(start + count - max(self._seen, _RETAINED))

    def missing(self, tokens: Tokens) -> tuple[int, list[DraftRows]]:
        """(rows of the cache that hold, rows to append) for a draft behind the last of `tokens`, the whole
        sequence. The last of the rows to append, in pieces without gaps, is of the place before it; there are
        none if its hidden state is not known.
        """
        last = len(tokens) - 2
        states = [(place, part[: last + 1 - place]) for place, part in self._states if place <= last]
        if not states or states[-1][0] + len(states[-1][1]) - 1 != last:
            return len(self._places), []
        inside = self._places < last  # the last row is made again: a draft goes on from it
        same = inside & (tokens[np.minimum(self._places, max(0, last)) + 1] == self._tokens)
        kept = len(same) if same.all() else int(np.argmin(same))
        after = int(self._places[kept - 1]) + 1 if kept else 0
        parts = []
        for place, part in states:
            skipped = max(0, after - place)
            if skipped < len(part):
                parts.append((place + skipped, part[skipped:]))
        joined = _joined(parts)
        ends = [after, *(place + len(part) for place, part in joined)]
        for index, ((place, _), end) in reversed([*enumerate(zip(joined, ends, strict=False))]):
            if place - end > _LARGEST_GAP:
                kept, joined = 0, joined[index:]
                break
        return kept, [
            DraftRows(place, tokens[place + 1 : place + 1 + len(part)], part) for place, part in joined
        ]

    def appended(self, parts: Sequence[DraftRows]) -> None:
        """What `missing` gave is in the cache now, behind the rows that hold."""
        places = [np.arange(rows.position, rows.position + len(rows.tokens)) for rows in parts]
        self._places = np.concatenate([self._places, *places])
        self._tokens = np.concatenate([self._tokens, *(rows.tokens for rows in parts)])
        self._forget_before(int(self._places[-1]) + 1 - _RETAINED)

    def cut(self, rows: int) -> None:
        """The cache has no more than its first rows."""
        self._places, self._tokens = self._places[:rows], self._tokens[:rows]

    def _forget_before(self, first: int) -> None:
        states, gone = self._states, 0
        while gone < len(states) and states[gone][0] + len(states[gone][1]) <= first:
            gone += 1
        del states[:gone]
        if states and states[0][0] < first:
            place, part = states[0]
            states[0] = first, part[first - place :]


def _joined(parts: Sequence[tuple[int, Floats]]) -> list[tuple[int, Floats]]:
    """Pieces that follow each other as one."""
    joined: list[tuple[int, list[Floats]]] = []
    ends = -1
    for place, part in parts:
        if place == ends:
            joined[-1][1].append(part)
        else:
            joined.append((place, [part]))
        ends = place + len(part)
    return [(place, np.concatenate(group)) for place, group in joined]
