"""What callers may write for a form."""

from __future__ import annotations

import pytest

from edge.engine.constraints.grammar import Grammar
from edge.engine.constraints.response_format import read_response_format
from edge.errors import EdgeError, WrongTypeError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


class Declared:
    """As classes of pydantic's are."""

    @classmethod
    def model_json_schema(cls) -> dict[str, object]:
        return SCHEMA


def test_forms():
    grammar = Grammar.json_schema(SCHEMA)
    wrapped = {"name": "x", "description": "y", "strict": True, "schema": SCHEMA}
    assert read_response_format({"type": "json_schema", "json_schema": wrapped}) == grammar
    assert read_response_format(grammar) is grammar and read_response_format(Declared) == grammar
    assert read_response_format({"type": "json_object"}) == Grammar.json_object()
    assert read_response_format({"type": "text"}) is None and read_response_format(None) is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (SCHEMA, 'looks like a JSON schema by itself: give {"type": "json_schema"'),
        ({}, "looks like a JSON schema by itself"),
        ({"type": "xml"}, "response_format has the type 'xml'"),
        ({"type": "json_schema"}, "no schema at json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": []}}, "no schema at json_schema.schema"),
        ({"type": "json_schema", "schema": SCHEMA}, "There is no 'schema' in response_format"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}, "There is no 'x' in json_schema"),
        ({"type": "json_object", "json_schema": {}}, "There is no 'json_schema' in response_format"),
    ],
)
def test_a_form_that_is_none_says_the_right_one(given, sentence):
    with pytest.raises(EdgeError) as caught:
        read_response_format(given)
    assert sentence in str(caught.value) and '{"type": "json_object"}' in str(caught.value)


@pytest.mark.parametrize("given", ["json", 3, [], True, str, object()])
def test_values_that_are_no_forms(given):
    with pytest.raises(WrongTypeError, match="response_format is"):
        read_response_format(given)
