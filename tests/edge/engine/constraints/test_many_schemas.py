"""300 schemas that a small model answers: whatever is whole is valid."""

from __future__ import annotations

import json

import jsonschema
import pytest

from edge.engine.constraints.grammar import Grammar
from tests.random_schemas import random_schema


@pytest.mark.parametrize("count", [3, pytest.param(300, marks=pytest.mark.slow)])
def test_every_whole_answer_is_valid(smollm2, count):
    validator = jsonschema.Draft202012Validator
    whole = 0
    for seed in range(count):
        schema = random_schema(seed)
        prompt = f"An example of a record as JSON. It has: {', '.join(schema['properties'])}."
        chat = smollm2.chat(temperature=0, max_new_tokens=160)
        done = chat.send(prompt, response_format=Grammar.json_schema(schema))
        assert done.is_complete == (done.stop_reason == "eos"), (seed, done)
        if done.is_complete:
            value = json.loads(done.text)
            validator(schema, format_checker=validator.FORMAT_CHECKER).validate(value)
            whole += 1
    assert whole >= 0.6 * count
