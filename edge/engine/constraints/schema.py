"""JSON schemas before llguidance reads them: what it would ignore or misread is an error here that names it.

llguidance keeps to the draft 2020-12, with what older drafts write otherwise. It passes over keywords that it
has never heard of, and believes options inside of a schema; here every keyword counts or is refused. What it
refuses although it could be said in other words (a `oneOf` whose options exclude each other) is said so.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from edge.engine.constraints.options import alternatives_exclude_each_other
from edge.errors import EdgeError, WrongTypeError
from edge.formats.guarded_json import parse_object

FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
"""Values of `format` that are kept to."""

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_MAPS = ("properties", "patternProperties")
_SCHEMAS = ("items", "additionalItems", "additionalProperties")
_LISTS = ("prefixItems", "allOf", "anyOf", "oneOf")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_VALUES = ("type", "const", "enum", "pattern", "format", "required", "$ref", *_COUNTS, *_NUMBERS)
KEYWORDS = (*_VALUES, *_SCHEMAS, *_MAPS, *_LISTS)
"""That an answer is held to."""

_TARGETS = ("$defs", "definitions")
_ANNOTATIONS = (
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "contentMediaType", "contentEncoding", "contentSchema", "discriminator"),
)
_ROOT_ONLY = ("$schema", "$id", "id")
_IDLE: Mapping[str, Any] = {"uniqueItems": False, "nullable": False, "unevaluatedProperties": True}
"""Keywords that are fine with this value, which asks for nothing."""

_DRAFTS = ("http://json-schema.org/", "https://json-schema.org/")
_DEEPEST = 100  # schemas in each other, references followed
_EXACT = 1 << 53  # whole numbers up to it are themselves in float64, which llguidance computes with

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_REAL_DAY = (
    f"^(?:{_LEAP}-02-29|[0-9]{{4}}-(?:02-(?:[01][0-9]|2[0-8])|(?:0[13-9]|1[0-2])-[0-3][0-9]))(?:[tT].*)?$"
)
_REAL_DAYS = [{"pattern": _REAL_DAY}, {"pattern": f"^{_YEAR}-"}]
"""llguidance's dates have a 29th of February in every year, and a year 0."""

JSON_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""As Python's `json.dumps` writes: one way only, so that a model can't go on with spaces for ever."""


def prepare_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema as llguidance should read it.

    Raises EdgeError for a keyword that is not supported, with its place as a JSON pointer, for a reference
    to anything outside, and for what no finite answer satisfies; WrongTypeError for what is no schema.
    """
    if not isinstance(schema, Mapping):
        raise WrongTypeError(f"A JSON schema is an object, got {_shown(schema)}.")
    root = parse_object(schema_text(schema), "The JSON schema", EdgeError, "make it simpler")
    style = root.get("$schema", _DRAFTS[0])
    if not isinstance(style, str) or not style.startswith(_DRAFTS):
        raise EdgeError(f"'$schema' at # names {_shown(style)}: give a JSON schema of json-schema.org's.")
    for name in _ROOT_ONLY:
        if isinstance(root.get(name), str):
            del root[name]
    walk = _Walk(root)
    walk.visit(root, "#", 0)
    if not walk.can_end(root, ()):
        raise EdgeError("Nothing satisfies the JSON schema: what it requires contains itself without an end.")
    return root


def schema_text(schema: Mapping[str, Any]) -> str:
    """The schema as JSON; EdgeError where that can't say it."""
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise EdgeError(f"The JSON schema can't be written as JSON: {error}.") from None


class _Walk:
    """Checks and rewrites every schema that can be reached from the root, in place."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._seen: set[int] = set()

    def visit(self, node: Any, place: str, depth: int) -> None:
        if isinstance(node, bool) or id(node) in self._seen:
            return
        if not isinstance(node, dict):
            raise EdgeError(f"The JSON schema has {_shown(node)} at {place}, where a schema should stand.")
        if depth > _DEEPEST:
            raise EdgeError(f"The JSON schema is nested more than {_DEEPEST} deep: make it flatter.")
        self._seen.add(id(node))
        for name in [*node]:
            self._keyword(node, name, place)
        for child, where in _children(node, place):
            self.visit(child, where, depth + 1)
        if isinstance(reference := node.get("$ref"), str):
            self.visit(self.target(reference, place), reference, depth + 1)
        if "oneOf" in node and "anyOf" not in node:
            options = [self.resolved(option) for option in node["oneOf"]]
            if alternatives_exclude_each_other(options, self.resolved):
                _rename(node, "oneOf", "anyOf")
        if node.get("format") in ("date", "date-time"):
            node["allOf"] = [*node.get("allOf", ()), *copy.deepcopy(_REAL_DAYS)]

    def target(self, reference: str, place: str) -> Any:
        """What a `$ref` names."""
        if not (reference == "#" or reference.startswith("#/")):
            raise EdgeError(
                f"'$ref' at {place} names {_shown(reference)}, which is not a place in this schema such as "
                "#/$defs/NAME: copy it into $defs."
            )
        from urllib.parse import unquote

        found: Any = self._root
        for part in unquote(reference).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise EdgeError(f"'$ref' at {place} names {reference}, which the schema does not have.")
        return found

    def resolved(self, node: Any) -> Any:
        """What stands behind references that say nothing else."""
        for _ in range(_DEEPEST):
            if not (isinstance(node, dict) and isinstance(node.get("$ref"), str)):
                break
            if any(name in KEYWORDS for name in node if name != "$ref"):
                break
            node = self.target(node["$ref"], "#")
        return node

    def can_end(self, node: Any, above: tuple[int, ...]) -> bool:
        """Whether a finite value can satisfy it, by what it requires. above: the schemas it is part of."""
        if not isinstance(node, dict):
            return True
        if id(node) in above:
            return False
        above = (*above, id(node))
        parts: list[Any] = [*node.get("allOf", ())]
        if "$ref" in node:
            parts.append(self.target(node["$ref"], "#"))
        if node.get("type") == "object":
            properties = node.get("properties", {})
            parts += [properties[name] for name in node.get("required", ()) if name in properties]
        if node.get("type") == "array" and node.get("minItems", 0) > 0:
            first = node.get("prefixItems") or [node.get("items", True)]
            parts += [first[0] if isinstance(first, list) and first else first]
        alternatives = [node[name] for name in ("anyOf", "oneOf") if node.get(name)]
        return all(self.can_end(part, above) for part in parts) and all(
            any(self.can_end(option, above) for option in options) for options in alternatives
        )

    def _keyword(self, node: dict[str, Any], name: str, place: str) -> None:
        value = node[name]
        if name in _ANNOTATIONS or name.startswith("x-") or (name in _IDLE and value is _IDLE[name]):
            del node[name]
        elif name in _TARGETS:
            if not isinstance(value, dict):
                raise EdgeError(f"'{name}' at {place} should be an object of schemas.")
        elif name not in KEYWORDS:
            raise EdgeError(
                f"The keyword '{name}' of JSON schema at {place} is not supported: leave it out, or say the "
                "same in other words."
            )
        else:
            _check_value(node, name, value, place)


def _check_value(node: Mapping[str, Any], name: str, value: Any, place: str) -> None:
    if name == "$ref" and not isinstance(value, str):
        raise EdgeError(f"'$ref' at {place} should be a text such as #/$defs/NAME, got {_shown(value)}.")
    if name in _LISTS and not (isinstance(value, list) and value):
        raise EdgeError(f"'{name}' at {place} should be a list of schemas, got {_shown(value)}.")
    if name in _MAPS and not isinstance(value, dict):
        raise EdgeError(f"'{name}' at {place} should be an object of schemas, got {_shown(value)}.")
    if name == "format" and value not in FORMATS:
        raise EdgeError(
            f"The format {_shown(value)} at {place} is not supported: choose one of {', '.join(FORMATS)}, or "
            "give a pattern."
        )
    if name == "type" and not (
        value in TYPES or (isinstance(value, list) and value and all(each in TYPES for each in value))
    ):
        raise EdgeError(f"'type' at {place} should be of {', '.join(TYPES)}, got {_shown(value)}.")
    if name == "required" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise EdgeError(f"'required' at {place} should be a list of names, got {_shown(value)}.")
    if name in _COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise EdgeError(f"'{name}' at {place} should be a whole number from 0 on, got {_shown(value)}.")
    if name == "multipleOf" and not (isinstance(value, (int, float)) and value > 0):
        raise EdgeError(f"'multipleOf' at {place} should be a number above 0, got {_shown(value)}.")
    if name in (*_NUMBERS, "const", "enum"):
        for number in _numbers(value):
            if not math.isfinite(number) or (isinstance(number, int) and abs(number) > _EXACT):
                raise EdgeError(
                    f"'{name}' at {place} has {_shown(number)}, which is too large to be exact: stay within "
                    f"{_EXACT}."
                )
    if name == "minProperties" and value > max(1, len(node.get("required", ()))):
        # Names beside those of `properties` may repeat, and a repeated one counts once.
        raise EdgeError(
            f"'minProperties' at {place} is not supported beyond 1 and the number of required properties: "
            "require properties by their names."
        )
    if name == "additionalItems" and not isinstance(node.get("items"), list):
        raise EdgeError(f"'additionalItems' at {place} is not supported without a list of 'items'.")


def _children(node: Mapping[str, Any], place: str) -> Iterator[tuple[Any, str]]:
    for name in _MAPS:
        for key, child in node.get(name, {}).items():
            yield child, f"{place}/{name}/{key.replace('~', '~0').replace('/', '~1')}"
    for name in _SCHEMAS:
        child = node.get(name, True)
        if isinstance(child, list):  # `items` of older drafts
            yield from ((each, f"{place}/{name}/{at}") for at, each in enumerate(child))
        else:
            yield child, f"{place}/{name}"
    for name in _LISTS:
        yield from ((each, f"{place}/{name}/{at}") for at, each in enumerate(node.get(name, ())))


def _rename(node: dict[str, Any], old: str, new: str) -> None:
    """At the same place: the order of keywords is that of properties in an answer."""
    items = [(new if name == old else name, value) for name, value in node.items()]
    node.clear()
    node.update(items)


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _numbers(each)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
