"""Patterns that repeat too much are refused before they are compiled, and others are not."""

from __future__ import annotations

from contextlib import suppress
from time import process_time

import pytest

from edge.engine.constraints.grammar import Grammar, compile_grammar
from edge.engine.constraints.repetition import _REGEX, MOST_REPEATED, _regex_part, _weight, check_lark
from edge.errors import EdgeError


@pytest.mark.parametrize(
    ("regex", "weight"),
    [
        ("abc", 3),
        ("a{10}b", 11),
        ("(a{10}b){3}", 33),
        ("(?:ab|c{5}|d){4}", 20),
        ("(?P<x>a{2}(b{3}){4})?", 14),
        ("a{0,100000}", 1),
        ("[a-z{9}]{3}", 3),
        (r"[]\]]{2}[[:alpha:]x]{2}", 4),
        (r"\{9}\p{Greek}{3}\x{41}{2}", 8),
        ("((a{3}|b", 3),
        ("a{3})b{2}", 5),
        ("((((a{100}){100}){100}){100}){100}", 10**10),
        ("a{99999999999999999999}", 10**12 - 1),
    ],
)
def test_what_a_regex_repeats(regex: str, weight: int):
    assert _weight(_REGEX.finditer(regex), _regex_part) == weight


REFUSED = [
    (
        Grammar.regex("(a{1000}){1000}"),
        "The regex is not usable: it repeats up to 1000000 characters in a row",
    ),
    (Grammar.regex("x|[ab](a{1000}){1000}"), "The regex"),
    (Grammar.regex("(((a{40}){40}){40})?"), "up to 64000 characters"),
    (Grammar.regex("a" * (MOST_REPEATED + 1)), f"up to {MOST_REPEATED + 1} characters"),
    (Grammar.lark("start: /(a{1000}){1000}/"), "The Lark grammar is not usable: it repeats up to 1000000"),
    (Grammar.lark("start: A\nA: B{1000}\nB: /c{1000}/"), "The Lark grammar"),
    (Grammar.lark('start: A\nA.2: "x"\n  | (B | "y")~300\nB: "ab" C*\nC: /c{400}/'), "up to 120600"),
    (Grammar("json_schema", '{"pattern": "^(a{500}){500}$"}'), "The pattern at # is not usable"),
    (
        Grammar("json_schema", '{"type": "object", "patternProperties": {"(a{500}){500}": true}}'),
        "The pattern of a name at # is not usable",
    ),
]


@pytest.mark.parametrize(("grammar", "sentence"), REFUSED)
def test_what_repeats_too_much_is_refused(smollm2, grammar: Grammar, sentence: str):
    with pytest.raises(EdgeError, match=sentence):
        compile_grammar(grammar, smollm2.tokenizer)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.regex("(a{100}){100}"),
        Grammar.regex("(?:[a-z]{1,5} ){0,20000}"),
        Grammar.lark('start: (A | B){2}\nA: /a{10000}/\nB: /b{30000}/  // "(c{999}){999}"'),
        Grammar.lark('start: "/" A\nA: A_B "(" \nA_B: "[" /[^x]{3}x/'),
        Grammar("json_schema", '{"type": "array", "minItems": 100000, "items": {"minLength": 100000}}'),
    ],
)
def test_what_is_within_the_limit(smollm2, grammar: Grammar):
    assert compile_grammar(grammar, smollm2.tokenizer).allowed().any()


def test_terminals_that_are_part_of_themselves_end():
    check_lark("start: A\nA: B{9}\nB: A{9} | A")
    chain = "\n".join(f"A{n}: A{n + 1}" for n in range(100_000))
    with pytest.raises(EdgeError, match="nested too deep"):
        check_lark(chain)


@pytest.mark.parametrize(
    "unit", ["[", "[[:a", "(?P<", r"\\p{", "{1", '\\"', "/\\", '"', "(", "[a", "A:", "A: A\n", "~1"]
)
def test_the_syntax_is_looked_at_once(unit: str):
    """Looked at again from every place, it would take minutes."""
    text = (unit * 200_000)[:200_000]
    before = process_time()
    _weight(_REGEX.finditer(text), _regex_part)
    with suppress(EdgeError):
        check_lark(f'start: "{text}')
    with suppress(EdgeError):
        check_lark(f"A: /{text}")
    assert process_time() - before < 20
