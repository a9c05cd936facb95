"""Grammars as values, and what becomes of them: constraints of answers."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from edge.engine.constraints.matcher import GrammarConstraint
from edge.engine.constraints.repetition import check_lark, check_regex
from edge.engine.constraints.schema import JSON_STYLE, LONGEST, prepare_schema, schema_text
from edge.engine.constraints.vocabulary import Vocabulary, require_llguidance, vocabulary_of
from edge.errors import EdgeError, WrongTypeError
from edge.formats.guarded_json import parse_object
from edge.text.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]

_MOST_KEPT = 64  # compiled grammars of one tokenizer
_INLINE_SCHEMA = re.compile(r"%json\s*(?=\{)")
# These run over a client's text, so none of them may look at it again from every place: blanks at the
# beginning of a line end with it, and a quotation that nothing closes goes to the end.
_RULE_OPTIONS = re.compile(
    r"^[^\S\n]*[?!]?[\w-]+\s*\[[^\]\n]*?\b(stop|temperature|max_tokens)\s*=", re.MULTILINE
)


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like. source: JSON text of a schema, a regex, a Lark grammar, or nothing."""

    kind: GrammarKind
    source: str = ""

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Grammar:
        """JSON that satisfies a schema (draft 2020-12). EdgeError for a schema that is not supported."""
        prepare_schema(schema)
        return cls("json_schema", schema_text(schema))

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls("json_object")

    @classmethod
    def regex(cls, text: str) -> Grammar:
        r"""A text that a regex matches from its beginning to its end. \\d, \\w and \\s are of ASCII."""
        return cls("regex", _text(text, "regex"))

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A grammar in llguidance's dialect of Lark, which may have JSON schemas inside (`%json {...}`)."""
        return cls("lark", _text(text, "Lark grammar"))


def compile_grammar(grammar: Grammar, tokenizer: Tokenizer) -> GrammarConstraint:
    """The constraint of one answer; what was compiled before for this tokenizer is not compiled again.

    Raises EdgeError that says what is wrong where: a keyword that is not supported, a mistake in a regex or a
    grammar, what nothing satisfies, what is too large.
    """
    if not isinstance(grammar, Grammar):
        raise WrongTypeError(f"A grammar is made by Grammar.json_schema, .regex or .lark, got {grammar!r}.")
    vocabulary = vocabulary_of(tokenizer)
    with _LOCK:
        kept = _COMPILED.setdefault(vocabulary, OrderedDict())
        found = kept.get(grammar)
        if found is not None:
            kept.move_to_end(grammar)
    if found is None:
        found = _compiled(grammar, vocabulary)
        with _LOCK:
            kept[grammar] = found
            while len(kept) > _MOST_KEPT:
                kept.popitem(last=False)
    return GrammarConstraint(vocabulary, found.deep_copy())


_COMPILED: WeakKeyDictionary[Vocabulary, OrderedDict[Grammar, LLMatcher]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _compiled(grammar: Grammar, vocabulary: Vocabulary) -> LLMatcher:
    llguidance = require_llguidance()
    if len(grammar.source) > LONGEST:
        raise EdgeError(f"The grammar has more than {LONGEST} characters: make it smaller.")
    try:
        source = _source(grammar, llguidance)
    except ValueError as error:
        said = "it is nested too deep" if "recursion limit" in str(error) else _line(str(error))
        raise EdgeError(f"The {_NAMES[grammar.kind]} is not usable: {said}.") from None
    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher: LLMatcher = llguidance.LLMatcher(vocabulary.native, source, log_level=0, limits=limits)
    if matcher.is_error():
        raise _refusal(grammar, matcher.get_error())
    try:
        GrammarConstraint(vocabulary, matcher.deep_copy()).allowed()
    except EdgeError as error:
        if "NoExtension" not in str(error):
            raise
        raise EdgeError(f"Nothing satisfies the {_NAMES[grammar.kind]}.") from None
    return matcher


_NAMES: Mapping[GrammarKind, str] = {
    "json_schema": "JSON schema",
    "json_object": "JSON object",
    "regex": "regex",
    "lark": "Lark grammar",
}


def _source(grammar: Grammar, llguidance: Any) -> str:
    """As llguidance takes it."""
    matcher = llguidance.LLMatcher
    if grammar.kind == "regex":
        check_regex(grammar.source, "regex")
        return str(matcher.grammar_from_regex(llguidance.regex_to_lark(grammar.source, "dws")))
    if grammar.kind == "lark":
        check_lark(grammar.source)
        return str(matcher.grammar_from_lark(_with_schemas(grammar.source)))
    schema = {"type": "object"} if grammar.kind == "json_object" else _schema(grammar.source)
    return str(matcher.grammar_from_json_schema(json.dumps(prepare_schema(schema)), overrides=JSON_STYLE))


def _schema(text: str) -> dict[str, Any]:
    return parse_object(text, "The JSON schema", EdgeError, "make it simpler")


def _end_of_object(text: str, start: int) -> int:
    """The place behind the JSON object that begins at `start`; the end of the text if it has none."""
    depth = 0
    for part in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(part[0], 0)
        if depth == 0:
            return part.end()
    return len(text)


_BRACES = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[{}]', re.DOTALL)


def _with_schemas(lark: str) -> str:
    """A Lark grammar whose inline schemas have been checked and are written in our style."""
    if option := _RULE_OPTIONS.search(lark):
        raise EdgeError(
            f"The option '{option[1]}' of a rule in the Lark grammar is not supported: leave it out."
        )
    parts: list[str] = []
    start = 0
    while found := _INLINE_SCHEMA.search(lark, start):
        end = _end_of_object(lark, found.end())
        styled = {**prepare_schema(_schema(lark[found.end() : end])), "x-guidance": JSON_STYLE}
        parts += [lark[start : found.end()], json.dumps(styled)]
        start = end
    return "".join(parts) + lark[start:]


def _refusal(grammar: Grammar, said: str) -> EdgeError:
    """llguidance's words in a sentence of ours."""
    name = _NAMES[grammar.kind]
    if "Unsatisfiable schema" in said:
        return EdgeError(f"Nothing satisfies the {name}: {_line(said.partition('schema: ')[2])}.")
    if "oneOf constraints are not supported" in said:
        return EdgeError(
            f"The keyword 'oneOf' of the {name} is supported only where its options exclude each other, by "
            "their types, their values or a property that each requires: say anyOf where several may hold."
        )
    said, _, _ = _QUOTED.split(said, 1)[0].partition("; following special tokens")
    where = _PLACE.match(said)
    place = ""
    if where is not None:
        said = said[where.end() :]
        place = "" if grammar.kind == "regex" else f"line {where[1]}, column {where[2]}"
    if found := _REGEX.search(said):
        at = f"character {len(found[1]) - 3} of the regex"
        said, place = found[2], f"{place}, {at}" if place else at
    return EdgeError(f"The {name} is not usable: {_line(said)}{f' ({place})' if place else ''}.")


_PLACE = re.compile(r"(?:at )?(\d+)\((\d+)\): ")
_QUOTED = re.compile(r"\n[^\S\n]+\d+ \| ")  # lines of the source, with a mark below them
_REGEX = re.compile(r"regex parse error:\n.*\n( +)\^+\nerror: (.*)")


def _line(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= 300 else text[:297] + "..."


def _text(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise WrongTypeError(f"A {what} is a text, got {text!r}.")
    return text
