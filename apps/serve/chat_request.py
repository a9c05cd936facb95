"""A conversation in OpenAI's form as a `Request`: messages, tools, and what the answer has to look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.apps.serve.errors import refusal
from edge.apps.serve.json_in import Fields
from edge.engine.request import Request
from edge.errors import EdgeError
from edge.text.messages import AUTO, Message, parse_messages, parse_tool_choice, parse_tools

_MOST_MESSAGES = 4096
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_BUDGETS = {"low": 512, "medium": 2048}
"""Tokens of thinking that an effort stands for; others have no limit of their own."""
_FORMATS = ("text", "json_object", "json_schema", "regex", "lark")
_REFUSED = {
    "functions": "functions are `tools` now.",
    "function_call": "function_call is `tool_choice` now.",
    "audio": "this model writes text only.",
    "web_search_options": "this server searches nothing.",
    "store": "this server keeps no answers.",
}


def read_chat_request(fields: Fields, *, supports_thinking: bool) -> Request:
    """Everything but the settings of sampling. ApiError names the field that is wrong."""
    for name, sentence in _REFUSED.items():
        fields.refuse(name, sentence, harmless=(False,))
    fields.refuse("modalities", "this model writes text only.", harmless=(["text"],))
    tools = _reading(fields, "tools", lambda value: parse_tools(value)) or ()
    choice = _reading(fields, "tool_choice", lambda value: parse_tool_choice(value, tools)) or AUTO
    variables, thinking = _template_variables(fields, supports_thinking)
    effort = fields.choice("reasoning_effort", _EFFORTS)
    budget = fields.whole("thinking_budget", 0)
    if supports_thinking and effort is not None:
        thinking = effort not in ("none", "minimal") if thinking is None else thinking
        budget = _BUDGETS.get(effort) if budget is None else budget
    return Request(
        read_messages(fields),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=fields.flag("parallel_tool_calls", True),
        grammar=read_response_format(fields),
        thinking=thinking,
        thinking_budget=budget if supports_thinking else None,
        template_variables=variables,
    )


def read_messages(fields: Fields) -> tuple[Message, ...]:
    """The field `messages`."""
    given = fields.list("messages")
    if given is None:
        raise fields.missing("messages")
    if not given:
        raise fields.error("messages", "have at least one message")
    if len(given) > _MOST_MESSAGES:
        raise refusal("messages", f"messages may have {_MOST_MESSAGES} entries at most.")
    found: list[Message] = []
    for index, each in enumerate(given):
        try:
            found += parse_messages([_plain(each)])
        except EdgeError as error:
            raise refusal(_at(each, index), str(error)) from None
    return tuple(found)


def _plain(message: Any) -> Any:
    """Without fields that other answers had and that say nothing to the model."""
    if not isinstance(message, Mapping):
        return message
    return {k: v for k, v in message.items() if k not in ("refusal", "annotations", "audio") or v}


def _at(message: Any, index: int) -> str:
    """Where in the messages something is wrong, as far as can be told."""
    content = message.get("content") if isinstance(message, Mapping) else None
    for place, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text"):
            return f"messages[{index}].content[{place}]"
    return f"messages[{index}]"


def _reading(fields: Fields, name: str, read: Any) -> Any:
    if not fields.has(name):
        return None
    try:
        return read(fields.values[name])
    except EdgeError as error:
        raise refusal(fields.name(name), str(error)) from None


def _template_variables(fields: Fields, supports_thinking: bool) -> tuple[dict[str, Any], bool | None]:
    """The variables of `chat_template_kwargs`, and its `enable_thinking` apart."""
    given = fields.object("chat_template_kwargs")
    if given is None:
        return {}, None
    thinking = given.flag("enable_thinking", None)
    if thinking and not supports_thinking:
        name = given.name("enable_thinking")
        raise refusal(name, f"{name}: the model's chat template has no switch for thinking.")
    reserved = {"messages", "tools", "documents", "add_generation_prompt"}
    if bad := reserved & given.values.keys():
        name = given.name(sorted(bad)[0])
        raise refusal(name, f"{name} may not be set: it follows from the request.")
    others = {k: v for k, v in given.values.items() if k != "enable_thinking"}
    return others, thinking if supports_thinking else None


def read_response_format(fields: Fields, name: str = "response_format") -> Any:
    """The grammar that a format asks for, None for any text."""
    form = fields.object(name)
    if form is None:
        return None
    kind = form.required_text("type")
    if kind not in _FORMATS:
        raise form.error("type", f"be one of {', '.join(_FORMATS)}")
    if kind == "text":
        return None
    try:
        return _grammar(form, kind)
    except EdgeError as error:
        raise refusal(fields.name(name), str(error)) from None


def _grammar(form: Fields, kind: str) -> Any:
    from edge.engine.constraints.grammar import Grammar

    if kind == "regex":
        return Grammar.regex(form.required_text("regex"))
    if kind == "lark":
        return Grammar.lark(form.required_text("lark"))
    if kind == "json_object":
        return Grammar.json_object()
    described = form.object("json_schema")
    if described is None:
        raise form.missing("json_schema")
    schema = described.object("schema")
    return Grammar.json_object() if schema is None else Grammar.json_schema(schema.values)
