"""The cost model beside the engine: guesses that are right with a known probability.

A chain of n guesses that are right with probability a each brings 1 + a + ... + a^n tokens, and costs
V(n + 1) plain passes and D(n) for drafting. The plain answer is computed first, so that right and wrong
guesses are known. Free guesses cost nothing; others are made with the steps of a draft network of random
weights (EAGLE-2, with heads of all tokens or of the most frequent ones, FR-Spec), whose own guesses are
replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log, sqrt
from statistics import median
from typing import Any

import numpy as np

import edge
from edge.config.draft import DraftConfig
from edge.engine.completion import Completion
from edge.engine.speculative.drafter import Accepted, Budget, Drafter, Tokens
from edge.engine.speculative.eagle import Eagle, EagleDrafter
from edge.engine.speculative.speculation import Speculation
from edge.engine.speculative.tree import DraftTree
from edge.executors.drafts import DraftNetwork, DraftPlan, DraftRows, Tried, drafts_of
from edge.executors.protocol import KVCache
from edge.hub.drafts import open_draft
from edge.measure.profile.measure import Bench
from edge.runtime import Model

CONTEXT = 512  # tokens of the prompt
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16)
APPENDED = (1, 2, 3, 5, 8)  # rows
LONGEST = 12  # chain, as of `Eagle`
HEADS = {"free": 0, "EAGLE-2": 1, "FR 1/2": 2, "FR 1/4": 4, "FR 1/8": 8}
"""What guesses are made with: parts of the vocabulary that the head leaves, 0 without any network."""


class Planted:
    """Knows the whole sequence, and how many guesses of each chain shall be right: as often 0, 1, 2 and so on
    as chance would have it, but evenly spread, so that an answer need not be long.
    """

    def __init__(self, sequence: Sequence[int], right: float, vocab_size: int) -> None:
        self._sequence, self.right, self._vocab_size = np.asarray(sequence, np.int32), right, vocab_size
        self._chains = 0

    def chain(self, known: int, length: int) -> Tokens:
        """At most so many guesses behind the first `known` tokens."""
        self._chains += 1
        spread = 1 - self._chains * (sqrt(5) - 1) / 2 % 1  # over (0, 1]
        guesses = self._sequence[known : known + length].copy()
        guesses[int(log(spread) / log(self.right)) :] += 1  # other tokens, whichever
        return guesses % self._vocab_size


class PlantedDrafter(Drafter):
    """Guesses that cost nothing."""

    def __init__(self, planted: Planted) -> None:
        self._planted = planted

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        """A chain, with the chances that its nodes have."""
        right = self._planted.right
        worth = int(log(budget.least_chance) / log(right))
        guesses = self._planted.chain(len(tokens), min(budget.depth, budget.rows, LONGEST, worth))
        return DraftTree.of([(token, at - 1, right ** (at + 1)) for at, token in enumerate(guesses.tolist())])

    def accepted(self, accepted: Accepted) -> None:
        """It knows all."""


class PlantedNetwork:
    """A `DraftNetwork` whose steps are made, and whose guesses are a planted chain."""

    def __init__(self, network: DraftNetwork, planted: Planted) -> None:
        self._network, self._planted = network, planted
        self.new_cache, self.append, self.truncate = network.new_cache, network.append, network.truncate
        self.close = network.close

    @property
    def config(self) -> DraftConfig:
        """Of the network."""
        return self._network.config

    @property
    def cache_bytes(self) -> int:
        """Of the network."""
        return self._network.cache_bytes

    def run(self, cache: KVCache, rows: DraftRows, plan: DraftPlan) -> Tried:
        """As many steps as the plan has for such chances; one leaf each."""
        right, steps, gains = self._planted.right, 1, plan.all_gains
        while steps < plan.steps and right**steps >= max(plan.least_chance, gains[steps]):
            steps += 1
        tried = self._network.run(cache, rows, DraftPlan(steps=steps, branches=1))
        guesses = self._planted.chain(rows.position + len(rows.tokens) + 1, steps)
        logprobs = [depth * log(right) for depth in range(1, 1 + len(guesses))]
        return Tried(guesses.tolist(), [*range(-1, len(guesses) - 1)], logprobs, tried.seconds)


def costs_of_rows(model: Model, repeats: int) -> dict[int, float]:
    """V(n): seconds of a pass of n rows with logits of all, over those of one row."""
    bench = Bench(model.executor, "prefill")
    seconds = {rows: list[float]() for rows in ROWS}
    for _ in range(repeats):
        for rows in ROWS:
            seconds[rows].append(bench.measure("verify", rows, CONTEXT).seconds)
    return {rows: median(a / b for a, b in zip(seconds[rows], seconds[1], strict=True)) for rows in ROWS}


def costs_of_steps(model: Model, network: DraftNetwork, repeats: int) -> tuple[dict[int, float], float]:
    """Seconds of draft steps of a chain behind CONTEXT rows: of the first one by the rows that it appends,
    and of one behind it. Each chain comes after a pass of the model, as in decoding: its weights are in no
    cache.
    """
    bench = Bench(model.executor, "prefill")
    size, random = model.config.hidden_size, np.random.default_rng(2)

    def rows(position: int, count: int) -> DraftRows:
        tokens = random.integers(3, model.config.vocab_size, count).astype(np.int32)
        return DraftRows(position, tokens, random.standard_normal((count, size), np.float32))

    cache = network.new_cache()
    network.append(cache, rows(0, CONTEXT))
    first: dict[int, list[float]] = {count: [] for count in APPENDED}
    further: list[float] = []
    for _ in range(2 * repeats):
        for count, found in first.items():
            bench.measure("verify", 2, CONTEXT)
            steps = network.run(cache, rows(CONTEXT, count), DraftPlan(steps=LONGEST, branches=1)).seconds
            found.append(steps[0])
            further += steps[1:]
            network.truncate(cache, CONTEXT)
    return {count: median(found) for count, found in first.items()}, median(further)


def predicted(
    right: float, costs: dict[int, float], first: dict[int, float] | None = None, further: float = 0.0
) -> tuple[float, int]:
    """The best speed-up of a chain, and its guesses.

    costs: V(n). first, further: what drafting takes in plain passes, the first step by the rows that it
    appends, which are the tokens of the pass before.
    """
    best, length = 1.0, 0
    for guesses in range(1, LONGEST + 1):
        tokens = sum(right**depth for depth in range(guesses + 1))
        drafting = 0.0 if first is None else _between(first, tokens) + (guesses - 1) * further
        ratio = tokens / (_between(costs, guesses + 1) + drafting)
        if ratio > best:
            best, length = ratio, guesses
    return best, length


def _between(known: dict[int, float], at: float) -> float:
    counts = sorted(known)
    return float(np.interp(at, counts, [known[count] for count in counts]))


def _answer(model: Model, prompt: Sequence[int], tokens: int, speculation: Speculation | None) -> Completion:
    model.scheduler.speculation = speculation
    try:
        return model.complete(prompt, temperature=0, ignore_eos=True, max_new_tokens=tokens)
    finally:
        model.scheduler.speculation = None


def _drafters(network: DraftNetwork | None, planted: Planted) -> Callable[[], Drafter]:
    """What makes drafters that share what they learn."""
    if network is None:
        return partial(PlantedDrafter, planted)
    return partial(EagleDrafter, Eagle(PlantedNetwork(network, planted)))


def shape_document(
    shape: str,
    rights: Sequence[float],
    heads: Sequence[str],
    tokens: int,
    repeats: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Of a random model: V(n), and for every head and probability what was predicted and what was measured in
    turn with plain decoding.
    """
    with edge.load(f"random:{shape}", speculate="off", prefix_memory=0, **options) as model:
        size, able = model.config.vocab_size, drafts_of(model.executor)
        assert able is not None
        networks: dict[str, DraftNetwork | None] = {}
        for head in heads:
            files = HEADS[head] and open_draft("random:eagle2", model.files, vocabulary=size // HEADS[head])
            networks[head] = able.open_draft(files) if files else None
        prompt = np.random.default_rng(0).integers(3, size, CONTEXT).tolist()
        sequence = [*prompt, *_answer(model, prompt, tokens, None).tokens]
        ways: dict[tuple[str, float], Speculation | None] = {("plain", 0.0): None}
        for head, network in networks.items():
            for right in rights:
                planted = Planted(sequence, right, size)
                ways[head, right] = Speculation(head, partial(_drafters, network, planted))
        costs = costs_of_rows(model, repeats)
        steps = {
            head: costs_of_steps(model, network, repeats)
            for head, network in networks.items()
            if network is not None
        }
        found: dict[tuple[str, float], list[Completion]] = {way: [] for way in ways}
        for turn in range(repeats):
            for way in list(ways)[:: -1 if turn % 2 else 1]:
                done = _answer(model, prompt, tokens, ways[way])
                if [*prompt, *done.tokens] != sequence:
                    raise SystemExit(f"Guesses change the answer: {way[0]}, right with probability {way[1]}.")
                found[way].append(done)
        for network in networks.values():
            if network is not None:
                network.close()
    plain = found.pop(("plain", 0.0))
    second = median(done.tokens_per_second for done in plain)
    return {
        "shape": shape,
        "plain_tokens_per_second": round(second, 2),
        "costs_of_rows": {str(rows): round(cost, 3) for rows, cost in costs.items()},
        "step_ms": {head: round(1e3 * further, 3) for head, (_, further) in steps.items()},
        "rows": [
            _row(way, done, plain, _prediction(way, costs, steps, second)) for way, done in found.items()
        ],
    }


def _prediction(
    way: tuple[str, float],
    costs: dict[int, float],
    steps: Mapping[str, tuple[dict[int, float], float]],
    tokens_per_second: float,
) -> tuple[float, int]:
    head, right = way
    if head not in steps:
        return predicted(right, costs)
    first, further = steps[head]
    relative = {count: seconds * tokens_per_second for count, seconds in first.items()}
    return predicted(right, costs, relative, further * tokens_per_second)


def _row(
    way: tuple[str, float],
    found: Sequence[Completion],
    plain: Sequence[Completion],
    prediction: tuple[float, int],
) -> dict[str, Any]:
    best, guesses = prediction
    pairs = zip(found, plain, strict=True)
    measured = median(each.tokens_per_second / other.tokens_per_second for each, other in pairs)
    told = [each.speculation for each in found if each.speculation is not None]
    return {
        "head": way[0],
        "right": way[1],
        "guesses": guesses,
        "predicted": round(best, 3),
        "measured": round(measured, 3),
        "measured_of_predicted": round(measured / best, 3),
        "accepted_length": round(median(each.mean_accepted_length for each in told), 2),
        "draft_share": round(median(each.draft_share for each in told), 3),
    }
