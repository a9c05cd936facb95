"""Whether options of a JSON schema exclude each other: then `oneOf` says the same as `anyOf`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from edge.errors import EdgeError

_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})


_MOST_STEPS = 200_000


class Alternatives:
    """Compares options of one JSON schema, whose nodes stay as they are meanwhile.

    resolved: what stands behind a schema that is a reference.
    """

    def __init__(self, resolved: Callable[[Any], Any]) -> None:
        self._resolved = resolved
        self._facts: dict[int, _Facts] = {}
        self._steps = 0

    def exclude_each_other(self, options: Sequence[Any]) -> bool:
        """By their types, by their values, or by a property that all of a pair require (a tag).

        options: references in their place already resolved. Raises EdgeError where that takes too long.
        """
        return all(self._apart(one, other) for one, other in combinations(options, 2))

    def _apart(self, one: Any, other: Any) -> bool:
        """Whether one of the pairs that both must hold differs; each pair is looked at once."""
        pairs, seen = [(one, other)], {(id(one), id(other))}
        while pairs:
            one, other = pairs.pop()
            self._count(1)
            if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
                continue
            facts, others = self._facts_of(one), self._facts_of(other)
            if facts.types.isdisjoint(others.types):
                return True
            if facts.values is not None and others.values is not None:
                self._count(min(len(facts.values), len(others.values)))
                if facts.values.isdisjoint(others.values):
                    return True
            if one.get("type") != "object" or other.get("type") != "object":
                continue
            self._count(len(facts.properties))
            for name, inner in facts.properties.items():
                if name in others.properties:
                    pair = inner, others.properties[name]
                    key = id(pair[0]), id(pair[1])
                    if key not in seen:
                        seen.add(key)
                        pairs.append(pair)
        return False

    def _facts_of(self, schema: Mapping[str, Any]) -> _Facts:
        found = self._facts.get(id(schema))
        if found is None:
            required = schema.get("required", ())
            properties = {name: self._resolved(_property(schema, name)) for name in required}
            found = self._facts[id(schema)] = _Facts(_types(schema), _values(schema), properties)
        return found

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise EdgeError(
                "The options of 'oneOf' in the JSON schema are too many to compare: say anyOf, or give fewer."
            )


@dataclass(frozen=True)
class _Facts:
    """Of a schema: what its values may be, and the schemas of the properties that it requires."""

    types: frozenset[str]
    values: frozenset[str] | None
    properties: Mapping[str, Any]


def _property(schema: Mapping[str, Any], name: str) -> Any:
    return schema.get("properties", {}).get(name, {})


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    if (values := _listed(schema)) is not None:
        return frozenset(_type_of(value) for value in values)
    given = schema.get("type", [*_TYPES])
    names = {given} if isinstance(given, str) else {*given}
    return frozenset("number" if name == "integer" else name for name in names)


def _type_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    kinds = {str: "string", list: "array", dict: "object"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "number")


def _listed(schema: Mapping[str, Any]) -> list[Any] | None:
    """Its only values."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _values(schema: Mapping[str, Any]) -> frozenset[str] | None:
    """Its only values, as texts that are equal where they are."""
    found = _listed(schema)
    return None if found is None else frozenset(map(_canonical, found))


def _canonical(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)
