"""Tools for models whose chat template knows none: what a system prompt says of them, in Hermes' words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from edge.text.messages import Message, Tool
from edge.text.tools.parts import ToolFormat

_BEFORE = (
    "You can call functions to answer the user. Here are their signatures between <tools> and </tools>:\n"
    "<tools>"
)
_BEHIND = (
    "</tools>\nFor each call write a JSON object with the function's name and its arguments between "
    '<tool_call> and </tool_call>:\n<tool_call>\n{"name": NAME, "arguments": ARGUMENTS}\n</tool_call>'
)
_RESULT = ("<tool_response>\n", "\n</tool_response>")


def describe(tools: Sequence[Tool]) -> str:
    """What the system prompt says of tools."""
    found = (json.dumps(tool.as_openai(), ensure_ascii=False) for tool in tools)
    return "\n".join([_BEFORE, *found, _BEHIND])


def with_description(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The conversation with the tools in its system prompt."""
    if messages and messages[0].role == "system":
        first, *others = messages
        return [replace(first, content=f"{first.content}\n\n{describe(tools)}"), *others]
    return [Message("system", describe(tools)), *messages]


def as_text(messages: Sequence[Message], form: ToolFormat, tools: Sequence[Tool]) -> list[Message]:
    """The conversation with calls and their results as text: results as the user says them."""
    found: list[Message] = []
    results = False  # whether the last message is made of results
    for message in messages:
        if message.role == "tool":
            text = message.content.join(_RESULT)
            if results:
                found[-1] = replace(found[-1], content=f"{found[-1].content}\n{text}")
            else:
                found.append(Message("user", text))
            results = True
            continue
        results = False
        if message.calls:
            written = form.write(message.calls, tools)
            content = f"{message.content}\n{written}" if message.content else written
            message = replace(message, content=content, calls=())
        found.append(message)
    return found
