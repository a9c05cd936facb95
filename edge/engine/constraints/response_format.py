"""What callers may give as `response_format`: a grammar, or what OpenAI's clients write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.engine.constraints.constraint import Constraint
from edge.engine.constraints.grammar import Grammar, compile_grammar
from edge.errors import EdgeError, WrongTypeError
from edge.text.tokenizer.base import Tokenizer

ResponseFormat = Grammar | Mapping[str, Any] | type
"""A `Grammar`; `{"type": "json_schema", "json_schema": {"schema": {...}}}`, `{"type": "json_object"}` or
`{"type": "text"}`; or a class of pydantic's.
"""

_RIGHT = (
    'give {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, {"type": "json_object"}, '
    '{"type": "text"}, or a Grammar'
)
_OF_SCHEMA = ("name", "description", "schema", "strict")


def read_response_format(given: Any) -> Grammar | None:
    """The grammar that is meant, None for any text; EdgeError with the right form for anything else."""
    if given is None or isinstance(given, Grammar):
        return given
    if isinstance(given, type) and callable(schema := getattr(given, "model_json_schema", None)):
        return Grammar.json_schema(schema())
    if not isinstance(given, Mapping):
        raise WrongTypeError(f"response_format is {_shown(given)}: {_RIGHT}.")
    kind = given.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        if kind is None or "properties" in given or "$schema" in given:
            raise EdgeError(f"response_format looks like a JSON schema by itself: {_RIGHT}.")
        raise EdgeError(f"response_format has the type {_shown(kind)}: {_RIGHT}.")
    allowed = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    _refuse_others(given, allowed, "response_format")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_object()
    wrapped = given.get("json_schema")
    if not isinstance(wrapped, Mapping) or not isinstance(wrapped.get("schema"), Mapping):
        raise EdgeError(f"response_format has no schema at json_schema.schema: {_RIGHT}.")
    _refuse_others(wrapped, _OF_SCHEMA, "json_schema of response_format")
    return Grammar.json_schema(wrapped["schema"])


def constraint_of(given: ResponseFormat | None, tokenizer: Tokenizer) -> Constraint | None:
    """What holds one answer to it."""
    grammar = read_response_format(given)
    return None if grammar is None else compile_grammar(grammar, tokenizer)


def _refuse_others(given: Mapping[str, Any], known: Any, where: str) -> None:
    for name in given:
        if name not in known:
            raise EdgeError(f"There is no '{name}' in {where}: {_RIGHT}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
