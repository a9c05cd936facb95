"""Whether the keywords of a JSON schema hold what the standard says they hold.

Whoever walks over a schema (grammars, readers of calls, templates) may then rely on lists being lists. What
the keywords say, and which of them can be kept to, is for `edge.engine.constraints` to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge.errors import WrongTypeError

_DEEPEST = 64


def check_shape(schema: Mapping[str, Any], where: str) -> None:
    """Raise WrongTypeError if a keyword has a value of another type. where: begins the sentence."""
    _check(schema, where, 0)


def _check(schema: Any, where: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise WrongTypeError(f"{where} are nested deeper than {_DEEPEST} levels: make them simpler.")
    if not isinstance(schema, Mapping):
        return
    for keyword, (fits, must) in _SHAPES.items():
        if keyword in schema and not fits(schema[keyword]):
            raise WrongTypeError(f"{where} give '{keyword}' as {schema[keyword]!r:.80}: it must be {must}.")
    for keyword in _OF_NAMES:
        for each in schema.get(keyword, {}).values():
            _check(each, where, depth + 1)
    for keyword in _OF_SCHEMAS:
        for each in schema.get(keyword, ()):
            _check(each, where, depth + 1)
    for keyword in _SCHEMA:
        _check(schema.get(keyword), where, depth + 1)


def _is_schema(value: object) -> bool:
    return isinstance(value, (Mapping, bool))


def _are_names(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)


def _is_type(value: object) -> bool:
    return isinstance(value, str) or (_are_names(value) and bool(value))


def _by_name(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and _is_schema(v) for k, v in value.items())


def _are_schemas(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_schema, value))


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_OF_NAMES = ("properties", "$defs", "definitions")
_OF_SCHEMAS = ("anyOf", "oneOf", "allOf")
_SCHEMA = ("items", "additionalProperties")
_SHAPES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "type": (_is_type, "the name of a type or a list of them"),
    "required": (_are_names, "a list of names"),
    "enum": (_is_list, "a list"),
    "minLength": (_is_count, "a whole number of 0 or more"),
    "maxLength": (_is_count, "a whole number of 0 or more"),
    **dict.fromkeys(_OF_NAMES, (_by_name, "an object with a schema for each name")),
    **dict.fromkeys(_OF_SCHEMAS, (_are_schemas, "a list of schemas")),
    "additionalProperties": (_is_schema, "a schema, true or false"),
}
