"""Which rows a draft's cache has, and the hidden states that are there for further ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.engine.speculative.drafter import Tokens
from edge.executors.drafts import DraftRows, Floats, RowsMemory

_LARGEST_GAP = 16
"""Places that may be missing between two rows. After a larger gap, where a prefix came from a file for
instance, the rows before it tell little, and the cache begins anew."""


_RETAINED = 64
"""Hidden states that stay after their rows were made: the last row is made again where another token follows
it than was thought, after a cut for instance. Deeper cuts leave a gap of one row."""


class _Run:
    """Values of places that follow each other, in memory that grows by doubling."""

    def __init__(self, first: int, values: npt.NDArray[Any]) -> None:
        self.first = first
        self._begin, self._end = 0, len(values)  # of the memory that is in use
        self._own(np.array(values))

    @property
    def end(self) -> int:
        """The place behind the last."""
        return self.first + self._end - self._begin

    def values(self, first: int, end: int) -> npt.NDArray[Any]:
        """Of the places from `first` to `end`, which are inside; a view, valid until the next change."""
        begin = self._begin - self.first
        return self.memory[begin + first : begin + end]

    def append(self, values: npt.NDArray[Any]) -> None:
        """Of the places behind the last."""
        self._make_room(len(values))
        end = self._end + len(values)
        self.memory[self._end : end] = values
        self._end = end

    def address_behind(self, count: int) -> int:
        """Where the values of so many places behind the last can be written; valid until the next change."""
        self._make_room(count)
        return self._address + self._end * self._stride

    def written(self, count: int) -> None:
        """The values of so many places have been."""
        self._end += count

    def _make_room(self, count: int) -> None:
        if self._end + count > len(self.memory):
            used = self.memory[self._begin : self._end]
            memory = np.empty((2 * (len(used) + count), *used.shape[1:]), used.dtype)
            memory[: len(used)] = used
            self._begin, self._end = 0, len(used)
            self._own(memory)

    def _own(self, memory: npt.NDArray[Any]) -> None:
        self.memory, self._address, self._stride = memory, int(memory.ctypes.data), memory.strides[0]

    def cut(self, end: int) -> None:
        """Forget the places from `end` on."""
        self._end = min(self._end, max(self._begin, self._begin + end - self.first))

    def forget_before(self, first: int) -> None:
        """Forget the places before `first`."""
        gone = min(max(0, first - self.first), self._end - self._begin)
        self.first += gone
        self._begin += gone


def _put(runs: list[_Run], first: int, values: npt.NDArray[Any]) -> None:
    """Behind all that is there."""
    if runs and runs[-1].end == first:
        runs[-1].append(values)
    else:
        runs.append(_Run(first, values))


def _cut(runs: list[_Run], end: int) -> None:
    while runs and runs[-1].first >= end:
        runs.pop()
    if runs:
        runs[-1].cut(end)


class KnownRows:
    """Row i belongs to place i of the sequence: it is made of the hidden state there and the token after it.

    Rows are made as late as they are needed. Those that no later row sees never are.
    """

    def __init__(self, seen: int | None) -> None:
        """seen: rows, its own included, that the last row of a sequence depends on; None: all."""
        self._seen = seen
        self._rows: list[_Run] = []  # the tokens that the cache's rows were made of, without gaps in a run
        self._states: list[_Run] = []  # hidden states

    def tell(self, start: int, count: int, hidden: Floats | None) -> None:
        """Tokens stand at places `start` to `start + count` for good, with these hidden states; what was
        known from there on does not hold any more.
        """
        _cut(self._rows, start)
        _cut(self._states, start)
        first = 0 if self._seen is None else max(0, count - max(self._seen, _RETAINED))
        if hidden is not None and count:
            _put(self._states, start + first, hidden[first:count])
        if self._seen is not None:
            self._forget_before(start + count - max(self._seen, _RETAINED))

    def missing(self, tokens: Tokens) -> tuple[int, list[DraftRows]]:
        """(rows of the cache that hold, rows to append) for a draft behind the last of `tokens`, the whole
        sequence. The last of the rows to append, in pieces without gaps, is of the place before it; there are
        none if its hidden state is not known. They are valid until the next call of `tell`.
        """
        last = len(tokens) - 2
        states = [run for run in self._states if run.first <= last]
        if not states or states[-1].end <= last:
            return sum(run.end - run.first for run in self._rows), []
        kept, after = self._that_hold(tokens, last)
        parts = []
        for run in states:
            first, end = max(run.first, after), min(run.end, last + 1)
            if first < end:
                parts.append(DraftRows(first, tokens[first + 1 : end + 1], run.values(first, end)))
        ends = [after, *(part.position + len(part.tokens) for part in parts)]
        for index in reversed(range(len(parts))):
            if parts[index].position - ends[index] > _LARGEST_GAP:
                return 0, parts[index:]
        return kept, parts

    def appended(self, parts: Sequence[DraftRows]) -> None:
        """What `missing` gave is in the cache now, behind the rows that hold."""
        for rows in parts:
            _put(self._rows, rows.position, rows.tokens)
        self._forget_before(self._rows[-1].end - _RETAINED)

    def memory_behind(self, start: int, count: int) -> RowsMemory | None:
        """For so many rows, the first of which is of the place `start`; None if these do not follow what is
        known.
        """
        rows, states = self._rows, self._states
        if not rows or not states or rows[-1].end != start or states[-1].end != start:
            return None
        tokens, hidden = rows[-1].address_behind(count), states[-1].address_behind(count)
        return RowsMemory(tokens, hidden, (rows[-1].memory, states[-1].memory))

    def states_written(self, start: int, count: int) -> None:
        """Hidden states of tokens that stand for good, from the place `start` on, have been written there."""
        if self._states and self._states[-1].end == start:
            self._states[-1].written(count)

    def rows_written(self, count: int) -> None:
        """So many tokens were, and the rows are in the cache."""
        self._rows[-1].written(count)
        self._forget_before(self._rows[-1].end - _RETAINED)

    def cut(self, rows: int) -> None:
        """The cache has no more than its first rows."""
        for index, run in enumerate(self._rows):
            if run.end - run.first >= rows:
                run.cut(run.first + rows)
                del self._rows[index + (rows > 0) :]
                return
            rows -= run.end - run.first

    def _that_hold(self, tokens: Tokens, last: int) -> tuple[int, int]:
        """(rows of the cache, the place behind them) before the last place, whose row is made again: a draft
        goes on from it.
        """
        kept = after = 0
        for run in self._rows:
            end = min(run.end, last)
            if end <= run.first:
                break
            same = run.values(run.first, end) == tokens[run.first + 1 : end + 1]
            count = len(same) if same.all() else int(np.argmin(same))
            kept += count
            after = run.first + count if count else after
            if run.first + count < run.end:
                break
        return kept, after

    def _forget_before(self, first: int) -> None:
        states = self._states
        while states and states[0].end <= first:
            del states[0]
        if states:
            states[0].forget_before(first)
