"""JSON schemas by themselves: what refers to itself and to others in many ways is looked at once."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from edge.engine.constraints.finite import can_end
from edge.engine.constraints.grammar import Grammar, compile_grammar
from edge.engine.constraints.matcher import GrammarConstraint
from edge.engine.constraints.schema import prepare_schema
from edge.errors import EdgeError

STEPS = 40  # 2^40 ways lead to the last one


def of_object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def of_two(name: str) -> dict[str, Any]:
    return of_object(["x", "y"], x={"$ref": f"#/$defs/{name}"}, y={"$ref": f"#/$defs/{name}"})


def ladder(name: str, last: dict[str, Any]) -> dict[str, Any]:
    """Objects that each require two of the next."""
    return {**{f"{name}{n}": of_two(f"{name}{n + 1}") for n in range(STEPS)}, f"{name}{STEPS}": last}


def test_many_ways_to_a_schema_that_can_end(smollm2):
    grammar = Grammar.json_schema({"$defs": ladder("A", {"type": "null"}), "$ref": "#/$defs/A0"})
    assert isinstance(compile_grammar(grammar, smollm2.tokenizer), GrammarConstraint)


def test_many_ways_to_a_schema_that_has_no_end():
    with pytest.raises(EdgeError, match="contains itself without an end"):
        prepare_schema({"$defs": ladder("A", of_two("A0")), "$ref": "#/$defs/A0"})


def one_of(**definitions: Any) -> dict[str, Any]:
    options = [{"$ref": "#/$defs/A0"}, {"$ref": "#/$defs/B0"}]
    return {"$defs": definitions, "anyOf": [{"oneOf": options}, {"type": "null"}]}


@pytest.mark.parametrize("apart", [True, False])
def test_many_ways_to_the_difference_of_two_options(apart):
    last = {"const": 2} if apart else {"type": "integer"}
    schema = one_of(**ladder("A", {"const": 1}), **ladder("B", last))
    assert ("anyOf" in prepare_schema(schema)["anyOf"][0]) == apart


@pytest.mark.parametrize("apart", [True, False])
def test_options_that_require_themselves(apart):
    """The kind stands behind what is the same schema again."""
    a = of_object(["a", "kind"], a={"$ref": "#/$defs/A0"}, kind={"const": 1})
    b = of_object(["a", "kind"], a={"$ref": "#/$defs/B0"}, kind={"const": 2 if apart else 1})
    assert ("anyOf" in prepare_schema(one_of(A0=a, B0=b))["anyOf"][0]) == apart


def test_options_are_compared_once_all_they_refer_to_has_been_checked():
    """The first option is a schema whose other property has not been looked at when its own options are."""
    a = of_object(["k", "z"], k={"oneOf": [{"$ref": "#"}, of_object(["z"], z=True)]}, z={"required": 5})
    with pytest.raises(EdgeError, match="'required' at #/properties/z should be a list of names"):
        prepare_schema(a)


SELF = {"$ref": "#"}
ENDINGS: list[tuple[dict[str, Any], bool]] = [
    (SELF, False),
    ({"anyOf": [SELF, {"type": "null"}]}, True),
    ({"anyOf": [{"type": "null"}, SELF], "oneOf": [SELF]}, False),
    ({"allOf": [{"type": "null"}, SELF]}, False),
    ({"type": "array", "items": SELF}, True),
    ({"type": "array", "items": SELF, "minItems": 1}, False),
    ({"type": "array", "prefixItems": [{}], "items": SELF, "minItems": 1}, True),
    (of_object(["a", "a"], a={"anyOf": [SELF, SELF, True, True]}), True),
    (of_object([], a=SELF), True),
    (of_object(["b"], a=SELF), True),
    (of_object(["a"], a={"anyOf": [of_object(["b"], b=SELF), SELF]}), False),
]


@pytest.mark.parametrize(("schema", "ends"), ENDINGS)
def test_what_can_end(schema, ends):
    assert can_end(schema, lambda _: schema) == ends


def tagged(count: int) -> dict[str, Any]:
    return {"oneOf": [of_object(["kind"], kind={"const": n}) for n in range(count)]}


TOO_MUCH = [
    (tagged(1000), "The options of 'oneOf' in the JSON schema are too many to compare"),
    ({"oneOf": [{"enum": [*range(2000), -n]} for n in range(1, 16)]}, "The keyword"),
    ({"oneOf": [{"enum": [*range(n, 10**5, 40)]} for n in range(40)]}, "too many to compare"),
    ({"properties": {f"p{n}": {} for n in range(20_001)}}, "consists of more than 20000 schemas"),
    ({"description": "a" * 2**20}, "has more than 1048576 characters"),
    ({"items": {"$ref": "#/prefixItems/" + "1" * 5000}, "prefixItems": [{}]}, "names #/prefixItems/111"),
]


@pytest.mark.parametrize(("schema", "sentence"), TOO_MUCH)
def test_a_schema_that_would_take_too_long(smollm2, schema, sentence):
    with pytest.raises(EdgeError, match=re.escape(sentence)) as caught:
        compile_grammar(Grammar.json_schema(schema), smollm2.tokenizer)
    assert len(str(caught.value)) < 420


def test_many_options_that_exclude_each_other():
    assert "anyOf" in prepare_schema(tagged(200))


def test_a_long_name_is_not_written_out_for_each_schema_below_it():
    inner = {"properties": {f"p{n}": True for n in range(50_000)}, "no": 1}
    with pytest.raises(EdgeError, match=r"'no' of JSON schema at #/properties/a{57}\.\.\. is not"):
        prepare_schema({"properties": {"a" * 100_000: inner}})


ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**400, math.nan, "", "a", [], [1], ["a"], [[1]], [{}], [None], [["x"]]),
    *({}, {"a": 1}, {"a": None}, {"a": {}}, {"a": []}),
]
WORDS = (
    *(
        "type",
        "const",
        "enum",
        "anyOf",
        "allOf",
        "oneOf",
        "$ref",
        "$defs",
        "definitions",
        "format",
        "pattern",
    ),
    *(
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "minProperties",
        "maxProperties",
    ),
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "title", "not"),
)


@pytest.mark.parametrize("word", WORDS)
def test_any_value_of_a_keyword_is_read_or_refused(word: str):
    faults = []
    for value in ODD:
        for beside in ({}, {"type": "object", "minProperties": 1}, {"type": "number"}, {"items": {}}):
            try:
                Grammar.json_schema({**beside, word: value})
            except EdgeError:
                continue
            except Exception as error:
                faults.append((value, beside, error))
    assert not faults
