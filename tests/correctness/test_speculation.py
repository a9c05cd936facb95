"""Guesses on the real model: 200 prompts with three seeds each, by every drafter, and other executors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.engine.speculative.opening import open_speculation
from edge.engine.speculative.small_model import SmallModel
from edge.runtime import Model
from tests.planted import FreeRows, PlantedDrafter, planted

QUESTIONS = Path(__file__).parents[3] / "shared" / "data" / "spec_bench.dev.jsonl"
SEEDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 1, "top_p": 0.9},
    {"temperature": 1.2, "seed": 2, "repetition_penalty": 1.2},
]
DRAFTERS = ["lookup", "smollm2-135m", "random:eagle2"]


@pytest.fixture
def model(smollm2_gguf: Path, monkeypatch) -> Iterator[Model]:
    # The only small model here is the model itself, which never pays.
    monkeypatch.setattr(SmallModel, "pays", lambda *_: True)
    with edge.load(smollm2_gguf, threads=2, prefix_memory=0, speculate="off") as opened:
        opened.scheduler.costs = FreeRows()
        yield opened


def prompts(count: int) -> list[str]:
    """First turns of Spec-Bench's questions, of all categories."""
    if not QUESTIONS.exists():
        pytest.skip(f"{QUESTIONS.name} is not here")
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return [row["turns"][0][:600] for row in rows[:: max(1, len(rows) // count)]][:count]


def compare(model: Model, drafter: str, asked: list[str], tokens: int) -> int:
    """Every answer with guesses against the one without; returns the guesses that were right."""
    speculation = open_speculation(drafter, model.files, model.executor, lambda: model.tokenizer)
    assert speculation is not None
    right = 0
    for prompt in asked:
        for settings in SEEDS:
            chosen = {**settings, "max_new_tokens": tokens}
            model.scheduler.speculation = None
            plain = model.chat(**chosen).send(prompt)
            model.scheduler.speculation = speculation
            guessed = model.chat(**chosen).send(prompt)
            assert (guessed.tokens, guessed.text) == (plain.tokens, plain.text), (drafter, prompt, settings)
            assert guessed.speculation is not None
            right += guessed.speculation.accepted
    model.scheduler.speculation = None
    speculation.close()
    return right


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_answers_stay_what_they_are(model, drafter):
    right = compare(
        model, drafter, ["Write the numbers from one to ten, then again.", "Why is the sky blue?"], 24
    )
    assert right > 10 or drafter == "random:eagle2"


@pytest.mark.slow
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_two_hundred_answers_stay_what_they_are(model, drafter):
    asked = prompts(200)
    assert len(asked) == 200
    assert compare(model, drafter, asked, 24) > 1000 or drafter == "random:eagle2"


def test_the_torch_executor_verifies_too(smollm2_gguf: Path):
    """Its rows round otherwise, so what is compared is one greedy answer that is far from any tie."""
    pytest.importorskip("torch")
    with edge.load(smollm2_gguf, executor="torch", speculate="off") as model:
        model.scheduler.costs = FreeRows()
        prompt = model.tokenizer.encode("The numbers are: one, two, three, four,")
        plain = model.complete(prompt, temperature=0, max_new_tokens=16)
        known = PlantedDrafter([prompt + list(plain.tokens)], right=0.8, vocab_size=4000)
        model.scheduler.speculation = planted([known])
        guessed = model.complete(prompt, temperature=0, max_new_tokens=16)
        assert guessed.tokens == plain.tokens
        assert guessed.speculation is not None and guessed.speculation.accepted > 5
