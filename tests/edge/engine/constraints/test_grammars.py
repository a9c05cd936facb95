"""Grammars by themselves: they allow what they say, and what can't be said is an error that names it."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import Any

import jsonschema
import pytest

from edge.engine.constraints.grammar import Grammar, compile_grammar
from edge.engine.constraints.matcher import GrammarConstraint
from edge.engine.constraints.schema import FORMATS, KEYWORDS
from edge.errors import EdgeError, WrongTypeError
from edge.text.messages import REQUIRED, Tool
from edge.text.tools.grammar import answer_grammar
from edge.text.tools.python_calls import PythonFormat
from tests.walks import allowed_tokens, walk

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["new", "old", 3, None]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "boolean"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["v"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SHAPES = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Shapes",
    "$defs": {
        "circle": {
            "type": "object",
            "properties": {"kind": {"const": "c"}, "r": {"type": "number", "minimum": 0}},
        },
        "square": {"type": "object", "properties": {"kind": {"const": "s"}, "a": {"type": "integer"}}},
    },
    "oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}],
    "discriminator": {"propertyName": "kind"},
}
for _shape in SHAPES["$defs"].values():  # type: ignore[attr-defined]
    _shape |= {"required": [*_shape["properties"]], "additionalProperties": False}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    TREE,
    SHAPES,
    {"type": "object", "maxProperties": 2, "additionalProperties": {"type": "integer"}},
    {"type": "object", "patternProperties": {"^[a-c]{2}$": {"type": "null"}}, "additionalProperties": False},
    {"type": "object", "minProperties": 1, "properties": {"a": True}, "additionalProperties": False},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"const": 1}], "items": False, "minItems": 2},
    {"type": "array", "items": {"type": "array", "maxItems": 0}, "minItems": 1, "maxItems": 2},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}-\\d{2,4}$"},
    {"type": "string", "pattern": "x", "maxLength": 6},
    {"enum": ["a🙂b", "🙃", "漢字", "ß", True, None, 1.5, {"k": [1]}]},
    {"const": {"é": ["🇩🇪", -7]}},
    {"type": "integer", "multipleOf": 7, "minimum": -50, "maximum": 50},
    {"type": "number", "exclusiveMinimum": 1.5, "maximum": 2.25},
    {"type": "integer", "exclusiveMaximum": 0, "minimum": -3},
    {"anyOf": [{"type": "integer", "maximum": 5, "minimum": 1}, {"type": "string", "maxLength": 2}]},
    {"oneOf": [{"type": "boolean"}, {"enum": [1, 2]}, {"enum": [3, "x"]}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 6}]},
    {"type": "object", "required": ["z"], "additionalProperties": {"type": "boolean"}, "maxProperties": 1},
    {"type": "array", "items": [{"const": 1}], "additionalItems": {"type": "null"}, "maxItems": 4},
    {"properties": {"a": {"const": 1}}, "type": "object", "required": ["a"], "x-y": 3, "uniqueItems": False},
    *({"type": "string", "format": name} for name in FORMATS),
]  # fmt: skip
REGEXES = [
    r"yes|no",
    r"[a-f0-9]{8}",
    r"\d{1,3}(\.\d{1,3}){3}",
    r"(🙂|🙃|👩‍👩‍👧){1,3}",
    r"[^\x00-\x7f]{1,4}",
    r"^(?:ab?c)+$",
    r" \w{1,4} \S",
    r"(?i)edge",
]
LARKS = [
    ('start: "a" | "b" start', r"b*a"),
    ('start: NAME ("," NAME)*\nNAME: /[a-z]{1,5}/', r"[a-z]{1,5}(,[a-z]{1,5})*"),
    ('start: "(" start ")" | "x"', r"\(*x\)*"),
    ("%import common.INT\nstart: INT", r"\d+"),
]


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_walks_satisfy_their_schema(smollm2, number):
    schema = SCHEMAS[number]
    grammar = Grammar.json_schema(schema)
    whole = 0
    for seed in range(4):
        text, is_complete = walk(lambda: compile_grammar(grammar, smollm2.tokenizer), smollm2.tokenizer, seed)
        drawn = walk(
            lambda: compile_grammar(grammar, smollm2.tokenizer), smollm2.tokenizer, seed, forced=False
        )
        assert drawn == (text, is_complete)
        if is_complete:
            validator = jsonschema.Draft202012Validator
            if isinstance(schema.get("items"), list):
                validator = jsonschema.Draft7Validator  # type: ignore[assignment]
            validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text))
            whole += 1
    assert whole >= 1


@pytest.mark.parametrize("regex", REGEXES)
def test_walks_match_their_regex(smollm2, regex):
    grammar = Grammar.regex(regex)
    for seed in range(8):
        text, is_complete = walk(lambda: compile_grammar(grammar, smollm2.tokenizer), smollm2.tokenizer, seed)
        assert is_complete and re.fullmatch(regex, text), text


@pytest.mark.parametrize(("lark", "regex"), LARKS)
def test_walks_follow_their_lark_grammar(smollm2, lark, regex):
    grammar = Grammar.lark(lark)
    for seed in range(8):
        text, is_complete = walk(lambda: compile_grammar(grammar, smollm2.tokenizer), smollm2.tokenizer, seed)
        assert not is_complete or re.fullmatch(regex, text), text


def test_schemas_inside_of_a_lark_grammar(smollm2):
    """They are checked, and written as others are."""
    tokenizer = smollm2.tokenizer
    grammar = Grammar.lark(f'start: "call " json\n# %json here\njson: %json {json.dumps(PERSON)}\n')
    text, is_complete = walk(lambda: compile_grammar(grammar, tokenizer), tokenizer, 1)
    assert is_complete and text.startswith('call {"name": "')
    jsonschema.validate(json.loads(text.removeprefix("call ")), PERSON)
    with pytest.raises(EdgeError, match="'uniqueItems' of JSON schema at #/items"):
        compile_grammar(Grammar.lark('start: %json {"items": {"uniqueItems": true}}'), tokenizer)


def test_characters_spread_over_tokens(smollm2):
    """Every path of bytes to an emoji is open, and no other byte."""
    tokenizer = smollm2.tokenizer
    constraint = compile_grammar(Grammar.regex("🙂|🙃"), tokenizer)
    seen = b""
    while not constraint.is_complete:
        tokens = allowed_tokens(constraint, tokenizer.vocab_size)
        assert all(
            any((seen + tokenizer.token_bytes(token)).startswith(emoji[: len(seen) + 1]) for token in tokens)
            for emoji in ("🙂".encode(), "🙃".encode()) if emoji.startswith(seen)
        )  # fmt: skip
        token = min(tokens, key=lambda token: len(tokenizer.token_bytes(token)))
        seen += tokenizer.token_bytes(token)
        constraint.advance(token)
    assert seen.decode() in ("🙂", "🙃") and tokenizer.eos_ids == {
        *allowed_tokens(constraint, tokenizer.vocab_size)
    }


def test_end_tokens_are_all_or_none(smollm2):
    tokenizer = smollm2.tokenizer
    assert len(tokenizer.eos_ids) > 1
    constraint = compile_grammar(Grammar.regex("a{2,3}"), tokenizer)
    (a,) = tokenizer.encode("a", continues=True)
    for seen in range(4):
        ends = tokenizer.eos_ids & {*allowed_tokens(constraint, tokenizer.vocab_size)}
        assert ends == (tokenizer.eos_ids if seen >= 2 else set()) and constraint.is_complete == (seen >= 2)
        if seen < 3:
            constraint.advance(a)
    assert constraint.forced()[-1] in tokenizer.eos_ids
    constraint.advance(2)
    assert constraint.is_complete and constraint.forced() == ()


def test_forced_tokens_are_those_that_the_tokenizer_writes(smollm2):
    tokenizer = smollm2.tokenizer
    text = '{"a_rather_long_name_of_a_property": null}'
    schema = {"type": "object", "properties": {"a_rather_long_name_of_a_property": {"type": "null"}}}
    schema |= {"required": ["a_rather_long_name_of_a_property"], "additionalProperties": False}
    constraint = compile_grammar(Grammar.json_schema(schema), tokenizer)
    found: list[int] = []
    while tokens := constraint.forced():
        for token in tokens:
            constraint.advance(token)
        found += tokens
    assert found[-1] in tokenizer.eos_ids and found[:-1] == tokenizer.encode(text, continues=True)


def test_what_fits(smollm2):
    tokenizer = smollm2.tokenizer
    constraint = compile_grammar(Grammar.json_schema(PERSON), tokenizer)
    right = tokenizer.encode('{"name": "Ann", "age": 30}', continues=True)
    assert constraint.fits(right) == len(right)
    wrong = tokenizer.encode('{"name": "Ann", "age": thirty}', continues=True)
    assert wrong[:-3] == right[: len(wrong) - 3] or constraint.fits(wrong) < len(wrong)
    for count, token in enumerate(right):
        assert constraint.fits(right[count:]) == len(right) - count
        constraint.advance(token)
    assert constraint.is_complete
    for token in right[:3]:
        assert constraint.fits([token]) == 0


def test_a_token_that_was_not_allowed_is_an_error(smollm2):
    constraint = compile_grammar(Grammar.regex("a"), smollm2.tokenizer)
    with pytest.raises(EdgeError, match="The answer can't go on in its grammar"):
        constraint.advance(100)


UNSUPPORTED = {
    "not": {}, "if": {}, "then": {}, "else": {}, "contains": {}, "minContains": 1, "maxContains": 1,
    "uniqueItems": True, "propertyNames": {}, "dependentRequired": {}, "dependentSchemas": {},
    "dependencies": {},
    "unevaluatedProperties": False, "unevaluatedItems": False, "$dynamicRef": "#x", "$recursiveRef": "#",
    "$anchor": "x", "$dynamicAnchor": "x", "$vocabulary": {}, "nullable": True, "extends": {}, "disallow": [],
    "divisibleBy": 2, "minLenght": 3,
}  # fmt: skip


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_an_unsupported_keyword_is_named_with_its_place(keyword):
    inner = {"type": "object", "properties": {"a/b": {"items": {keyword: UNSUPPORTED[keyword]}}}}
    with pytest.raises(EdgeError, match=re.escape(f"'{keyword}' of JSON schema at #/properties/a~1b/items ")):
        Grammar.json_schema(inner)
    assert keyword not in KEYWORDS


REFUSED: list[tuple[Any, str]] = [
    ({"type": "string", "format": "regex"}, "The format 'regex' at # is not supported: choose one of"),
    ({"$ref": "other.json#/a"}, "'$ref' at # names 'other.json#/a'"),
    ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "'$ref' at #/properties/a names #/$defs/no, which"),
    ({"$schema": "https://example.org/own"}, "'$schema' at # names"),
    ({"type": "strin"}, "'type' at # should be of null, boolean"),
    ({"type": []}, "'type' at # should be of"),
    ({"anyOf": []}, "'anyOf' at # should be a list of schemas"),
    ({"items": 3}, "has 3 at #/items, where a schema should stand"),
    ({"properties": []}, "'properties' at # should be an object"),
    ({"required": "a"}, "'required' at # should be a list of names"),
    ({"minLength": -1}, "'minLength' at # should be a whole number"),
    ({"multipleOf": 0}, "'multipleOf' at # should be a number above 0"),
    ({"const": 2**53 + 1}, "'const' at # has 9007199254740993, which is too large to be exact"),
    ({"type": "object", "minProperties": 2}, "'minProperties' at # is not supported beyond 1"),
    ({"prefixItems": [{}], "additionalItems": False}, "'additionalItems' at # is not supported"),
    ({"$ref": "#"}, "contains itself without an end"),
    ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "contains itself"),
    ({"a": {1}}, "can't be written as JSON"),
    ({"const": float("nan")}, "can't be written as JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "sentence"), REFUSED)
def test_a_schema_that_is_refused(schema, sentence):
    with pytest.raises(EdgeError, match=re.escape(sentence)):
        Grammar.json_schema(schema)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def of_json(text: str) -> Grammar:
    return Grammar("json_schema", text)


UNUSABLE = [
    (of_json('{"type": "string", "minLength": 5, "maxLength": 3}'), "Nothing satisfies the JSON schema: m"),
    (of_json('{"enum": []}'), "Nothing satisfies the JSON schema"),
    (of_json('{"allOf": [{"type": "null"}, {"type": "array"}]}'), "Nothing satisfies the JSON schema"),
    (of_json('{"oneOf": [{"type": "string"}, {"maxLength": 3}]}'), "The keyword 'oneOf' of"),
    (of_json('{"pattern": "a(b"}'), "JSON schema is not usable: unclosed group (character 2"),
    (Grammar.regex("a(b"), "The regex is not usable: unclosed group (character 2 of the regex)."),
    (Grammar.regex("(?=a)"), "The regex is not usable: look-around"),
    (Grammar.regex("(" * 5000 + ")" * 5000), "The regex is not usable: exceed the maximum number of nested"),
    (Grammar.regex("[a-z]{900}" * 400 + "x" * 2**20), "more than 1048576 characters"),
    (Grammar.lark("start: x"), 'The Lark grammar is not usable: unknown name: "x" (line 1, column 8).'),
    (Grammar.lark('start: "b"\na: "a'), "The Lark grammar is not usable: lexer error (line 2, column 6)."),
    (Grammar.lark("start: <|nothing|>"), 'unknown special token: "<|nothing|>" (line 1, column 8)'),
    (Grammar.lark('start: start "a"'), "Nothing satisfies the Lark grammar."),
    (Grammar.lark("start[temperature=0.5]: /a+/"), "The option 'temperature' of a rule"),
    (Grammar.lark("start: a\r\n \t a [ lazy, max_tokens = 3]: /a/"), "The option 'max_tokens' of a rule"),
    (Grammar.lark(""), "The Lark grammar is not usable"),
    (Grammar.lark("start: " + "(" * 9000 + '"a"' + ")" * 9000), "lark grammar too deeply nested"),
]  # fmt: skip


@pytest.mark.parametrize(("grammar", "sentence"), UNUSABLE)
def test_a_grammar_that_can_not_be_used(smollm2, grammar, sentence):
    with pytest.raises(EdgeError, match=re.escape(sentence)) as caught:
        compile_grammar(grammar, smollm2.tokenizer)
    assert len(str(caught.value)) < 420 and "\n" not in str(caught.value)


def test_a_schema_that_is_nested_deep(smollm2):
    assert isinstance(compile_grammar(Grammar.json_schema(nested(30)), smollm2.tokenizer), GrammarConstraint)
    with pytest.raises(EdgeError, match="nested deeper than 64 levels"):
        Grammar.json_schema(nested(60))


def test_values_that_are_no_grammars(smollm2):
    for wrong in ([], "{}", None, 3, True):
        with pytest.raises(WrongTypeError):
            Grammar.json_schema(wrong)  # type: ignore[arg-type]
        with pytest.raises(WrongTypeError):
            compile_grammar(wrong, smollm2.tokenizer)  # type: ignore[arg-type]
    with pytest.raises(WrongTypeError):
        Grammar.regex(b"a")  # type: ignore[arg-type]


def test_numbers_are_what_readers_make_of_them(smollm2):
    """`48.0000000000000004` is more than 48, and 48 to whoever reads it."""
    tokenizer = smollm2.tokenizer
    for low, step in ((48, "48.000000001"), (0, "0.000000001"), (10**12, "1000000000000.1")):
        schema = {"type": ["number", "null"], "exclusiveMinimum": low}
        constraint = compile_grammar(Grammar.json_schema(schema), tokenizer)
        for token in tokenizer.encode(step, continues=True):
            constraint.advance(token)
        assert constraint.is_complete and float(step) > low
        assert not {tokenizer.token_id(digit) for digit in "0123456789"} & {
            *allowed_tokens(constraint, tokenizer.vocab_size)
        }


def test_options_inside_of_a_schema_are_not_believed(smollm2):
    """llguidance would ignore unknown keywords with this one."""
    schema = {"x-guidance": {"lenient": True}, "type": "object", "maxProperties": 0}
    texts = {
        walk(lambda: compile_grammar(Grammar.json_schema(schema), smollm2.tokenizer), smollm2.tokenizer, seed)
        for seed in range(3)
    }
    assert texts == {("{}", True)}
    with pytest.raises(EdgeError, match="'foo' of JSON schema"):
        Grammar.json_schema({**schema, "foo": 1})


MANY = 200_000
HUGE = [
    (Grammar.lark("\n" * MANY), "The Lark grammar is not usable"),
    (Grammar.lark(" " * MANY), "The Lark grammar is not usable"),
    (Grammar.lark("start: x\n" + "\n" * MANY), "The Lark grammar is not usable"),
    (Grammar.lark("\n" * MANY + "start: x"), "The Lark grammar is not usable"),
    (Grammar.lark("start: \n" + " \n" * MANY + "x"), "The Lark grammar is not usable"),
    (Grammar.lark('start: %json {"' + '\\"' * MANY), "Unterminated string"),
    (Grammar.lark('start: %json {"' + '\\\n"' * MANY), "not valid JSON"),
]


@pytest.mark.parametrize(("grammar", "sentence"), HUGE)
def test_a_text_of_blanks_or_quotes_is_read_once(smollm2, grammar, sentence):
    """Patterns that begin anew at each of them look at its characters 10^10 times."""
    with pytest.raises(EdgeError, match=re.escape(sentence)):
        compile_grammar(grammar, smollm2.tokenizer)


@pytest.mark.parametrize("required", [0, 1, 3])
def test_arguments_in_a_row_may_be_left_out(smollm2, required):
    """Any of those that are optional, in their order, with commas between those that are there."""
    names = ["a", "b", "c"]
    properties = {name: {"type": "boolean"} for name in names}
    tool = Tool("f", "", {"type": "object", "properties": properties, "required": names[:required]})
    lark = answer_grammar(PythonFormat("<", ">"), [tool], REQUIRED, {}, parallel=False)
    for chosen in product((False, True), repeat=3):
        there = [name for name, is_there in zip(names, chosen, strict=True) if is_there]
        for text in (f"<f({', '.join(f'{name}=True' for name in there)})>", f"<f({', '.join(there)},)>"):
            constraint = compile_grammar(Grammar.lark(lark), smollm2.tokenizer)
            tokens = smollm2.tokenizer.encode(text, add_bos=False, continues=True)
            whole = constraint.fits(tokens) == len(tokens)
            assert whole == (text[-3] != "," and there[:required] == names[:required]), text
