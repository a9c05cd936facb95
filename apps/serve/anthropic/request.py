"""A request for a message, read: what the model is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.apps.serve.asking import read_settings
from edge.apps.serve.chat_request import (
    EFFORTS,
    check_tools,
    grammar_of,
    listed_messages,
    read_effort,
    reading,
)
from edge.apps.serve.errors import refusal
from edge.apps.serve.json_in import Fields
from edge.apps.serve.state import Served
from edge.engine.request import Request
from edge.text.messages import (
    AUTO,
    NONE,
    REQUIRED,
    Message,
    Tool,
    ToolCall,
    ToolChoice,
    parse_tool_choice,
    parse_tools,
)

_MOST_STOPS = 16
_LEAST_BUDGET = 1024
_REFUSED = {
    "container": "this server runs no code.",
    "mcp_servers": "this server asks no other servers.",
}


@dataclass(frozen=True)
class Wanted:
    """A request, with what concerns the form of the message. shows_thinking: with its text."""

    request: Request
    stream: bool
    shows_thinking: bool

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings that were asked for."""
        return tuple(self.request.settings.get("stop", ()))


def read_request(served: Served, fields: Fields, *, counts: bool = False) -> Wanted:
    """A whole request; counts: one that is only to be counted. ApiError names the field that is wrong."""
    served.check_model(fields, required=True)
    if not counts and not fields.has("max_tokens"):
        raise fields.missing("max_tokens")
    for name, sentence in _REFUSED.items():
        fields.refuse(name, sentence, harmless=([],))
    check_tools(fields)
    tools = reading("tools", parse_tools, [_tool(each) for each in fields.objects("tools")])
    choice, parallel = _choice(fields, tools)
    settings = read_settings(fields, "max_tokens")
    stops = fields.list("stop_sequences")
    if stops:
        settings["stop"] = fields.texts("stop_sequences", _MOST_STOPS)
    thinking, budget, shows = _thinking(served, fields)
    output = fields.object("output_config") or Fields({}, "output_config")
    form = output.object("format") or fields.object("output_format")
    effort = output.choice("effort", (*EFFORTS, "max"))
    if thinking and budget is None:
        budget = read_effort(effort, True)[1]
    metadata = fields.object("metadata")
    if metadata is not None:
        metadata.text("user_id")
    request = Request(
        _messages(fields),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        grammar=None if form is None else grammar_of(form, form.choice("type", ("json_schema",), ""), form),
        thinking=thinking,
        thinking_budget=budget,
        settings=settings,
    )
    return Wanted(request, fields.flag("stream"), shows)


def _thinking(served: Served, fields: Fields) -> tuple[bool | None, int | None, bool]:
    """Whether to think, most tokens of it, and whether to show it. Without the field there is none."""
    given = fields.object("thinking")
    if given is None:
        return (False if served.model.chat_template.supports_thinking else None), None, True
    kind = given.choice("type", ("enabled", "adaptive", "disabled"))
    if kind is None:
        raise given.missing("type")
    budget = given.whole("budget_tokens", _LEAST_BUDGET) if kind == "enabled" else None
    if kind == "enabled" and budget is None:
        raise given.missing("budget_tokens")
    shows = given.choice("display", ("summarized", "omitted"), "summarized") != "omitted"
    if not served.model.chat_template.supports_thinking:
        return None, None, shows
    return kind != "disabled", budget, shows


def _tool(tool: Fields) -> Tool:
    kind = tool.text("type", "custom")
    if kind != "custom":
        where = tool.name("type")
        raise refusal(where, f"{where} is {kind[:60]!r}: this server has no tools of its own.")
    name, schema = tool.required_text("name"), tool.object("input_schema")
    if schema is None:
        raise tool.missing("input_schema")
    return reading(tool.path, Tool, name, tool.text("description", ""), schema.values, tool.flag("strict"))


def _choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[ToolChoice, bool]:
    """Whether to call, and whether several at once."""
    given = fields.object("tool_choice")
    if given is None:
        return AUTO, True
    kind = given.choice("type", ("auto", "any", "tool", "none"))
    if kind is None:
        raise given.missing("type")
    named = ToolChoice("named", given.required_text("name") if kind == "tool" else None)
    choice = {"auto": AUTO, "any": REQUIRED, "none": NONE, "tool": named}[kind]
    return reading("tool_choice", parse_tool_choice, choice, tools), not given.flag(
        "disable_parallel_tool_use"
    )


# ---- Messages ----------------------------------------------------------------------------------------------


def _messages(fields: Fields) -> tuple[Message, ...]:
    given = listed_messages(fields)
    found: list[Message] = []
    if fields.has("system"):
        found.append(Message("system", _text(fields, "system")))
    names: dict[str, str] = {}
    for message in fields.objects("messages"):
        role = message.choice("role", ("user", "assistant", "system"))
        if role is None:
            raise message.missing("role")
        if role == "assistant":
            found.append(_answer(message))
            names |= {call.id: call.name for call in found[-1].calls}
        elif role == "system":
            found.append(Message("system", _text(message, "content")))
        else:
            found += _user(message, names)
    if found[-1].role == "assistant":
        where = f"messages[{len(given) - 1}]"
        raise refusal(where, f"{where} is the assistant's: answers that are begun can't be continued here.")
    return tuple(found)


def _blocks(fields: Fields, name: str) -> list[Fields]:
    """The blocks of a content; a text is one."""
    given = fields.values.get(name)
    if given is None:
        raise fields.missing(name)
    if isinstance(given, str):
        return [Fields({"type": "text", "text": given}, fields.name(name))]
    if not isinstance(given, list):
        raise fields.error(name, "be a text or a list of blocks")
    return list(fields.objects(name))


def _unknown(block: Fields, known: str) -> Exception:
    kind = block.required_text("type")
    where = block.name("type")
    return refusal(where, f"{where} is {kind[:60]!r}, and this model reads text only: send {known}.")


def _text(fields: Fields, name: str) -> str:
    """A content that is text only."""
    texts = []
    for block in _blocks(fields, name):
        if block.required_text("type") != "text":
            raise _unknown(block, "text")
        texts.append(block.required_text("text"))
    return "".join(texts)


def _user(message: Fields, names: Mapping[str, str]) -> list[Message]:
    """What the user says, and results of calls: each a message of its own, in their order."""
    found: list[Message] = []
    said: list[str] = []
    for block in _blocks(message, "content"):
        kind = block.required_text("type")
        if kind == "text":
            said.append(block.required_text("text"))
        elif kind == "tool_result":
            if said:
                found.append(Message("user", "".join(said)))
                said = []
            found.append(_result(block, names))
        else:
            raise _unknown(block, "text and tool_result")
    return [*found, *([Message("user", "".join(said))] if said or not found else [])]


def _result(block: Fields, names: Mapping[str, str]) -> Message:
    call_id = block.required_text("tool_use_id")
    text = _text(block, "content") if block.has("content") else ""
    text = f"Error: {text}" if block.flag("is_error") else text
    return Message("tool", text, call_id=call_id, name=names.get(call_id))


def _answer(message: Fields) -> Message:
    said: list[str] = []
    thought: list[str] = []
    calls: list[ToolCall] = []
    for block in _blocks(message, "content"):
        kind = block.required_text("type")
        if kind == "text":
            said.append(block.required_text("text"))
        elif kind == "thinking":
            thought.append(block.required_text("thinking"))
        elif kind == "tool_use":
            calls.append(_call(block))
        elif kind != "redacted_thinking":
            raise _unknown(block, "text, thinking and tool_use")
    return Message("assistant", "".join(said), reasoning="".join(thought) or None, calls=tuple(calls))


def _call(block: Fields) -> ToolCall:
    given: Any = block.object("input")
    arguments: Mapping[str, Any] = {} if given is None else given.values
    return ToolCall(block.required_text("name"), arguments, block.required_text("id"))
