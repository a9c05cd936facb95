"""Random JSON schemas of the supported keywords, as programs write them."""

from __future__ import annotations

import random
from typing import Any

WORDS = (
    "name",
    "age",
    "city",
    "email",
    "id",
    "price",
    "tags",
    "kind",
    "note",
    "created at",
    "größe",
    "score",
)


def random_schema(seed: int) -> dict[str, Any]:
    """An object, with some of its properties required."""
    return _object(random.Random(seed), 2)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randrange(1, 5))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _value(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.8],
        "additionalProperties": False,
    }
    if rng.random() < 0.3:
        schema["title"] = "A record"
    return schema


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _string, _number, _number, _choice, lambda rng: {"type": "boolean"}]
    if depth and rng.random() < 0.35:
        return rng.choice([_array, _union, lambda rng, depth: _object(rng, depth)])(rng, depth - 1)
    return rng.choice(kinds)(rng)


def _string(rng: random.Random) -> dict[str, Any]:
    ways: list[dict[str, Any]] = [
        {"maxLength": rng.randrange(4, 25)},
        {"minLength": rng.randrange(1, 4), "maxLength": rng.randrange(5, 20)},
        {"pattern": rng.choice(["^[A-Z][a-z]{1,9}$", "^\\d{3}-\\d{4}$", "^(?:ab|cd)+e?$"]), "maxLength": 12},
        {"format": rng.choice(["date", "time", "ipv4", "uuid", "date-time"])},
    ]
    return {"type": "string", **rng.choice(ways)}


def _number(rng: random.Random) -> dict[str, Any]:
    low = rng.randrange(-50, 50)
    whole = {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1, 500)}
    part = {"type": "number", "exclusiveMinimum": low, "maximum": low + 1.5}
    return rng.choice([whole, part, {**whole, "maximum": low + 90, "multipleOf": 3}])


def _choice(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        [
            {"enum": rng.sample(["red", "green", "blue 🙂", "ß", 1, 2.5, None, True], 3)},
            {"const": rng.choice(["v1", 7, False, ["a", {"b": None}]])},
            {"type": ["null", "boolean"]},
        ]
    )


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.2:
        return {
            "type": "array",
            "prefixItems": [_value(rng, 0), _value(rng, 0)],
            "items": False,
            "minItems": 2,
        }
    return {"type": "array", "items": _value(rng, depth), "maxItems": rng.randrange(1, 4)}


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    options = [{"type": "null"}, {"type": "boolean"}, _string(rng), _object(rng, depth)]
    return {rng.choice(["anyOf", "oneOf"]): rng.sample(options, 2)}
