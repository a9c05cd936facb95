"""Words of an OpenAPI document: paths, and schemas of fields that come up again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def post(what: str, body: str, answer: str, *, streams: bool = False, error: str = "Error") -> dict[str, Any]:
    """A path that takes a JSON object. body, answer, error: names of schemas."""
    content = {"application/json": {"schema": ref(answer)}}
    if streams:
        content["text/event-stream"] = {}
    return {
        "post": {
            "summary": what,
            "requestBody": {"required": True, "content": {"application/json": {"schema": ref(body)}}},
            "responses": {"200": {"description": "The answer.", "content": content}, **errors(error)},
        }
    }


def get(
    what: str, schema: Schema, kind: str = "application/json", error: str = "Error", **parameters: Schema
) -> dict[str, Any]:
    """A path that is read. parameters: in its name."""
    return {
        "get": {
            "summary": what,
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": each}
                for name, each in parameters.items()
            ],
            "responses": {
                "200": {"description": "What is so.", "content": {kind: {"schema": schema}}},
                **errors(error),
            },
        }
    }


def ref(name: str) -> dict[str, str]:
    """A schema of the document by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def errors(schema: str) -> dict[str, Any]:
    """The responses that are errors."""
    return {
        "default": {
            "description": "What is wrong: 400 a field, 401 the key, 403 the host or the origin, 404 the "
            "model or the path, 408 a request that does not arrive, 413 one that is too large, 429 too many "
            "(with Retry-After), 500 a mistake of the server, 503 its end, 504 its time limit.",
            "content": {"application/json": {"schema": ref(schema)}},
        }
    }


def fields_of(required: tuple[str, ...] = (), **properties: Schema) -> dict[str, Any]:
    """An object with these fields; others may be there."""
    return {"type": "object", "properties": properties, "required": list(required)}


def optional(**schema: Any) -> dict[str, Any]:
    """A field that may be null, which counts as absent."""
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "array", "items": {"type": "string"}}


def number(least: float, most: float) -> dict[str, Any]:
    """A number in a range, or null."""
    return optional(type="number", minimum=least, maximum=most)
