"""Values of `format` by themselves: which texts an answer may have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.engine.constraints.grammar import Grammar, compile_grammar

RIGHT = {
    "date": ["2024-02-29", "2023-02-28", "2000-02-29", "0001-01-01"],
    "time": ["10:00:00Z", "23:59:59+01:00"],
    "date-time": ["2024-02-29T10:00:00Z"],
    "hostname": ["example.org", "a-b.example", "localhost"],
    "ipv4": ["127.0.0.1"],
    "ipv6": ["::1"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
    "email": ["a@example.org"],
}
WRONG = {
    "date": ["2023-02-29", "1900-02-29", "0000-01-01", "2024-13-01", "2024-01-32"],
    "time": ["23:59:60Z", "24:00:00Z"],
    "date-time": ["2023-02-29T10:00:00Z", "2024-02-29T10:00:60Z"],
    "hostname": ["xn--a", "-a.example", f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 62}"],
    "ipv4": ["256.0.0.1"],
    "ipv6": [":::1"],
    "uuid": ["123e4567"],
    "email": ["a"],
}


def accepts(smollm2: Any, schema: dict[str, Any], text: str) -> bool:
    constraint = compile_grammar(Grammar.json_schema(schema), smollm2.tokenizer)
    tokens = smollm2.tokenizer.encode(text)
    if constraint.fits(tokens) < len(tokens):
        return False
    for token in tokens:
        constraint.advance(token)
    return constraint.is_complete


@pytest.mark.parametrize("name", RIGHT)
def test_a_format_allows_what_it_means(smollm2, name: str):
    schema = {"type": "string", "format": name}
    assert [text for text in RIGHT[name] if not accepts(smollm2, schema, json.dumps(text))] == []
    assert [text for text in WRONG[name] if accepts(smollm2, schema, json.dumps(text))] == []


def test_a_whole_number_has_an_end(smollm2):
    """Its digits can't go on for ever, and bounds of the schema's own count."""
    fit = {"type": "integer"}
    assert accepts(smollm2, fit, str(2**53)) and accepts(smollm2, fit, str(-(2**53)))
    assert not accepts(smollm2, fit, "9" * 17) and not accepts(smollm2, fit, "-" + "9" * 17)
    assert not accepts(smollm2, {"type": "integer", "minimum": 5}, "4")
    assert accepts(smollm2, {"type": "integer", "exclusiveMaximum": -3}, "-4")
