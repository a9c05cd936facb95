"""A suffix automaton over token ids that grows token by token: what came after what, and how often.

The construction is that of Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985),
for several sequences: each starts anew at the root, so that no string runs across two of them. A state stands
for the strings that have ended at the same places; its link is the state of the longest ends of those strings
that have ended elsewhere too. Occurrences are counted as they come, along the links from the newest end. In a
text such as "aaaa" that walk would be as long as the text: strings of more than COUNTED tokens are not
counted, and a match has at most MATCHED tokens, so that what comes behind it is counted.

A token of ordinary text costs 2 to 3 microseconds and 120 bytes, one of a periodic text three times as long.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from heapq import nlargest

COUNTED = 32
"""Longest string that is counted, in tokens. How likely it is that a match goes on no longer grows with its
length there, and each token of a periodic text costs so many steps.
"""
MATCHED = COUNTED - 1
MANY = 32
"""Different tokens behind a state that are not all looked at."""
_BEFORE, _ROOT = 0, 1  # every token leads from _BEFORE to _ROOT, which ends each walk along the links
_NONE = -1


class SuffixAutomaton:
    """Every string of the sequences that it was given. Token ids are 0 or more."""

    def __init__(self) -> None:
        # Most states have one way on, so it stands in arrays; further ones are in dictionaries.
        self._token, self._target = array("i", [_NONE, _NONE]), array("i", [_NONE, _NONE])
        self._more: dict[int, dict[int, int]] = {}
        self._frequent: dict[int, tuple[int, list[int]]] = {}  # ways of a state when its were looked at
        self._length, self._link = array("i", [-1, 0]), array("i", [_BEFORE, _BEFORE])
        self._count = array("i", [0, 0])
        self._last = _ROOT
        self._end = Cursor(self, COUNTED)
        self.tokens = 0

    def __len__(self) -> int:
        """States: at most two for each token, and two more."""
        return len(self._length)

    def begin(self) -> None:
        """What comes next is another sequence."""
        self._last = _ROOT
        self._end = Cursor(self, COUNTED)

    def extend(self, tokens: Iterable[int]) -> None:
        """The present sequence goes on; amortized constant time for each token."""
        links, counts, end = self._link, self._count, self._end
        for token in tokens:
            self._last = self._append(self._last, token)
            end.step(token)
            state = end.state
            while state != _ROOT:
                counts[state] += 1
                state = links[state]
            self.tokens += 1

    def _append(self, last: int, token: int) -> int:
        """The state of the whole sequence after `token`, where `last` is that of the whole before it."""
        first, target, more, links = self._token, self._target, self._more, self._link
        at, known = last, self.follow(last, token)
        if known:
            new = _NONE
        else:
            new = self._state(self._length[last] + 1, _NONE, _NONE, 0, 0)
            while True:
                if first[at] == _NONE:
                    first[at], target[at] = token, new
                elif first[at] == token:
                    known = target[at]
                    break
                elif at not in more:
                    more[at] = {token: new}
                elif not (known := more[at].get(token, 0)):
                    more[at][token] = new
                else:
                    break
                if not (at := links[at]):
                    known = _ROOT
                    break
        if self._length[known] != self._length[at] + 1:
            known = self._split(at, token, known)
        if new == _NONE:
            return known
        links[new] = known
        return new

    def _state(self, length: int, token: int, target: int, link: int, count: int) -> int:
        self._length.append(length)
        self._token.append(token)
        self._target.append(target)
        self._link.append(link)
        self._count.append(count)
        return len(self._length) - 1

    def _split(self, at: int, token: int, whole: int) -> int:
        """The state of those strings of `whole` that are as short as the way from `at`: they have ended
        elsewhere than the longer ones.
        """
        links, first, more = self._link, self._token, self._more
        part = self._state(
            self._length[at] + 1, first[whole], self._target[whole], links[whole], self._count[whole]
        )
        if whole in more:
            more[part] = more[whole].copy()
        links[whole] = part
        while at and self.follow(at, token) == whole:
            if first[at] == token:
                self._target[at] = part
            else:
                more[at][token] = part
            at = links[at]
        return part

    def follow(self, state: int, token: int) -> int:
        """The state behind a token; 0 if it has never come there."""
        if self._token[state] == token:
            return self._target[state]
        others = self._more.get(state)
        return others.get(token, 0) if others else 0

    def shortened(self, state: int, length: int) -> int:
        """The state of the last `length` tokens of the strings of `state`."""
        lengths, links = self._length, self._link
        while lengths[links[state]] >= length:
            state = links[state]
        return state

    def suffix(self, state: int) -> tuple[int, int]:
        """The state of the longest end that has come elsewhere too, and its length."""
        link = self._link[state]
        return link, self._length[link]

    def continuations(self, state: int) -> tuple[int, list[tuple[int, int, int]]]:
        """The occurrences of all that has come behind a state's strings of at most MATCHED tokens, and
        (token, state, occurrences) of each. Of MANY different tokens or more the most frequent quarter of
        MANY is told, found anew when there are a fifth more: looking at all of them would take too long.
        """
        token, counts = self._token[state], self._count
        if token == _NONE:
            return 0, []
        others = self._more.get(state)
        if not others:
            target = self._target[state]
            return counts[target], [(token, target, counts[target])]
        if len(others) < MANY:
            found = [(token, target, counts[target]) for token, target in others.items()]
            found.append((token, self._target[state], counts[self._target[state]]))
            return sum(count for _, _, count in found), found
        ways, frequent = self._frequent.get(state, (0, []))
        if 5 * len(others) > 6 * ways:
            both = [token, *others]
            frequent = nlargest(MANY // 4, both, key=lambda each: counts[self.follow(state, each)])
            self._frequent[state] = len(others), frequent
        targets = [(token, self.follow(state, token)) for token in frequent]
        return counts[state], [(token, target, counts[target]) for token, target in targets]


class Cursor:
    """Follows a text in an automaton: the longest end of it, up to `most` tokens, that stands in there.

    state, length: of that end. The automaton may grow meanwhile; `settle` before use.
    """

    def __init__(self, automaton: SuffixAutomaton, most: int = MATCHED) -> None:
        self.automaton, self._most = automaton, most
        self.state, self.length = _ROOT, 0

    def settle(self) -> None:
        """Find the state again after the automaton has grown, which may have split it."""
        self.state = self.automaton.shortened(self.state, self.length)

    def step(self, token: int) -> None:
        """The text goes on; amortized constant time."""
        automaton, length = self.automaton, self.length
        lengths, links = automaton._length, automaton._link
        state = self.state
        while lengths[links[state]] >= length:  # as in `shortened`; calls would take half of the time
            state = links[state]
        while not (after := automaton.follow(state, token)):
            state = links[state]
            length = lengths[state]
            if state == _BEFORE:
                after = _ROOT
                break
        if length < self._most:
            length += 1
        while lengths[links[after]] >= length:
            after = links[after]
        self.state, self.length = after, length
