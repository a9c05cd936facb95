"""The suffix automaton beside a search through the texts themselves."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter

import pytest

from edge.engine.speculative.suffix_automaton import MATCHED, Cursor, SuffixAutomaton

Texts = list[list[int]]


def ends(texts: Texts, string: list[int]) -> list[tuple[int, int]]:
    """Places behind the string: (text, position)."""
    n = len(string)
    return [
        (t, i) for t, text in enumerate(texts) for i in range(n, len(text) + 1) if text[i - n : i] == string
    ]


def longest_end(texts: Texts, text: list[int]) -> list[int]:
    """Of a text: the longest end of at most MATCHED tokens that stands in the texts."""
    for n in range(min(MATCHED, len(text)), 0, -1):
        if ends(texts, text[-n:]):
            return text[-n:]
    return []


def behind(texts: Texts, string: list[int]) -> Counter[int]:
    """The tokens that come behind a string, with how often."""
    return Counter(texts[t][i] for t, i in ends(texts, string) if i < len(texts[t]))


def indexed(texts: Texts) -> SuffixAutomaton:
    automaton = SuffixAutomaton()
    for text in texts:
        automaton.begin()
        for start in range(0, len(text), 7):  # in pieces
            automaton.extend(text[start : start + 7])
    return automaton


def check(automaton: SuffixAutomaton, cursor: Cursor, texts: Texts, text: list[int]) -> None:
    """What a cursor that has followed `text` finds is what stands in the texts."""
    match = longest_end(texts, text)
    cursor.settle()
    assert cursor.length == len(match)
    total, found = automaton.continuations(cursor.state)
    expected = behind(texts, match)
    assert {token: count for token, _, count in found} == expected
    assert total == expected.total()


@pytest.mark.parametrize("alphabet", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(6))
def test_matches_counts_and_continuations_are_those_of_a_search(alphabet: int, seed: int) -> None:
    draw = random.Random(seed)
    texts = [[draw.randrange(alphabet) for _ in range(draw.randrange(1, 60))] for _ in range(4)]
    texts.append(texts[0][5:40] + texts[1][:30])
    automaton = indexed(texts)
    assert automaton.tokens == sum(map(len, texts))
    assert len(automaton) <= 2 * automaton.tokens + 2
    followed = [draw.randrange(alphabet) for _ in range(20)] + texts[-1][10:] + [alphabet] + texts[2][3:]
    cursor = Cursor(automaton)
    for n, token in enumerate(followed, 1):
        cursor.step(token)
        check(automaton, cursor, texts, followed[:n])


@pytest.mark.parametrize("alphabet", [1, 2, 4])
def test_a_cursor_stays_right_while_the_automaton_grows(alphabet: int) -> None:
    """Before every token of the text itself is taken in: matches end before the present end."""
    draw = random.Random(alphabet)
    first = [draw.randrange(alphabet) for _ in range(30)]
    automaton, text = indexed([first]), list[int]()
    automaton.begin()
    cursor = Cursor(automaton)
    for _ in range(60):
        token = draw.randrange(alphabet)
        cursor.step(token)
        match = longest_end([first, text], [*text, token])
        assert cursor.length == len(match)
        automaton.extend([token])
        text.append(token)
        cursor.settle()
        _, found = automaton.continuations(cursor.state)
        assert {token for token, _, _ in found} == set(behind([first, text], match))


def test_shorter_ends_are_those_of_a_search() -> None:
    draw = random.Random(5)
    texts = [[draw.randrange(3) for _ in range(80)] for _ in range(3)]
    automaton, followed = indexed(texts), [draw.randrange(3) for _ in range(40)]
    cursor = Cursor(automaton)
    for token in followed:
        cursor.step(token)
    match = longest_end(texts, followed)
    state, length, seen = cursor.state, cursor.length, 0
    while length:
        _, found = automaton.continuations(state)
        assert {token: count for token, _, count in found} == behind(texts, match[-length:])
        longer = len(ends(texts, match[-length:]))
        state, length = automaton.suffix(state)
        # Every end between the two has the same places as the longer one.
        assert not length or len(ends(texts, match[-length:])) > longer
        seen += 1
    assert seen >= 3


def test_no_match_runs_across_two_sequences() -> None:
    automaton = indexed([[1, 2, 3], [4, 5, 6]])
    cursor = Cursor(automaton)
    for token in (2, 3, 4):
        cursor.step(token)
    assert cursor.length == 1
    cursor = Cursor(automaton)
    cursor.step(3)
    assert (cursor.length, automaton.continuations(cursor.state)) == (1, (0, []))


def test_of_many_continuations_the_frequent_ones_are_told() -> None:
    draw, automaton, counts = random.Random(4), SuffixAutomaton(), Counter[int]()
    cursor = Cursor(automaton)
    for n in range(1, 3000):
        token = int(1000 ** draw.random())
        counts[token] += 1
        automaton.begin()
        automaton.extend([0, token])
        if n % 100 == 0:
            cursor = Cursor(automaton)
            cursor.step(0)
            total, found = automaton.continuations(cursor.state)
            assert total == n
            assert all(counts[token] == count for token, _, count in found)
            assert {token for token, _ in counts.most_common(3)} <= {token for token, _, _ in found}
    assert len(counts) > 10 * len(found)


ADVERSARIAL = {
    "one token": [5] * 20000,
    "two in turn": [1, 2] * 10000,
    "a long period": list(range(300)) * 66,
    "growing runs": [token for run in range(200) for token in (*[1] * run, 2)],
    "a sequence of squares": [n * n % 17 for n in range(20000)],
}


@pytest.mark.parametrize("text", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_no_text_is_slow_or_large(text: list[int]) -> None:
    """The second half costs no more than the first one."""
    automaton = SuffixAutomaton()
    halves = []
    for half in (text[: len(text) // 2], text[len(text) // 2 :]):
        started = time.process_time()
        automaton.extend(half)
        halves.append((time.process_time() - started) / len(half))
    assert halves[1] < 4 * halves[0] + 5e-6
    assert max(halves) < 100e-6  # 3 to 9 microseconds on an idle machine
    assert len(automaton) <= 2 * len(text) + 2


def test_memory_of_a_token() -> None:
    """Words by Zipf's law, which branch more than a text does."""
    draw = random.Random(3)
    text = [int(20000 ** draw.random()) for _ in range(20000)]
    tracemalloc.start()
    try:
        automaton = SuffixAutomaton()
        automaton.extend(text)
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size / len(text) < 300
