"""A conversation in OpenAI's form as a `Request`: messages, tools, and what the answer has to look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from edge.apps.serve.errors import refusal
from edge.apps.serve.json_in import Fields
from edge.engine.request import Request
from edge.errors import EdgeError
from edge.text.messages import Message, parse_messages, parse_tool_choice, parse_tools

if TYPE_CHECKING:
    from edge.engine.constraints.grammar import Grammar

_T = TypeVar("_T")

_MOST_MESSAGES = 4096
MOST_TOOLS = 1024
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
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
    check_tools(fields)
    tools = reading("tools", parse_tools, fields.values.get("tools"))
    choice = reading("tool_choice", parse_tool_choice, fields.values.get("tool_choice"), tools)
    variables, thinking = _template_variables(fields, supports_thinking)
    wanted, usual = read_effort(fields.choice("reasoning_effort", EFFORTS), supports_thinking)
    budget = fields.whole("thinking_budget", 0)
    thinking = wanted if thinking is None else thinking
    budget = usual if budget is None else budget
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


def check_tools(fields: Fields) -> None:
    """Raise ApiError for more `tools` than any client has: each is a part of the prompt and of a grammar."""
    given = fields.values.get("tools")
    if isinstance(given, list) and len(given) > MOST_TOOLS:
        name = fields.name("tools")
        raise refusal(name, f"{name} may have {MOST_TOOLS} entries at most.")


def listed_messages(fields: Fields) -> list[Any]:
    """The entries of the field `messages`, of which there is one at least."""
    given = fields.list("messages")
    if given is None:
        raise fields.missing("messages")
    if not given:
        raise fields.error("messages", "have at least one message")
    if len(given) > _MOST_MESSAGES:
        raise refusal("messages", f"messages may have {_MOST_MESSAGES} entries at most.")
    return given


def read_messages(fields: Fields) -> tuple[Message, ...]:
    """The field `messages`."""
    found: list[Message] = []
    for index, each in enumerate(listed_messages(fields)):
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


def reading(name: str, read: Callable[..., _T], *values: Any) -> _T:
    """What `read` makes of a field's value; what it refuses is the field's fault. name: its full one."""
    try:
        return read(*values)
    except EdgeError as error:
        raise refusal(name, str(error)) from None


def read_effort(effort: str | None, supports_thinking: bool) -> tuple[bool | None, int | None]:
    """Whether to think and most tokens of it, for an effort; None where it says nothing."""
    if effort is None or not supports_thinking:
        return None, None
    return effort not in ("none", "minimal"), _BUDGETS.get(effort)


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


def read_response_format(fields: Fields, name: str = "response_format") -> Grammar | None:
    """The grammar that a format asks for, None for any text."""
    form = fields.object(name)
    if form is None:
        return None
    kind = form.required_text("type")
    if kind == "text":
        return None
    return grammar_of(form, kind, form.object("json_schema"))


def grammar_of(form: Fields, kind: str, described: Fields | None) -> Grammar:
    """The grammar of a format of a kind other than text. described: the object with the field `schema`."""
    if kind not in _FORMATS:
        raise form.error("type", f"be one of {', '.join(_FORMATS)}")
    return reading(form.path, _grammar, form, kind, described)


def _grammar(form: Fields, kind: str, described: Fields | None) -> Grammar:
    from edge.engine.constraints.grammar import Grammar

    if kind == "regex":
        return Grammar.regex(form.required_text("regex"))
    if kind == "lark":
        return Grammar.lark(form.required_text("lark"))
    if kind == "json_object":
        return Grammar.json_object()
    if described is None:
        raise form.missing("json_schema")
    schema = described.object("schema")
    return Grammar.json_object() if schema is None else Grammar.json_schema(schema.values)
