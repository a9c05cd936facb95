"""Plain responses: JSON, and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.apps.serve.errors import ApiError, Shape, openai_shape
from edge.apps.serve.keys import App
from edge.apps.serve.sse import json_bytes


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> App:
    """A JSON document."""
    from starlette.responses import Response

    return Response(json_bytes(value), status, headers=headers, media_type="application/json")


def error_response(error: ApiError, shape: Shape = openai_shape) -> App:
    """An error as an API writes it."""
    return json_response(shape(error), error.status, dict(error.headers))
