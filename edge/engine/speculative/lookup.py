"""Guesses by looking up: what came before behind the same tokens, in this sequence and in others.

Follows SuffixDecoding (Oliaro et al. 2025, section 4), a tree grown by frequency from the longest match, but
with an automaton, and with chances that are learned from what came of earlier guesses.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.match_chances import MatchChances
from edge.engine.speculative.suffix_automaton import MATCHED, Cursor, SuffixAutomaton
from edge.engine.speculative.tree import NOTHING, DraftTree
from edge.errors import EdgeError

GENERATION = 65536
"""Tokens of an automaton, at 120 bytes each; a sequence and what is shared have up to two."""
_SHARED_AT_ONCE = 8192  # newest tokens of a sequence that others get: 30 ms
_SHORTER = 2  # ends of a match that are tried where it says little
_ENOUGH = 0.5  # chance at which it says enough


class TokenIndex:
    """Sequences by what occurs in them, of bounded size: two automata, of which the older one is dropped when
    the younger is full. limit: tokens of one.
    """

    def __init__(self, limit: int = GENERATION) -> None:
        self._limit = limit
        self.automata = [SuffixAutomaton()]

    def begin(self) -> None:
        """What comes next is another sequence."""
        self.automata[0].begin()

    def extend(self, tokens: Sequence[int]) -> None:
        """The present sequence goes on."""
        try:
            while tokens:
                room = self._limit - self.automata[0].tokens
                self.automata[0].extend(tokens[:room])
                tokens = tokens[room:]
                if self.automata[0].tokens >= self._limit:
                    self.automata = [SuffixAutomaton(), self.automata[0]]
        except BaseException:  # an interrupt may leave a half-made state, in which a walk never ends
            self.automata = [SuffixAutomaton()]
            raise


class LookupMemory:
    """What all sequences of a model share: the tokens of finished ones, and how well guesses have done.

    lock: held while it is used. A pass may look up for some sequences while another one ends in its own
    thread.
    """

    def __init__(self, limit: int = GENERATION) -> None:
        self.index, self.chances = TokenIndex(limit), MatchChances()
        self.lock = threading.Lock()

    def remember(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> None:
        """Take in the tokens of a sequence, of a saved session for instance; of more than twice the limit the
        last ones stay. About 3 microseconds a token.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0)):
            raise EdgeError("These are no tokens to look up in; give a list of ids that are 0 or more.")
        with self.lock:
            self.index.begin()
            self.index.extend(ids.tolist())


def newest(sequences: Iterable[Tokens], most: int) -> list[Tokens]:
    """Of sequences, oldest first, the last ones that have `most` tokens together, the first of them cut."""
    found: list[Tokens] = []
    for tokens in reversed(list(sequences)):
        if most <= 0:
            break
        found.append(tokens[-most:])
        most -= len(tokens)
    return found[::-1]


class LookupDrafter(Drafter):
    """Looks up the end of a sequence in itself, prompt and answer, and in what `memory` holds of others."""

    def __init__(self, memory: LookupMemory) -> None:
        self._memory = memory
        self._own, self._text = TokenIndex(), array("i")
        self._shared = 0  # tokens of the text that the others have
        self._automata: list[SuffixAutomaton] = []  # which the cursors are in
        self._cursors: list[Cursor] = []
        self._guesses: list[dict[int, tuple[int, int]]] = []  # children of nodes, by token: (node, bucket)
        self._node = -1  # of the guesses: as far as the text has followed them

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """See `Drafter`. Takes some 20 to 100 microseconds, and 5 for each token that is new."""
        with self._memory.lock:
            return self._proposed(tokens, budget)

    def _proposed(self, tokens: Tokens, budget: Budget) -> DraftTree:
        known, tail = len(self._text), min(MATCHED, len(self._text))
        if (
            known > len(tokens)
            or self._text[known - tail :].tolist() != tokens[known - tail : known].tolist()
        ):
            self._cut(_alike(self._text, tokens))
        self._append(tokens[len(self._text) :].tolist())
        self._find_places()
        growth = _Growth(self._memory.chances, budget)
        own = len(self._own.automata)
        for which, cursor in enumerate(self._cursors):
            cursor.settle()
            growth.start(cursor, source=int(which >= own))
        growth.grow()
        self._guesses, self._node = growth.children, 0
        return DraftTree.of(growth.nodes) if growth.nodes else NOTHING

    def accepted(self, accepted: Accepted) -> None:
        """See `Drafter`. Guesses are learned from as soon as it is known how the text went on, whether they
        were verified or not.
        """
        start, tokens = accepted.start, accepted.tokens
        if start > len(self._text):  # it has not been told of all; the next guess is for the whole sequence
            return
        same = start + _alike(self._text[start : start + len(tokens)], tokens)
        with self._memory.lock:
            if same < len(self._text):
                self._cut(same)
            self._append(tokens[same - start :].tolist())

    def share(self) -> None:
        """Let others look up what is new in this sequence since the last time, an answer that is finished."""
        new = self._text[max(self._shared, len(self._text) - _SHARED_AT_ONCE) :]
        if new:
            self._memory.remember(new.tolist())
        self._shared = len(self._text)

    def close(self) -> None:
        """The sequence is given up; others may look it up."""
        self.share()

    def _cut(self, length: int) -> None:
        """The text goes on in another way behind its first `length` tokens. What came there may come again,
        so it stays in the index.
        """
        del self._text[length:]
        self._shared = min(self._shared, length)
        self._own.begin()
        self._cursors, self._automata, self._guesses = [], [], []

    def _append(self, tokens: list[int]) -> None:
        """The text goes on."""
        if len(tokens) > MATCHED:  # of a prompt; only its end can be in a match
            begin, tokens = tokens[:-MATCHED], tokens[-MATCHED:]
            self._own.extend(begin)
            self._text.extend(begin)
            self._cursors, self._automata, self._guesses = [], [], []
        for token in tokens:
            self._learn(token)
            self._find_places()
            for cursor in self._cursors:  # before the token is indexed: matches end before the text does
                cursor.step(token)
            self._own.extend([token])
            self._text.append(token)

    def _find_places(self) -> None:
        """A cursor in each automaton; new ones where there is another one now."""
        automata = [*self._own.automata, *self._memory.index.automata]
        if automata == self._automata:
            return
        followed = dict(zip(self._automata, self._cursors, strict=True))
        self._automata = automata
        self._cursors = [followed.get(each) or self._placed(each) for each in automata]

    def _placed(self, automaton: SuffixAutomaton) -> Cursor:
        cursor = Cursor(automaton)
        for token in self._text[-MATCHED:]:
            cursor.step(token)
        return cursor

    def _learn(self, token: int) -> None:
        """How the text went on behind the guesses that it has followed."""
        if not self._guesses:
            return
        children = self._guesses[self._node]
        for guess, (_, bucket) in children.items():
            self._memory.chances.learn(bucket, guess == token)
        if token in children:
            self._node = children[token][0]
        else:
            self._guesses = []


class _Growth:
    """A tree that grows where it is likeliest.

    nodes: (token, parent, chance). children: of the root and of every node, by token: (place in `children`,
    bucket of the guess).
    """

    def __init__(self, chances: MatchChances, budget: Budget) -> None:
        self.nodes: list[tuple[int, int, float]] = []
        self.children: list[dict[int, tuple[int, int]]] = [{}]
        self._chances, self._budget = chances, budget
        self._left, self._depths, self._ended = [1.0], [0], [False]  # of the root and of every node
        self._heap: list[tuple[float, int, int, SuffixAutomaton, int, int, int, int]] = []
        self._pushed = 0

    def start(self, cursor: Cursor, source: int) -> None:
        """Guesses behind a match; and behind its ends, while these have more to say."""
        state, length = cursor.state, cursor.length
        for _ in range(1 + _SHORTER):
            if not length or self._push(0, 1.0, cursor.automaton, state, length, source) >= _ENOUGH:
                return
            state, length = cursor.automaton.suffix(state)

    def grow(self) -> None:
        """Take the likeliest guess, and look up what comes behind it, while there are rows for it."""
        heap, rows, least = self._heap, self._budget.rows, self._budget.least_chance
        while heap and len(self.nodes) < rows:
            negative, _, parent, automaton, state, length, packed, bucket = heappop(heap)
            token, source, chance = packed >> 1, packed & 1, -negative
            known = self.children[parent].get(token)
            if known is None:
                # Another match may be as sure of another token: only one of them will come.
                left = self._left[parent]
                if left < chance:
                    chance = left
                    if chance < least or chance <= 0:
                        continue
                    if heap and chance < -heap[0][0]:
                        self._insert(chance, parent, automaton, state, length, packed, bucket)
                        continue
                node = len(self.children)
                self.nodes.append((token, parent - 1, chance))
                self.children[parent][token] = (node, bucket)
                self.children.append({})
                self._left[parent] -= chance
                self._left.append(chance)
                self._depths.append(self._depths[parent] + 1)
                self._ended.append(False)
            else:
                node = known[0]
                if not self._ended[node]:  # the likelier match goes on itself
                    continue
            if self._depths[node] < self._budget.depth:
                kept = min(length, MATCHED)
                found = self._push(node, chance, automaton, automaton.shortened(state, kept), kept, source)
                self._ended[node] = not found

    def _push(
        self, parent: int, chance: float, automaton: SuffixAutomaton, state: int, length: int, source: int
    ) -> float:
        """Guesses at what comes behind a match; the chance of the likeliest one, 0 if there is none."""
        total, found = automaton.continuations(state)
        least, best = self._budget.least_chance, 0.0
        for token, target, count in found:
            if 2 * count * chance < least * total:  # nothing that was learned makes it twice as likely
                continue
            bucket = self._chances.bucket(source, length, count, total)
            likely = chance * self._chances.chance(bucket, source, length, count, total)
            if likely > best:
                best = likely
            if likely >= least:
                self._insert(likely, parent, automaton, target, length + 1, token << 1 | source, bucket)
        return best

    def _insert(
        self,
        chance: float,
        parent: int,
        automaton: SuffixAutomaton,
        state: int,
        length: int,
        packed: int,
        bucket: int,
    ) -> None:
        self._pushed += 1  # of two that are as likely the first comes first
        heappush(self._heap, (-chance, self._pushed, parent, automaton, state, length, packed, bucket))


def _alike(text: array[int], tokens: Tokens) -> int:
    """How many tokens they have in common from the beginning on."""
    n = min(len(text), len(tokens))
    if text[:n].tolist() == tokens[:n].tolist():
        return n
    differ = np.flatnonzero(np.frombuffer(text, np.int32)[:n] != tokens[:n])
    return int(differ[0])
