"""Whether options of a JSON schema exclude each other: then `oneOf` says the same as `anyOf`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})


def alternatives_exclude_each_other(options: Sequence[Any], resolved: Callable[[Any], Any]) -> bool:
    """By their types, by their values, or by a property that all of a pair require (a tag).

    options: schemas, references in their place already resolved. resolved: does it for those inside.
    """
    return all(_apart(one, other, resolved) for one, other in combinations(options, 2))


def _apart(one: Any, other: Any, resolved: Callable[[Any], Any]) -> bool:
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return False
    if _types(one).isdisjoint(_types(other)):
        return True
    values = _values(one), _values(other)
    if values[0] is not None and values[1] is not None and values[0].isdisjoint(values[1]):
        return True
    if one.get("type") != "object" or other.get("type") != "object":
        return False
    return any(
        _apart(resolved(_property(one, name)), resolved(_property(other, name)), resolved)
        for name in one.get("required", ())
        if name in other.get("required", ())
    )


def _property(schema: Mapping[str, Any], name: str) -> Any:
    return schema.get("properties", {}).get(name, {})


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    given = schema.get("type", [*_TYPES])
    names = {given} if isinstance(given, str) else {*given}
    return frozenset("number" if name == "integer" else name for name in names)


def _values(schema: Mapping[str, Any]) -> frozenset[str] | None:
    """Its only values, as texts that are equal where they are."""
    if "const" in schema:
        found = [schema["const"]]
    elif isinstance(schema.get("enum"), list):
        found = schema["enum"]
    else:
        return None
    return frozenset(map(_canonical, found))


def _canonical(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)
