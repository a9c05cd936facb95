"""The loader: every token once an epoch, right targets, exact resume, any number of processes, shares."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.train.data.batch import IGNORED, Batch
from edge.train.data.errors import DataError
from edge.train.data.loader import Loader, LoaderPlan
from edge.train.data.order import cut_by_length, shuffled
from edge.train.data.shards import ShardFolder
from tests.train.data.corpora import corpora, facts, write_corpus

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)
ONE = ((0, {"s0": 1.0}),)
few = settings(max_examples=12, deadline=None)


def successors(sources: dict[str, ShardFolder]) -> dict[int, int]:
    """For every token the next one of its document, or IGNORED."""
    found = {}
    for source in sources.values():
        for number in range(source.documents):
            ids = source.document(number).tolist()
            found |= dict(zip(ids, [*ids, IGNORED][1:], strict=True))
    return found


def check_row(tokens: list[int], targets: list[int], positions: list[int], following: dict[int, int]) -> int:
    """Compare a row with what its tokens alone say; how many of them are no padding."""
    size = len(tokens)
    while size and (targets[size - 1], tokens[size - 1]) == (IGNORED, 0) and following[0] != IGNORED:
        size -= 1
    assert targets[:size] == [following[token] for token in tokens[:size]]
    wanted, padding = [], [*range(len(tokens) - size)]
    for at, token in enumerate(tokens[:size]):
        continues = at and following[tokens[at - 1]] == token
        wanted.append(wanted[-1] + 1 if continues else 0)
    assert positions == wanted + padding
    return size


def rows(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    return list(zip(*(each.tolist() for each in batch), strict=True))


@few
@given(LENGTHS, st.integers(1, 50), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))
def test_every_token_of_an_epoch_comes_once_and_documents_stay_whole(lengths, length, count, seed, shards):
    with corpora([lengths], shards) as sources:
        loader = Loader(sources, LoaderPlan(count, length, ONE, seed=seed))
        stream: list[int] = []
        period, following = sum(lengths), successors(sources)
        while len(stream) < 2 * period:
            for tokens, targets, positions in rows(loader.next()):
                assert targets == [following[token] for token in tokens]
                wanted: list[int] = []
                for at, token in enumerate(tokens):
                    wanted.append(wanted[-1] + 1 if at and following[tokens[at - 1]] == token else 0)
                assert positions == wanted
                stream += tokens
        for epoch in range(2):
            part = stream[epoch * period : (epoch + 1) * period]
            assert sorted(part) == list(range(period))
            ends = [at for at, token in enumerate(part) if following[token] == IGNORED]
            assert ends[-1] == period - 1
            assert all(following[a] == b for a, b in pairwise(part) if following[a] != IGNORED)
        assert loader.epochs() == {"s0": len(stream) / period}


def test_epochs_have_different_orders_and_the_seed_decides_them():
    orders = [
        shuffled(1000, "a", 0, 0),
        shuffled(1000, "a", 0, 1),
        shuffled(1000, "a", 1, 0),
        shuffled(1000, "b", 0, 0),
    ]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    for one, other in pairwise(orders):
        assert np.mean(one == other) < 0.02
    assert (orders[0] == shuffled(1000, "a", 0, 0)).all()
    # the order must never change: runs that were stopped would go on with other data
    assert shuffled(8, "books", 3, 1).tolist() == plain_order(8, "books", 3, 1)


def plain_order(size: int, name: str, seed: int, epoch: int) -> list[int]:
    """SplitMix64 as its authors write it, with Python's integers."""
    import hashlib

    mask = (1 << 64) - 1
    state = int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{name}".encode()).digest()[:8], "little")
    keys = []
    for _ in range(size):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        keys.append(z ^ (z >> 31))
    return sorted(range(size), key=keys.__getitem__)


PLANS = [
    LoaderPlan(
        4, 16, ((0, {"s0": 3, "s1": 1}), (3, {"s1": 1}), (6, {"s0": 0.2, "s1": 0.8})), seed=5, divisor=4
    ),
    LoaderPlan(8, 16, ((0, {"s0": 1, "s1": 2}), (4, {"s0": 1})), buckets=(8, 24, 32), divisor=4),
]
TWO = [[5, 40, 1, 9, 17, 24, 0, 30, 8], [33, 2, 2, 12, 20, 70, 3]]


@pytest.mark.parametrize("plan", PLANS, ids=["stream", "buckets"])
def test_a_resumed_loader_gives_the_same_batches(plan: LoaderPlan):
    with corpora(TWO) as sources:
        loader = Loader(sources, plan)
        states, batches = [], []
        for _ in range(12):
            states.append(json.dumps(loader.state()))
            batches.append(loader.next())
        for step in range(12):
            resumed = Loader(sources, plan)
            resumed.restore(json.loads(states[step]))
            assert resumed.step == step
            for wanted in batches[step:]:
                assert all(torch.equal(a, b) for a, b in zip(resumed.next(), wanted, strict=True))
            assert resumed.epochs() == loader.epochs()


@pytest.mark.parametrize("plan", PLANS, ids=["stream", "buckets"])
@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_are_the_batch_of_one_process(plan: LoaderPlan, world: int):
    with corpora(TWO) as sources:
        alone, ranks = Loader(sources, plan), [Loader(sources, plan) for _ in range(world)]
        for _ in range(10):
            parts = [each.next(rank, world) for rank, each in enumerate(ranks)]
            for wanted, *found in zip(alone.next(), *parts, strict=True):
                assert torch.equal(wanted, torch.cat(found))
        assert all(each.state() == alone.state() for each in ranks)


@few
@given(st.lists(st.integers(1, 100), min_size=2, max_size=4), st.integers(1, 30))
def test_the_mixture_is_never_more_than_a_few_rows_off(weights, change):
    with corpora([[64]] * len(weights)) as sources:
        shares = [
            dict(zip(sources, weights, strict=True)),
            dict(zip(sources, reversed(weights), strict=True)),
        ]
        loader = Loader(sources, LoaderPlan(3, 8, ((0, shares[0]), (change, shares[1]))))
        for phase, steps in enumerate((change, 20)):
            drawn: Counter[str] = Counter()
            for step in range(1, steps + 1):
                for tokens, _, _ in rows(loader.next()):
                    drawn[f"s{tokens[0] // 64}"] += 1
                for name, weight in shares[phase].items():
                    assert abs(drawn[name] - 3 * step * weight / sum(weights)) < len(weights)


def test_a_source_without_weight_is_not_read():
    with corpora([[50], [50]]) as sources:
        loader = Loader(sources, LoaderPlan(2, 10, ((0, {"s0": 0, "s1": 1}),)))
        assert min(loader.next().tokens.min().item() for _ in range(9)) >= 50


@few
@given(st.lists(st.integers(0, 90), min_size=5, max_size=30), st.integers(1, 3))
def test_buckets_have_whole_documents_in_rows_of_their_length(lengths, divisor):
    buckets = (10, 25, 40)
    # id 0 is padding's; every bucket has something
    with corpora([[3, 7, 20, 33, *lengths]]) as sources:
        plan = LoaderPlan(6 * divisor, 10, ONE, buckets=buckets, divisor=divisor)
        loader, following = Loader(sources, plan), successors(sources)
        filled: Counter[int] = Counter()
        seen: dict[int, list[int]] = {length: [] for length in buckets}
        while min(loader.epochs().values()) < 1:
            batch = loader.next()
            length = batch.tokens.shape[1]
            assert len(batch.tokens) == plan.rows_of(length)
            for tokens, targets, positions in rows(batch):
                size = check_row(tokens, targets, positions, following)
                filled[length] += size
                seen[length] += tokens[:size]
            # no bucket is more than a step ahead of another
            assert max(filled.values()) - min(filled[each] for each in buckets) <= 80 * divisor
        source = sources["s0"]
        wanted = plain_buckets(
            [source.document(number).tolist() for number in range(source.documents)], buckets
        )
        for length, documents in wanted.items():
            period = sum(map(len, documents))
            assert sorted(seen[length][:period]) == sorted(token for each in documents for token in each)


def plain_buckets(documents: list[list[int]], buckets: tuple[int, ...]) -> dict[int, list[list[int]]]:
    found: dict[int, list[list[int]]] = {length: [] for length in buckets}
    for document in documents:
        while len(document) > buckets[-1]:
            found[buckets[-1]].append(document[: buckets[-1]])
            document = document[buckets[-1] :]
        if document:
            found[next(length for length in buckets if len(document) <= length)].append(document)
    return found


def test_sources_share_a_bucket_by_weight_and_by_what_they_have_there():
    # s0: 80 tokens in short documents and 720 in long ones; s1: 600 and 200
    with corpora([[8] * 10 + [24] * 30, [8] * 75 + [20] * 10]) as sources:
        plan = LoaderPlan(6, 8, ((0, {"s0": 1, "s1": 2}),), buckets=(8, 24))
        loader, drawn = Loader(sources, plan), Counter()
        for _ in range(200):
            batch = loader.next()
            for tokens in batch.tokens.tolist():
                drawn[len(tokens), "s0" if tokens[0] < 800 else "s1"] += len(tokens) if tokens[-1] else 20
        wanted = {(8, "s0"): 0.1, (8, "s1"): 2 * 0.75, (24, "s0"): 0.9, (24, "s1"): 2 * 0.25}
        for length in (8, 24):
            shares = [
                wanted[length, name] / (wanted[length, "s0"] + wanted[length, "s1"]) for name in sources
            ]
            found = [drawn[length, name] / (drawn[length, "s0"] + drawn[length, "s1"]) for name in sources]
            assert found == pytest.approx(shares, abs=0.01)
        assert drawn[8, "s0"] + drawn[8, "s1"] == pytest.approx(drawn[24, "s0"] + drawn[24, "s1"], rel=0.01)


def test_documents_are_cut_as_told():
    pieces = cut_by_length(np.array([0, 4, 10, 11, 25, 60]), [10, 25])
    assert pieces[0].tolist() == [[1, 0, 4], [2, 0, 10], [5, 50, 60]]
    assert pieces[1].tolist() == [[3, 0, 11], [4, 0, 25], [5, 0, 25], [5, 25, 50]]


def test_a_decay_branches_from_a_stable_run_with_another_mixture_and_batch():
    with corpora([[40] * 5, [30] * 5]) as sources:
        stable = Loader(sources, LoaderPlan(2, 10, ONE))
        read = [token for _ in range(5) for row in rows(stable.next()) for token in row[0]]
        decay = Loader(sources, LoaderPlan(5, 10, ((0, {"s0": 1}), (5, {"s0": 1, "s1": 1}))))
        decay.restore(stable.state())
        batches = [row[0] for _ in range(4) for row in rows(decay.next())]
        fresh = [token for row in batches if row[0] < 200 for token in row]
        assert len(fresh) == 100  # half of the rows
        assert sorted([*read, *fresh]) == list(range(200))  # the epoch goes on, nothing twice


def test_what_cannot_be_loaded_is_refused_by_name(tmp_path: Path):
    good = write_corpus(tmp_path / "good", [[1, 2, 3]])
    with pytest.raises(DataError, match="names the source 's9'; there are s0"):
        Loader({"s0": good}, LoaderPlan(1, 4, ((0, {"s9": 1}),)))
    empty = write_corpus(tmp_path / "empty", [[]])
    with pytest.raises(DataError, match="'s0' has no tokens"):
        Loader({"s0": empty}, LoaderPlan(1, 4, ONE))
    with pytest.raises(DataError, match="rows of 2 tokens"):
        Loader({"s0": good}, LoaderPlan(1, 4, ONE, buckets=(2, 4)))
    other = write_corpus(tmp_path / "other", [[1, 2]])
    other.facts = facts(50)
    with pytest.raises(DataError, match="'s0' and 's1' were made with different tokenizers"):
        Loader({"s0": good, "s1": other}, LoaderPlan(1, 4, ((0, {"s0": 1, "s1": 1}),)))
    loader = Loader({"s0": good}, LoaderPlan(3, 4, ONE))
    before = loader.state()
    with pytest.raises(DataError, match="3 rows of 4 tokens cannot be shared by 2"):
        loader.next(0, 2)
    assert loader.state() == before
    for changes, message in (
        ({"schema": 2}, "another version"),
        ({"seed": 1}, "of seed 1"),
        ({"sources": {"s0": {"documents": 1, "tokens": 4}}}, "has 3 tokens, and had 4"),
    ):
        with pytest.raises(DataError, match=message):
            loader.restore({**before, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows of the loader"),
        ({"rows": 3, "divisor": 2}, "3 rows of a batch"),
        ({"buckets": (8, 4)}, "ascending"),
        ({"phases": ((1, {"s0": 1}),)}, "begin at step 0"),
        ({"phases": ()}, "begin at step 0"),
        ({"phases": ((0, {"s0": 0}),)}, "one positive"),
        ({"phases": ((0, {"s0": float("nan")}),)}, "0 or more"),
    ],
)
def test_plans_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        LoaderPlan(**{"rows": 1, "length": 4, "phases": ONE, **changes})
