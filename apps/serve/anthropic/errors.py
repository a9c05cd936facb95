"""Errors as Anthropic's API writes them."""

from __future__ import annotations

from typing import Any

from edge.apps.serve.errors import ApiError

PREFIX = "/v1/messages"
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status; what is not here is an invalid request."""


def anthropic_shape(error: ApiError) -> dict[str, Any]:
    """The body of an error."""
    kind = _KINDS.get(error.status, "invalid_request_error")
    where = f"{error.param}: " if error.param and not error.message.startswith(error.param) else ""
    return {
        "type": "error",
        "error": {"type": kind, "message": where + error.message},
        "request_id": error.number,
    }
