"""What goes wrong with a request, as an HTTP status and a body in the shape of the API that was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge.engine.driver import BusyError, ClosedError
from edge.errors import ContextError, EdgeError, NativeError

RETRY_SECONDS = 1
"""What a client is told to wait for when too many requests wait."""


@dataclass
class ApiError(Exception):
    """A refusal. kind: OpenAI's `type`. param: the field that is wrong, such as `messages[0].content`.
    number: the request's.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    number: str | None = None

    def __str__(self) -> str:
        return self.message


def refusal(param: str | None, sentence: str, code: str | None = None) -> ApiError:
    """A request that can't be answered as it is: status 400."""
    return ApiError(400, sentence, param=param, code=code)


def as_api_error(error: Exception) -> ApiError | None:
    """What a client is told of an error that is no surprise; None for one that is."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        headers = {"retry-after": str(RETRY_SECONDS)}
        return ApiError(429, str(error), "rate_limit_error", code="rate_limit_exceeded", headers=headers)
    if isinstance(error, ClosedError):
        return ApiError(503, str(error), "server_error", code="shutting_down")
    if isinstance(error, ContextError):
        return refusal(None, str(error), "context_length_exceeded")
    if isinstance(error, EdgeError) and not isinstance(error, NativeError):
        return refusal(None, str(error))
    return None


def too_late(seconds: float) -> ApiError:
    """The end of a request at the server's time limit."""
    sentence = f"The answer took longer than the server's limit of {seconds:g} seconds."
    return ApiError(504, sentence, "server_error", code="timeout")


def surprise(number: str) -> ApiError:
    """What a client is told of our own mistake; the log has the rest under the same number."""
    message = f"Something unexpected went wrong in the server; its log tells more under {number}."
    return ApiError(500, message, "server_error", code="internal_error")


Shape = Callable[[ApiError], dict[str, Any]]
"""An API's way to write an error."""


def openai_shape(error: ApiError) -> dict[str, Any]:
    """That of OpenAI's API, and of all routes without one of their own."""
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }
