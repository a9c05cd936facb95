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

from edge.engine.constraints.finite import can_end
from edge.engine.constraints.options import Alternatives
from edge.engine.constraints.repetition import check_regex
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
_MOST_NODES = 20_000  # schemas in a schema: some 0.3 s
LONGEST = 1 << 20
"""Characters of a schema, and of any grammar."""
_EXACT = 1 << 53  # whole numbers up to it are themselves in float64, which llguidance computes with

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_REAL_DAY = (
    f"^(?:{_LEAP}-02-29|[0-9]{{4}}-(?:02-(?:[01][0-9]|2[0-8])|(?:0[13-9]|1[0-2])-[0-3][0-9]))(?:[tT].*)?$"
)
_DAY: list[dict[str, Any]] = [{"pattern": _REAL_DAY}, {"pattern": f"^{_YEAR}-"}]
_STRICTER: Mapping[str, list[dict[str, Any]]] = {
    "date": _DAY,
    "date-time": [*_DAY, {"pattern": "[tT][0-9]{2}:[0-9]{2}:[0-5]"}],
    "time": [{"pattern": "^[0-9]{2}:[0-9]{2}:[0-5]"}],
    "hostname": [{"pattern": "^[^-]+(?:-[^-]+)*$", "maxLength": 253}],
}
"""What formats must satisfy beside llguidance's own patterns, which have a 29th of February in every year, a
year 0, leap seconds at any time, and encoded host names (`xn--`) that stand for nothing.
"""

JSON_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""As Python's `json.dumps` writes: one way only, so that a model can't go on with spaces for ever."""


def prepare_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema as llguidance should read it.

    Raises EdgeError for a keyword that is not supported, with its place as a JSON pointer, for a reference
    to anything outside, and for what no finite answer satisfies; WrongTypeError for what is no schema.
    """
    if not isinstance(schema, Mapping):
        raise WrongTypeError(f"A JSON schema is an object, got {_shown(schema)}.")
    text = schema_text(schema)
    if len(text) > LONGEST:
        raise EdgeError(f"The JSON schema has more than {LONGEST} characters: make it smaller.")
    root = parse_object(text, "The JSON schema", EdgeError, "make it simpler")
    style = root.get("$schema", _DRAFTS[0])
    if not isinstance(style, str) or not style.startswith(_DRAFTS):
        raise EdgeError(f"'$schema' at # names {_shown(style)}: give a JSON schema of json-schema.org's.")
    for name in _ROOT_ONLY:
        if isinstance(root.get(name), str):
            del root[name]
    walk = _Walk(root)
    walk.visit(root, "#", 0)
    walk.say_one_of()
    if not can_end(root, lambda reference: walk.target(reference, "#")):
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
        self._choices: list[dict[str, Any]] = []

    def visit(self, node: Any, place: str, depth: int) -> None:
        if isinstance(node, bool) or id(node) in self._seen:
            return
        if not isinstance(node, dict):
            raise EdgeError(f"The JSON schema has {_shown(node)} at {place}, where a schema should stand.")
        if depth > _DEEPEST:
            raise EdgeError(f"The JSON schema is nested more than {_DEEPEST} deep: make it flatter.")
        if len(self._seen) == _MOST_NODES:
            raise EdgeError(f"The JSON schema consists of more than {_MOST_NODES} schemas: make it smaller.")
        self._seen.add(id(node))
        for name in [*node]:
            self._keyword(node, name, place)
        for child, where in _children(node, place):
            self.visit(child, where, depth + 1)
        if isinstance(reference := node.get("$ref"), str):
            self.visit(self.target(reference, place), _short(reference), depth + 1)
        if "oneOf" in node and "anyOf" not in node:
            self._choices.append(node)
        if node.get("type") == "integer" and "const" not in node and "enum" not in node:
            _bound(node)
        if any(name in node for name in _NUMBERS) and "multipleOf" not in node and _may_be_number(node):
            node["multipleOf"] = _step(node)
        if stricter := _STRICTER.get(node.get("format", "")):
            node["allOf"] = [*node.get("allOf", ()), *copy.deepcopy(stricter)]

    def say_one_of(self) -> None:
        """As `anyOf`, where that says the same; once all that options may refer to has been checked."""
        alternatives = Alternatives(self.resolved)
        for node in self._choices:
            if alternatives.exclude_each_other([self.resolved(option) for option in node["oneOf"]]):
                _rename(node, "oneOf", "anyOf")

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
            if isinstance(found, list) and len(key) < 10 and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise EdgeError(
                    f"'$ref' at {place} names {_short(reference)}, which the schema does not have."
                )
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

    def _keyword(self, node: dict[str, Any], name: str, place: str) -> None:
        value = node[name]
        if name in _COUNTS and isinstance(value, float) and value.is_integer():
            value = node[name] = int(value)
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
    if name == "pattern" and isinstance(value, str):
        check_regex(value, f"pattern at {place}")
    if name == "patternProperties" and isinstance(value, dict):
        for pattern in value:
            check_regex(pattern, f"pattern of a name at {place}")
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
    if name in _NUMBERS and not isinstance(value, (int, float)):  # older drafts have true and false here
        raise EdgeError(f"'{name}' at {place} should be a number, got {_shown(value)}.")
    if name == "multipleOf" and not (isinstance(value, (int, float)) and value > 0):
        raise EdgeError(f"'multipleOf' at {place} should be a number above 0, got {_shown(value)}.")
    if name in (*_NUMBERS, "const", "enum"):
        for number in _numbers(value):
            if not math.isfinite(number) or (isinstance(number, int) and abs(number) > _EXACT):
                raise EdgeError(
                    f"'{name}' at {place} has {_shown(number)}, which is too large to be exact: stay within "
                    f"{_EXACT}."
                )
    required = node.get("required")  # looked at by itself, before or after this
    if name == "minProperties" and value > max(1, len(required) if isinstance(required, list) else 0):
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
            yield child, f"{place}/{name}/{_short(key.replace('~', '~0').replace('/', '~1'))}"
    for name in _SCHEMAS:
        child = node.get(name, True)
        if isinstance(child, list):  # `items` of older drafts
            yield from ((each, f"{place}/{name}/{at}") for at, each in enumerate(child))
        else:
            yield child, f"{place}/{name}"
    for name in _LISTS:
        yield from ((each, f"{place}/{name}/{at}") for at, each in enumerate(node.get(name, ())))


def _may_be_number(node: Mapping[str, Any]) -> bool:
    given = node.get("type", "number")
    return given == "number" or (isinstance(given, list) and "number" in given)


def _bound(node: dict[str, Any]) -> None:
    """A small model may write digits for ever; beyond these, readers round a whole number anyhow."""
    if "minimum" not in node and "exclusiveMinimum" not in node:
        node["minimum"] = -_EXACT
    if "maximum" not in node and "exclusiveMaximum" not in node:
        node["maximum"] = _EXACT


def _step(node: Mapping[str, Any]) -> float:
    """A power of ten that counts beside the bounds in float64: to readers of JSON 48.0000000000000004 is 48,
    which may be outside of them. And a model might write zeros for ever.
    """
    bounds = [abs(node[name]) for name in _NUMBERS if not isinstance(node.get(name, True), bool)]
    digits = len(str(int(max(bounds, default=0))))
    return float(f"1e-{max(0, min(9, 14 - digits))}")


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
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
