"""Lookup: what it guesses, how sure it is of it, and that it follows what a session does."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from edge.engine.speculative.drafter import Accepted, Budget
from edge.engine.speculative.lookup import LookupDrafter, LookupMemory, TokenIndex, newest
from edge.engine.speculative.match_chances import MatchChances
from edge.engine.speculative.suffix_automaton import MATCHED, SuffixAutomaton
from edge.engine.speculative.tree import DraftTree
from edge.errors import EdgeError

WIDE = Budget(rows=32, depth=32, token_seconds=1e-2, least_chance=0.01)


def ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


def path_of(tree: DraftTree) -> list[int]:
    return tree.likeliest_path().tokens


def generate(
    drafter: LookupDrafter, text: list[int], more: list[int], budget: Budget = WIDE
) -> list[DraftTree]:
    """Let a text go on token by token, as it is decoded; the trees that were proposed."""
    trees = []
    drafter.accepted(Accepted(0, ids(text[:-1])))
    text = list(text)
    for token in more:
        trees.append(drafter.propose(ids(text), budget))
        drafter.accepted(Accepted(len(text) - 1, ids(text[-1:])))
        text.append(token)
    return trees


def continuations(texts: list[list[int]], text: list[int]) -> Counter[int]:
    """What came in the texts behind the longest end of `text` that stands there."""
    for n in range(min(MATCHED, len(text)), 0, -1):
        end, found = text[-n:], Counter[int]()
        for each in texts:
            found.update(each[i] for i in range(n, len(each)) if each[i - n : i] == end)
        if found:
            return found
    return Counter()


def test_a_copy_is_guessed_and_the_longer_the_match_the_surer() -> None:
    passage = list(range(100, 160))
    trees = generate(LookupDrafter(LookupMemory()), [*passage, 1, 2], passage)
    assert len(trees[0]) == 0  # nothing has come behind a 2
    for n, tree in enumerate(trees[1:40], 1):
        expected = [*passage[n:], 1, 2, *passage][: len(path_of(tree))]
        assert path_of(tree) == expected
        assert len(expected) >= min(n, 15)
    first = [tree.chances[0] for tree in trees[1:30]]
    assert first[0] < 0.4
    assert first[4] > 0.7
    assert first[19] > 0.95


def test_a_tree_is_one_and_keeps_to_the_budget() -> None:
    draw = random.Random(1)
    memory = LookupMemory()
    for _ in range(4):
        memory.remember([draw.randrange(6) for _ in range(200)])
    seen = 0
    for seed in range(20):
        text = [random.Random(seed).randrange(6) for _ in range(90)]
        budget = Budget(rows=1 + seed, depth=1 + seed % 5, token_seconds=1e-2, least_chance=0.02)
        tree = LookupDrafter(memory).propose(ids(text), budget)
        seen += len(tree)
        assert len(tree) <= budget.rows
        assert tree.depth <= budget.depth
        assert min(tree.chances) >= budget.least_chance
        for node, parent in enumerate(tree.parents):
            assert -1 <= parent < node
            assert tree.chances[node] <= (tree.chances[parent] if parent >= 0 else 1)
        for parent in range(-1, len(tree)):
            children = tree.children(parent)
            assert len({tree.tokens[child] for child in children}) == len(children)
            above = tree.chances[parent] if parent >= 0 else 1.0
            assert sum(tree.chances[child] for child in children) <= above + 1e-5
    assert seen > 50


@pytest.mark.parametrize("alphabet", [2, 3, 5])
def test_first_guesses_are_those_of_a_search(alphabet: int) -> None:
    draw, next_one = random.Random(alphabet), Budget(rows=32, depth=1, token_seconds=1e-2, least_chance=0.0)
    text, drafter, compared = list[int](), LookupDrafter(LookupMemory()), 0
    for _ in range(200):
        text.append(draw.randrange(alphabet))
        tree = drafter.propose(ids(text), next_one)
        found = set(tree.tokens)
        expected = set(continuations([text], text))
        compared += len(expected)
        # Shorter ends of the match may add others, none that never came behind the last token.
        assert found <= {b for a, b in pairwise(text) if a == text[-1]}
        assert expected <= found or sum(tree.chances) > 0.999
    assert compared > 150


def test_chances_are_frequencies_at_first() -> None:
    """Behind 7 8 came 1 three times and 2 once."""
    text = [7, 8, 1, 50, 7, 8, 1, 51, 7, 8, 2, 52, 7, 8, 1, 53, 7, 8]
    tree = LookupDrafter(LookupMemory()).propose(ids(text), WIDE)
    chances = MatchChances()
    children = {tree.tokens[child]: tree.chances[child] for child in tree.children(-1)}
    for token, count in {1: 3, 2: 1}.items():
        expected = chances.chance(chances.bucket(0, 2, count, 4), 0, 2, count, 4)
        assert children[token] == pytest.approx(expected)
    assert children[1] == pytest.approx(3 / (4 + 4 / 2**1.5))


def test_chances_go_to_the_share_of_guesses_that_come() -> None:
    """A pair is followed by what followed it before in 3 of 10 cases, whatever the formula says at first."""
    draw, memory, fresh = random.Random(2), LookupMemory(), 100
    predicted, right = list[float](), list[bool]()
    drafter, text = LookupDrafter(memory), [1]
    for turn in range(1500):
        pair = [10 + turn % 4, 20 + turn % 4]
        text += pair
        tree = drafter.propose(ids(text), WIDE)
        followed = 30 + turn % 4
        fresh += 1
        text.append(followed if draw.random() < 0.3 else fresh)
        best = dict(zip(tree.tokens, tree.chances, strict=True))
        if turn > 700:
            predicted.append(best.get(followed, 0.0))
            right.append(text[-1] == followed)
    assert np.mean(predicted) == pytest.approx(np.mean(right), abs=0.06)


def test_chances_differ_by_bucket() -> None:
    chances = MatchChances()
    good, bad = chances.bucket(0, 20, 1, 1), chances.bucket(0, 1, 1, 1)
    assert good != bad
    assert chances.bucket(1, 20, 1, 1) not in (good, bad)
    for n in range(2000):
        chances.learn(good, n % 10 != 0)
        chances.learn(bad, n % 10 == 0)
    assert chances.chance(good, 0, 20, 1, 1) == pytest.approx(0.9, abs=0.02)
    assert chances.chance(bad, 0, 1, 1, 1) == pytest.approx(0.1, abs=0.02)


def test_it_learns_from_guesses_that_were_not_verified() -> None:
    """All the same whether a tree was in the pass: a drafter that was switched off is tried again when its
    guesses come true.
    """
    memory = LookupMemory()
    passage = [*range(100, 130)]
    before = memory.chances.chance(memory.chances.bucket(0, 1, 1, 1), 0, 1, 1, 1)
    for n in range(30):
        drafter = LookupDrafter(memory)
        text = [*passage, 1, passage[n % 20]]
        tree = drafter.propose(ids(text), WIDE)
        assert tree.tokens[0] == text[n % 20 + 1]
        drafter.accepted(Accepted(len(text) - 1, ids([text[-1], text[n % 20 + 1]])))
    assert memory.chances.chance(memory.chances.bucket(0, 1, 1, 1), 0, 1, 1, 1) > 2 * before


def test_others_find_what_was_shared() -> None:
    memory = LookupMemory()
    first, second = LookupDrafter(memory), LookupDrafter(memory)
    answer = [*range(200, 230)]
    generate(first, [1, 2, 3], [*answer, 9])
    assert len(second.propose(ids([5, *answer[:6]]), WIDE)) == 0
    first.share()
    assert path_of(second.propose(ids([5, *answer[:7]]), WIDE))[:2] == answer[7:9]
    tokens = memory.index.automata[0].tokens
    first.share()
    first.close()
    assert memory.index.automata[0].tokens == tokens  # nothing is taken in twice


def test_saved_tokens_are_found_and_matches_end_with_their_sequence() -> None:
    memory = LookupMemory()
    memory.remember(np.arange(300, 340, dtype=np.int64))
    memory.remember([1, 2, 3])
    drafter = LookupDrafter(memory)
    assert path_of(drafter.propose(ids([305, 306, 307, 308]), WIDE))[:3] == [309, 310, 311]
    assert len(LookupDrafter(memory).propose(ids([338, 339]), WIDE)) == 0


@pytest.mark.parametrize("wrong", [[[1, 2]], [1, -1], [0.5], ["a"]])
def test_what_are_no_tokens_is_refused(wrong: list) -> None:
    with pytest.raises(EdgeError, match="list of ids"):
        LookupMemory().remember(wrong)


@pytest.mark.parametrize("seed", range(8))
def test_it_stays_right_whatever_becomes_of_the_sequence(seed: int) -> None:
    """Cut back, told anew, another prompt, rows it was not told of: guesses are what came behind the end."""
    draw = random.Random(seed)
    drafter, text, texts, told = LookupDrafter(LookupMemory()), [0], [[0]], 0
    for _ in range(120):
        kind = draw.randrange(8)
        if kind == 0 and len(text) > 3:  # cut back
            text = text[: draw.randrange(1, len(text))]
        elif kind == 1:  # another prompt
            text = [draw.randrange(4) for _ in range(draw.randrange(1, 80))]
        else:
            text = text + [draw.randrange(4) for _ in range(draw.randrange(1, 6))]
        told = draw.randrange(len(text))
        if draw.random() < 0.5:
            start = draw.randrange(told + 1)
            drafter.accepted(Accepted(start, ids(text[start:told])))
        tree = drafter.propose(ids(text), WIDE)
        texts.append(list(text))
        for child in tree.children(-1):
            token = tree.tokens[child]
            assert any([text[-1], token] == each[i : i + 2] for each in texts for i in range(len(each) - 1))


def test_the_sequence_goes_on_after_a_cut() -> None:
    """An answer is tried again: the first one is the guess."""
    drafter, prompt, answer = LookupDrafter(LookupMemory()), [*range(10, 60)], [*range(70, 90)]
    generate(drafter, prompt, [*answer, 9])
    drafter.accepted(Accepted(49, ids(prompt[49:])))
    assert path_of(drafter.propose(ids(prompt), WIDE))[:4] == answer[:4]
    drafter.accepted(Accepted(0, ids([*range(500, 540)])))
    assert path_of(drafter.propose(ids([*range(500, 540), *answer[:3]]), WIDE))[:3] == answer[3:6]


def test_an_index_is_of_bounded_size() -> None:
    index = TokenIndex(limit=100)
    for start in range(0, 5000, 33):
        index.begin()
        index.extend([*range(start, start + 33)])
        assert sum(automaton.tokens for automaton in index.automata) <= 200
        assert sum(map(len, index.automata)) <= 404
    memory = LookupMemory(limit=100)
    memory.remember([*range(250)])
    assert path_of(LookupDrafter(memory).propose(ids([240, 241, 242, 243]), WIDE))[:3] == [244, 245, 246]
    assert len(LookupDrafter(memory).propose(ids([40, 41, 42, 43]), WIDE)) == 0


def test_cursors_move_to_new_generations() -> None:
    memory = LookupMemory(limit=100)
    drafter = LookupDrafter(memory)
    drafter.propose(ids([1, 2, 3]), WIDE)
    for start in range(1000, 2000, 50):
        memory.remember([*range(start, start + 50)])
        assert path_of(drafter.propose(ids([1, 2, 3, start, start + 1, start + 2]), WIDE))[0] == start + 3


@pytest.mark.parametrize(
    "text", [[5] * 3000, [1, 2] * 1500, [*range(50)] * 60, [n * n % 17 for n in range(3000)]]
)
def test_no_text_makes_it_slow(text: list[int]) -> None:
    """Loose, for busy machines: a proposal takes 20 to 100 microseconds on an idle one."""
    memory = LookupMemory()
    memory.remember(text)
    drafter, budget = LookupDrafter(memory), Budget(8, 16, 1e-2, 0.05)
    drafter.accepted(Accepted(0, ids(text[:2500])))
    started = time.process_time()
    for n in range(2501, 3000):
        drafter.propose(ids(text[:n]), budget)
    assert (time.process_time() - started) / 499 < 1e-3


def test_threads_share_what_they_remember() -> None:
    """One thread looks up while others end their answers."""
    memory, errors = LookupMemory(limit=2000), list[BaseException]()

    def ends(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(150):
            memory.remember([draw.randrange(12) for _ in range(100)])

    def looks_up() -> None:
        drafter, draw, text = LookupDrafter(memory), random.Random(0), [1]
        try:
            for _ in range(1500):
                drafter.propose(ids(text), WIDE)
                text.append(draw.randrange(12))
                drafter.accepted(Accepted(len(text) - 2, ids(text[-2:-1])))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ends, args=[seed]) for seed in range(3)]
    threads.append(threading.Thread(target=looks_up))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    automata = memory.index.automata
    assert len(automata) == 2 and all(len(each._link) == len(each._token) == len(each) for each in automata)


def test_an_interrupt_leaves_no_half_made_state(monkeypatch) -> None:
    memory, made = LookupMemory(), SuffixAutomaton._state
    drafter = LookupDrafter(memory)
    passage = list(range(40))
    drafter.accepted(Accepted(0, ids(passage)))

    def interrupted(automaton: SuffixAutomaton, length: int, *rest: int) -> int:
        automaton._length.append(length)
        raise KeyboardInterrupt

    monkeypatch.setattr(SuffixAutomaton, "_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drafter.accepted(Accepted(40, ids([1, 2])))
    monkeypatch.setattr(SuffixAutomaton, "_state", made)
    text = [*passage, 1, 2, 3, 4, *passage[:20]]
    drafter.propose(ids(text), WIDE)
    text += passage[20:30]
    assert path_of(drafter.propose(ids([*text, *passage, 1, 2]), WIDE))[:2] == [3, 4]


def test_of_many_saved_sequences_the_newest_are_read() -> None:
    sequences = [np.arange(start, start + 10) for start in (0, 100, 200)]
    for most, wanted in ((0, []), (4, [[206, 4]]), (10, [[200, 10]]), (13, [[107, 3], [200, 10]])):
        assert [[each[0], len(each)] for each in newest(sequences, most)] == wanted
    assert len(newest(sequences, 99)) == 3
