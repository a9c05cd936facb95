"""Answers in a form: the same with guesses and without, with forced tokens together and one by one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from edge.engine.completion import Completion
from edge.engine.constraints.grammar import Grammar
from edge.engine.prefix_cache import PrefixCache
from edge.errors import NativeError
from edge.executors.opening import open_executor
from edge.executors.options import RunOptions
from edge.quant.scheme import QuantScheme
from edge.runtime import Model
from tests.planted import FreeRows, PlantedDrafter, planted

VOCABULARY = 120
ROW = {
    "type": "object",
    "properties": {
        "identifier": {"type": "integer", "minimum": 10, "maximum": 99},
        "colour": {"enum": ["red", "rose", "green"]},
        "note": {"type": "string", "maxLength": 4},
    },
    "required": ["identifier", "colour", "note"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ROW, "minItems": 2, "maxItems": 3}
ROWS = Grammar.json_schema(SCHEMA)
PROMPT = list(range(3, 60))
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.2, "seed": 5},
    {"temperature": 0.9, "seed": 6, "repetition_penalty": 1.3, "top_k": 30},
]


@pytest.fixture(params=[96, 16])
def model(request, make_bundle, tiny_config) -> Iterator[Model]:
    """Passes of 96 rows, and of 16, which are fewer than some runs of forced tokens."""
    from dataclasses import replace

    config = replace(tiny_config, vocab_size=VOCABULARY, max_position_embeddings=640)
    bundle = make_bundle(config, QuantScheme("int4", 32), tokenizer=True)
    executor = open_executor(bundle, RunOptions(threads=2, max_batch=request.param))
    with Model(bundle, executor, name="tiny") as opened:
        opened.scheduler.costs = FreeRows()
        yield opened


def plain(model: Model, **settings: Any) -> Completion:
    session = model.session(speculate=False)
    return model.complete(PROMPT, session=session, response_format=ROWS, **settings)


def same(one: Completion, other: Completion) -> None:
    assert one.tokens == other.tokens and one.text == other.text
    assert (one.stop_reason, one.is_complete) == (other.stop_reason, other.is_complete)


@pytest.mark.parametrize("settings", SETTINGS)
def test_forced_tokens_together_and_one_by_one(model, monkeypatch, settings):
    """Log-probabilities ask for a pass of each token; the tokens are the same, and so are the rows."""
    passes = []
    forward = model.executor.forward
    monkeypatch.setattr(
        model.executor, "forward", lambda steps: (passes.append(len(steps)), forward(steps))[1]
    )
    sessions = [model.session(speculate=False) for _ in range(2)]
    together = model.complete(PROMPT, session=sessions[0], response_format=ROWS, **settings)
    counted = len(passes)
    drawn = model.complete(PROMPT, session=sessions[1], response_format=ROWS, logprobs=0, **settings)
    same(together, drawn)
    jsonschema.validate(json.loads(together.text), SCHEMA)
    assert together.stop_reason == "eos" and together.is_complete
    assert drawn.logprobs is not None and len(drawn.logprobs) == len(drawn.tokens)
    assert len(passes) - counted > len(drawn.tokens) and counted < 0.5 * len(drawn.tokens)
    assert [chunk_count(model, settings)] == [len(together.tokens)]
    longer = [*PROMPT, *together.tokens, 5]
    rows = [session.prefill(longer) for session in sessions]
    assert (rows[0] == rows[1]).all()
    assert sessions[0].reused_tokens >= len(PROMPT) + len(together.tokens) - 40


@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("end", [False, True])
def test_a_forced_token_that_is_forbidden_is_an_error(model, logprobs, end):
    """Also where it would need no draw: a name in the middle, or the end."""
    done = plain(model, temperature=0)
    assert done.stop_reason == "eos"
    forbidden = dict.fromkeys(model.tokenizer.eos_ids if end else done.tokens[1:2], -math.inf)
    with pytest.raises(NativeError, match="No token is allowed"):
        plain(model, temperature=0, logprobs=logprobs, logit_bias=forbidden)


def chunk_count(model: Model, settings: dict[str, Any]) -> int:
    stream = model.stream(PROMPT, session=model.session(speculate=False), response_format=ROWS, **settings)
    chunks = [chunk for chunk in stream if chunk.token is not None]
    assert "".join(chunk.text for chunk in chunks) == stream.result.text
    return len(chunks)


@pytest.mark.parametrize("settings", SETTINGS)
def test_guesses_change_nothing(model, settings):
    """Right ones, wrong ones and forbidden ones, before and behind forced runs."""
    expected = plain(model, **settings)
    drawn = plain(model, logprobs=0, **settings)
    accepted = 0
    for right in (1.0, 0.7):
        for options in ({}, {"logprobs": 0}):
            known = [*PROMPT, *expected.tokens]
            model.scheduler.speculation = planted(
                [PlantedDrafter([known], right=right, vocab_size=VOCABULARY, seed=3)]
            )
            found = model.complete(PROMPT, response_format=ROWS, **options, **settings)
            same(found, expected)
            assert not options or found.logprobs == drawn.logprobs
            assert found.speculation is not None
            accepted += found.speculation.accepted
            assert found.speculation.tokens == found.speculation.passes + found.speculation.accepted
    model.scheduler.speculation = None
    assert accepted > 15


def test_forbidden_guesses_are_not_verified(model):
    """A drafter that only guesses what the grammar forbids costs no row."""
    settings = {"temperature": 0}
    expected = plain(model, **settings)
    wrong = [*PROMPT, *[119] * 200]
    model.scheduler.speculation = planted([PlantedDrafter([wrong], right=1.0, vocab_size=VOCABULARY, seed=1)])
    found = model.complete(PROMPT, response_format=ROWS, **settings)
    model.scheduler.speculation = None
    same(found, expected)
    assert found.speculation is not None and found.speculation.accepted == 0


@pytest.mark.parametrize("most", [1, 2, 16, 17, 18, 40])
def test_an_answer_that_is_cut_is_incomplete(model, most):
    whole = plain(model, temperature=0)
    cut = plain(model, temperature=0, max_new_tokens=most)
    assert cut.tokens == whole.tokens[:most] and cut.stop_reason == "length"
    assert not cut.is_complete and whole.is_complete
    assert plain(model, temperature=0, max_new_tokens=len(whole.tokens)).is_complete


def test_the_context_ends_in_the_middle_of_a_forced_run(model):
    whole = plain(model, temperature=0)
    long = [5] * (640 - 20) + PROMPT[:10]
    cut = model.complete(long, response_format=ROWS, temperature=0)
    assert cut.stop_reason == "context" and not cut.is_complete
    assert len(cut.tokens) == 640 - len(long) + 1
    assert whole.text.startswith(cut.text[:15])


def test_stop_strings_and_end_tokens_in_forced_runs(model):
    stopped = plain(model, temperature=0, stop=["ntifi"])
    assert stopped.text == '[{"ide' and stopped.stop_reason == "stop" and not stopped.is_complete
    for ends in ({"eos": ["q"]}, {"eos_token_id": [80]}, {"ignore_eos": True}):
        found = plain(model, temperature=1.0, seed=4, **ends)
        assert found.stop_reason == "eos" and found.is_complete, ends
        jsonschema.validate(json.loads(found.text), SCHEMA)


@pytest.mark.parametrize("read", [1, 3, 10])
def test_a_reader_that_stops_early(model, read):
    """The answer is what was read, and its session goes on like any other."""
    model.scheduler.prefixes = PrefixCache(model.executor, 1 << 27)
    whole = plain(model, temperature=0)
    session = model.session(speculate=False)
    stream = model.stream(PROMPT, session=session, response_format=ROWS, temperature=0)
    for _ in range(read):
        next(stream)
    stream.close()
    assert stream.result.tokens == whole.tokens[:read] and not stream.result.is_complete
    assert stream.result.stop_reason == "cancelled" and len(session.tokens) <= len(PROMPT) + read
    again = model.complete(PROMPT, session=session, response_format=ROWS, temperature=0)
    same(again, whole)
    model.scheduler.prefixes = None


def test_several_answers_at_once(model):
    """Forced runs of one beside the single tokens of another."""
    whole, free = plain(model, temperature=0), model.complete(PROMPT, temperature=0, max_new_tokens=40)
    one = model.stream(PROMPT, response_format=ROWS, temperature=0)
    other = model.stream(PROMPT, temperature=0, max_new_tokens=40)
    for _ in range(40):
        next(one, None)
        next(other, None)
    taken = [chunk for chunk in one]
    assert taken
    list(other)
    assert one.result.tokens == whole.tokens and other.result.tokens == free.tokens


def test_a_form_for_a_chat(smollm2):
    """A real model, its lookup drafter, and a prompt that repeats what the answer says."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    wrapped = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    said = 'Repeat: {"city": "Llanfairpwllgwyngyll", "people": 3107} {"city": "Llanfairpwllgwyngyll"}'
    chat = smollm2.chat(temperature=0, max_new_tokens=60)
    done = chat.send(said, response_format=wrapped)
    assert done.is_complete and done.stop_reason == "eos"
    jsonschema.validate(json.loads(done.text), schema)
    assert chat.messages[-1].content == done.text
    number = chat.send("How many people?", response_format=Grammar.regex("[0-9]{1,5} people"))
    assert re.fullmatch("[0-9]{1,5} people", number.text)
    free = chat.send("Say hello.")
    assert free.is_complete and free.text
