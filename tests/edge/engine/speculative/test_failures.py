"""Drafters that fail, in any of their calls: the answer goes on without guesses, as do those beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from edge.engine.speculative.drafter import Accepted, Budget, Tokens
from edge.engine.speculative.speculation import Speculation
from edge.engine.speculative.tree import DraftTree
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.quant.scheme import QuantScheme
from edge.runtime import Model
from edge.system.notices import EdgeWarning
from tests.planted import FreeRows, PlantedDrafter

PROMPT = [5, 9, 40, 7, 33, 21]
SETTINGS: dict[str, Any] = {"temperature": 0.9, "seed": 3, "max_new_tokens": 40, "ignore_eos": True}


class Failing(PlantedDrafter):
    """Fails in the fifth call of `fails`."""

    def __init__(self, fails: str, sequences: list[list[int]]) -> None:
        super().__init__(sequences, right=0.8, vocab_size=120)
        self._fails, self._calls = fails, 0

    def propose(self, tokens: Tokens, budget: Budget) -> DraftTree:
        self._count("propose")
        return super().propose(tokens, budget)

    def accepted(self, accepted: Accepted) -> None:
        self._count("accepted")
        super().accepted(accepted)

    def close(self) -> None:
        self._calls += 4
        self._count("close")

    def _count(self, call: str) -> None:
        self._calls += call == self._fails
        if call == self._fails and self._calls >= 5:
            raise IndexError("it stumbled")


@pytest.fixture
def model(make_bundle, tiny_config) -> Iterator[Model]:
    bundle = make_bundle(replace(tiny_config, vocab_size=120), QuantScheme("int4", 32), tokenizer=True)
    with Model(bundle, open_executor(bundle, RunOptions(threads=1)), name="tiny") as opened:
        opened.scheduler.costs = FreeRows()
        yield opened


@pytest.mark.parametrize("fails", ["propose", "accepted", "close"])
def test_an_answer_goes_on_without_its_drafter(model, fails):
    plain = model.complete(PROMPT, **SETTINGS)
    known = [PROMPT + list(plain.tokens)]
    left: list[PlantedDrafter] = [
        Failing(fails, known),
        PlantedDrafter(known, right=1.0, vocab_size=120),
    ]
    model.scheduler.speculation = Speculation("stumbler", lambda: lambda: left.pop(0))
    streams = [model.stream(PROMPT, **SETTINGS) for _ in range(2)]
    with pytest.warns(EdgeWarning, match="Guesses by 'stumbler' have ended.*it stumbled") as told:
        for stream in reversed(streams):  # the one that leads is not the one whose drafter fails
            assert stream.result.tokens == plain.tokens
    assert len(told) == 1
    assert streams[1].result.speculation.accepted > 20


@pytest.mark.filterwarnings("error")
def test_where_notices_are_errors_it_is_the_error_of_that_answer_alone(model):
    plain = model.complete(PROMPT, **SETTINGS)
    left: list[PlantedDrafter] = [
        Failing("propose", [PROMPT + list(plain.tokens)]),
        PlantedDrafter([], right=1.0, vocab_size=120),
    ]
    model.scheduler.speculation = Speculation("stumbler", lambda: lambda: left.pop(0))
    failing, other = (model.stream(PROMPT, **SETTINGS) for _ in range(2))
    assert other.result.tokens == plain.tokens
    with pytest.raises(EdgeWarning, match="it stumbled"):
        _ = failing.result


@pytest.mark.parametrize("how", ["load", "prefill"])
def test_what_a_session_holds_is_told_to_the_drafter(model, tmp_path, how):
    """However it came there; what it was told of the sequence before does not hold any more."""
    first = model.session(speculate=False)
    done = model.complete(PROMPT, session=first, **SETTINGS)
    first.save(tmp_path / "one.cache")
    drafter = PlantedDrafter([], right=1.0, vocab_size=120)
    model.scheduler.speculation = Speculation("planted", lambda: lambda: drafter)
    session = model.session()
    model.complete([8, 8, 8], session=session, **SETTINGS)
    drafter.told.clear()
    if how == "load":
        session.load(tmp_path / "one.cache")
    else:
        session.prefill(first.tokens[:-1].copy())
        session.step(first.tokens[-1])
    longer = [*PROMPT, *done.tokens, 4, 5]
    assert model.complete(longer, session=session, **SETTINGS).reused_tokens > 40
    told: list[int] = []
    for each in drafter.told:
        told[each.start :] = each.tokens.tolist()
    assert told == session.tokens.tolist()
