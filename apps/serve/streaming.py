"""A stream that ends with an error says so in the stream: its status has been sent long before."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from edge.apps.serve.errors import ApiError, Shape, as_api_error, surprise
from edge.apps.serve.sse import event

if TYPE_CHECKING:
    from edge.apps.serve.state import Asked, Served


def told(served: Served, asked: Asked, error: Exception) -> ApiError:
    """What the client is told of an error; a surprise goes to the log as well."""
    known = as_api_error(error)
    if known is None:
        served.log.surprise(asked.number, error)
        known = surprise(asked.number)
    known.number = asked.number
    return known


async def with_errors(
    served: Served, asked: Asked, events: AsyncGenerator[bytes, None], shape: Shape, name: str | None = None
) -> AsyncGenerator[bytes, None]:
    """The same events, and an error as the last one. name: of that event, where the API has names."""
    async with aclosing(events):
        try:
            async for data in events:
                yield data
        except Exception as error:
            known = told(served, asked, error)
            asked.note.ended.append(known.code or known.kind)
            yield event(shape(known), name)
