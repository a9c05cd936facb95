"""Responses that were asked to be stored, so that others may go on from them: the last ones, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edge.apps.serve.errors import ApiError
from edge.apps.serve.sse import json_bytes
from edge.text.messages import Message

MOST_RESPONSES = 256
MOST_CHARACTERS = 16_000_000


@dataclass(frozen=True)
class Stored:
    """A response, and the conversation up to its end without instructions."""

    response: Mapping[str, Any]
    messages: tuple[Message, ...]

    @cached_property
    def size(self) -> int:
        """Characters of all that is kept, roughly."""
        return len(json_bytes(self.response)) + sum(map(_size, self.messages))


def _size(message: Message) -> int:
    calls = sum(200 + len(call.name) + len(json_bytes(call.arguments)) for call in message.calls)
    ids = 8 * len(message.tokens or ())
    return 200 + len(message.content) + len(message.reasoning or "") + ids + calls


class ResponseStore:
    """The last responses; those that were not used for the longest time are forgotten first."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._size = 0

    def add(self, stored: Stored) -> None:
        """Keep one."""
        self._stored[stored.response["id"]] = stored
        self._size += stored.size
        while len(self._stored) > MOST_RESPONSES or (self._size > MOST_CHARACTERS and len(self._stored) > 1):
            _, oldest = self._stored.popitem(last=False)
            self._size -= oldest.size

    def get(self, name: str) -> Stored:
        """The one with this id; ApiError if there is none."""
        if name not in self._stored:
            raise ApiError(
                404, f"Response with id {name[:100]!r} not found.", param="response_id", code="not_found"
            )
        self._stored.move_to_end(name)
        return self._stored[name]

    def previous(self, name: str) -> Stored:
        """The one that a request goes on from; ApiError if there is none."""
        try:
            return self.get(name)
        except ApiError:
            raise ApiError(
                400,
                f"Previous response with id {name[:100]!r} not found: it was not stored, or this server has "
                "forgotten it.",
                param="previous_response_id",
                code="previous_response_not_found",
            ) from None

    def remove(self, name: str) -> None:
        """Forget one; ApiError if there is none."""
        self._size -= self.get(name).size
        del self._stored[name]
