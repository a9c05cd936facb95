"""Python functions as tools: schemas from their signatures, and calls whose errors are told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest

from edge.errors import EdgeError
from edge.text.messages import Tool, ToolCall
from edge.text.tools.functions import tool_box, tool_of


def search(
    words: str,
    limit: int = 3,
    *,
    exact: bool = False,
    order: Literal["new", "old"] = "new",
    near: Annotated[float | None, "In km."] = None,
    tags: list[str] | None = None,
    more: dict[str, int] | None = None,
) -> list[str]:
    """Find pages.

    Only those that one may read.

    Args:
        words: what to look for.
        limit (int): at most so many.
    """
    if words == "fail":
        raise ValueError("no such page")
    return [words] * limit


def test_the_schema_of_a_signature() -> None:
    tool = tool_of(search)
    assert (tool.name, tool.description) == ("search", "Find pages.\n\nOnly those that one may read.")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "words": {"type": "string", "description": "what to look for."},
            "limit": {"type": "integer", "description": "at most so many."},
            "exact": {"type": "boolean"},
            "order": {"enum": ["new", "old"]},
            "near": {"type": ["number", "null"], "description": "In km."},
            "tags": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
            "more": {
                "anyOf": [{"type": "object", "additionalProperties": {"type": "integer"}}, {"type": "null"}]
            },
        },
        "required": ["words"],
    }


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ({"words": "a", "limit": 2}, '["a", "a"]'),
        ({"words": "fail"}, "Error: ValueError: no such page"),
        ({}, "Error: missing a required argument: 'words'."),
        ({"words": "a", "word": "b"}, "Error: got an unexpected keyword argument 'word'."),
        ({"words": 3}, "Error: the argument 'words' must be string."),
        ({"words": "a", "limit": True}, "Error: the argument 'limit' must be integer."),
        ({"words": "a", "order": "odd"}, "Error: the argument 'order' must be one of ['new', 'old']."),
        ("{", "Error: the arguments are no JSON object."),
    ],
)
def test_a_call_gives_text_whatever_happens(arguments: Any, result: str) -> None:
    message = tool_box([search]).run(ToolCall("search", arguments, "c1"))
    assert (message.role, message.content, message.call_id, message.name) == ("tool", result, "c1", "search")


def test_other_tools_and_unknown_ones() -> None:
    box = tool_box([Tool("now"), {"type": "function", "function": {"name": "later"}}, search])
    assert [tool.name for tool in box.tools] == ["now", "later", "search"] and list(box.functions) == [
        "search"
    ]
    assert box.run(ToolCall("x", {})).content == "Error: there is no function 'x'; there are search."


def untyped(x):
    pass


def starred(*x: int) -> None:
    pass


def odd(x: bytes) -> None:
    pass


def unknown(x: Nothing) -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (untyped, "'x' of the function 'untyped' has no type"),
        (starred, "'x' of the function 'starred' can't be given by its name"),
        (odd, "'x' of the function 'odd' has the type <class 'bytes'>"),
        (unknown, "'unknown' can't be a tool: name 'Nothing'"),
    ],
)
def test_what_can_not_be_a_tool(function: Any, says: str) -> None:
    with pytest.raises(EdgeError, match=says):
        tool_box([function])
