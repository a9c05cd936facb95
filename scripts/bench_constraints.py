"""What a form costs an answer, and what it saves: one JSON document as the last line.

    python scripts/bench_constraints.py [--model NAME ...] [--answers N]

Masks: the time that a constraint takes of each token, beside the token's own. Answers with a form and without
are made in turn, as are those of a rigid form with forced tokens together and one by one. Times are of one
machine in one hour: measure on an idle one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt

import edge
from edge.engine.completion import Completion
from edge.engine.constraints.constraint import Constraint
from edge.engine.constraints.grammar import Grammar, compile_grammar
from edge.engine.constraints.vocabulary import Vocabulary, vocabulary_of
from edge.engine.generation import generate
from edge.engine.settings import merge_settings

OPEN = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 80},
        "summary": {"type": "string", "maxLength": 400},
        "keywords": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 6},
        "pages": {"type": "integer", "minimum": 1, "maximum": 2000},
    },
    "required": ["title", "summary", "keywords", "pages"],
    "additionalProperties": False,
}
RIGID = {
    "type": "object",
    "properties": {
        f"measurement_of_{name}_in_the_last_week": {"enum": ["low", "usual", "high"]}
        for name in ("temperature", "rainfall", "wind_speed", "air_pressure", "humidity")
    },
    "additionalProperties": False,
}
RIGID["required"] = [*RIGID["properties"]]  # type: ignore[misc]
BOOKS = ("a sailor", "two sisters", "the sea", "a lost map", "winter", "bees", "a lighthouse", "trains")


class Timed:
    """A constraint whose time is taken, token by token. together: whether forced tokens are committed so."""

    def __init__(self, constraint: Constraint, together: bool = True) -> None:
        self.seconds: list[float] = []
        self._constraint, self._together, self._spent = constraint, together, 0.0

    def _time(self, call: Callable[[], Any]) -> Any:
        started = perf_counter()
        try:
            return call()
        finally:
            self._spent += perf_counter() - started

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        mask: npt.NDArray[np.uint32] | None = self._time(self._constraint.allowed)
        return mask

    def advance(self, token: int) -> None:
        self._time(lambda: self._constraint.advance(token))
        self.seconds.append(self._spent)
        self._spent = 0.0

    def forced(self) -> Sequence[int]:
        found: Sequence[int] = self._time(self._constraint.forced)
        return found if self._together else ()

    def fits(self, tokens: Sequence[int]) -> int:
        return int(self._time(lambda: self._constraint.fits(tokens)))

    @property
    def is_complete(self) -> bool:
        return bool(self._time(lambda: self._constraint.is_complete))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", nargs="+", default=["random:minicpm4-0.5b", "smollm2-135m"])
    options.add_argument("--answers", type=int, default=8)
    given = options.parse_args()
    load, found = round(os.getloadavg()[0], 2), {}
    for name in given.model:
        with edge.load(name, speculate="off", prefix_memory=0) as model:
            info = model.executor.info
            found[name] = measured(model, given.answers)
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    machine = {"tier": info.tier, "threads": info.threads, "load": load}
    print(json.dumps({"machine": machine, "models": found}))


def measured(model: edge.Model, answers: int) -> dict[str, Any]:
    tokenizer = model.tokenizer
    for token in range(tokenizer.vocab_size):
        tokenizer.token_bytes(token)
    started = perf_counter()
    Vocabulary(tokenizer)
    made = perf_counter() - started
    vocabulary_of(tokenizer)
    compiled = {}
    for name, schema in (("open", OPEN), ("rigid", RIGID)):
        started = perf_counter()
        compile_grammar(Grammar.json_schema(schema), tokenizer)
        compiled[name] = perf_counter() - started
    masks: list[float] = []
    rows: dict[str, list[tuple[int, float]]] = {}
    valid = whole = kept = 0
    for number in range(answers):
        about = BOOKS[number % len(BOOKS)]
        prompt = f"Describe a book about {about} as JSON with title, summary, keywords and pages."
        timed = Timed(compile_grammar(Grammar.json_schema(OPEN), tokenizer))
        held = ask(model, prompt, timed, number)
        masks += timed.seconds[1:]
        free = ask(model, prompt, None, number)
        whole += held.is_complete
        kept += held.is_complete and is_valid(held.text, OPEN)
        valid += is_valid(free.text, OPEN)
        rigid = Grammar.json_schema(RIGID)
        together = ask(model, prompt, Timed(compile_grammar(rigid, tokenizer)), number)
        alone = ask(model, prompt, Timed(compile_grammar(rigid, tokenizer), together=False), number)
        assert together.tokens == alone.tokens
        for name, done in (("held", held), ("free", free), ("together", together), ("one by one", alone)):
            rows.setdefault(name, []).append((len(done.tokens), done.tokens_per_second))
    speeds = {name: statistics.median(speed for _, speed in each) for name, each in rows.items()}
    median, p99 = float(np.median(masks)), float(np.quantile(masks, 0.99))
    return {
        "vocabulary_tokens": tokenizer.vocab_size,
        "vocabulary_seconds": made,
        "compile_seconds": compiled,
        "mask_seconds": {"median": median, "p99": p99, "mean": float(np.mean(masks))},
        "mask_share_of_a_token": float(np.mean(masks)) * speeds["free"],
        "tokens_per_second": speeds,
        "speed_ranges": {
            name: [choose(speed for _, speed in each) for choose in (min, max)] for name, each in rows.items()
        },
        "forced_speedup": speeds["together"] / speeds["one by one"],
        "answers": answers,
        "whole_with_form": whole,
        "valid_with_form": kept,
        "valid_without_form": valid,
    }


def ask(model: edge.Model, prompt: str, constraint: Constraint | None, seed: int) -> Completion:
    """An answer of the chat, with this constraint."""
    ended: list[Completion] = []
    encoded = model.tokenizer.encode(
        model.chat_template.render([{"role": "user", "content": prompt}]), parse_special=True
    )
    settings = merge_settings(flags={"temperature": 0.7, "seed": seed, "max_new_tokens": 200})
    chunks = generate(
        model.session(), encoded, settings, model.tokenizer, ended=ended.append, constraint=constraint
    )
    for _ in chunks:
        pass
    return ended[0]


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    """Whether it is such JSON, perhaps in a fence."""
    text = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    with suppress(ValueError, jsonschema.ValidationError):
        jsonschema.validate(json.loads(text), schema)
        return True
    return False


if __name__ == "__main__":
    main()
