"""A request for a response, read: what the model is asked, and what the response says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.apps.serve.asking import read_settings
from edge.apps.serve.chat_request import EFFORTS, check_tools, grammar_of, read_effort, reading
from edge.apps.serve.errors import refusal
from edge.apps.serve.json_in import Fields
from edge.apps.serve.responses.items import check_metadata, read_input
from edge.apps.serve.state import Served
from edge.engine.request import Request
from edge.executors.native.library import MAX_LOGPROBS
from edge.text.messages import Message, Tool, ToolChoice, parse_tool_choice, parse_tools

if TYPE_CHECKING:
    from edge.engine.constraints.grammar import Grammar

SUMMARIES = ("auto", "concise", "detailed")
VERBOSITIES = ("low", "medium", "high")
_CHOICES = ("auto", "none", "required")
LONGEST_NAME = 512
"""Of what a client calls its user, its cache, its format: a response repeats it."""
_LOGPROBS = "message.output_text.logprobs"
_SEALED = "reasoning.encrypted_content"
_REFUSED = {
    "conversation": "this server keeps responses only: use previous_response_id.",
    "prompt": "this server has no prompt templates: send instructions and input.",
    "moderation": "this server has no moderation.",
}


@dataclass(frozen=True)
class Wanted:
    """A request, with what concerns the form of the response.

    summary: what is thought goes into the item's summary. sealed: and into its `encrypted_content`. logprobs:
    with the texts. echoed: fields of the response that say what was asked.
    """

    request: Request
    messages: tuple[Message, ...]
    stream: bool
    store: bool
    summary: bool
    sealed: bool
    logprobs: bool
    echoed: Mapping[str, Any]


def read_request(served: Served, fields: Fields, before: Sequence[Message]) -> Wanted:
    """A request that goes on with the messages `before`. ApiError names the field that is wrong."""
    served.check_model(fields, required=True)
    for name, sentence in _REFUSED.items():
        fields.refuse(name, sentence)
    fields.refuse("background", "answers are not made in the background here.", harmless=(False,))
    fields.refuse("truncation", "this server leaves nothing out of an input.", harmless=("disabled",))
    tools, choice, echoed_choice = _tools(fields)
    grammar, text = _text(fields)
    effort, summary = _reasoning(fields)
    supports = served.model.chat_template.supports_thinking
    thinking, usual = read_effort(effort, supports)
    budget = fields.whole("thinking_budget", 0)
    include = fields.texts("include", 16) or ()
    top_logprobs = fields.whole("top_logprobs", 0, MAX_LOGPROBS)
    settings = read_settings(fields, "max_output_tokens")
    logprobs = _LOGPROBS in include or bool(top_logprobs)
    if logprobs:
        settings["logprobs"] = top_logprobs or 0
    instructions = fields.text("instructions")
    messages = (*before, *read_input(fields, before)) or (Message("user", ""),)
    first = () if instructions is None else (Message("system", instructions),)
    parallel = fields.flag("parallel_tool_calls", True)
    request = Request(
        (*first, *messages),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        grammar=grammar,
        thinking=thinking,
        thinking_budget=usual if budget is None or not supports else budget,
        settings=settings,
    )
    store = fields.flag("store", True)
    echoed = {
        "previous_response_id": fields.text("previous_response_id"),
        "instructions": instructions,
        "tools": [_described(tool) for tool in tools],
        "tool_choice": echoed_choice,
        "truncation": "disabled",
        "parallel_tool_calls": parallel,
        "text": text,
        "top_logprobs": top_logprobs or 0,
        "reasoning": {"effort": effort, "summary": summary},
        "max_output_tokens": settings.get("max_new_tokens"),
        "max_tool_calls": fields.whole("max_tool_calls", 1),
        "store": store,
        "background": False,
        "service_tier": "default",
        "metadata": check_metadata(fields),
        "safety_identifier": fields.text("safety_identifier", most=LONGEST_NAME),
        "prompt_cache_key": fields.text("prompt_cache_key", most=LONGEST_NAME),
        "user": fields.text("user", most=LONGEST_NAME),
    }
    return Wanted(
        request,
        messages,
        fields.flag("stream"),
        store,
        summary is not None,
        _SEALED in include,
        logprobs,
        echoed,
    )


def _tools(fields: Fields) -> tuple[tuple[Tool, ...], ToolChoice, Any]:
    """The functions among `tools`, the choice, and how the response says it.

    Other kinds of tools run on a server, and this one has none: a client that offers them as well can do
    without.
    """
    check_tools(fields)
    functions = [tool for tool in fields.objects("tools") if tool.required_text("type") == "function"]
    tools: dict[str, Tool] = {}
    for function in functions:
        (tool,) = reading(function.path, parse_tools, [function.values])
        if tool.name in tools:
            raise refusal(function.path, f"Two tools have the name '{tool.name}': give each its own.")
        tools[tool.name] = tool
    given = fields.values.get("tool_choice")
    if isinstance(given, Mapping) and given.get("type") == "allowed_tools":
        return _allowed(Fields(given, "tool_choice"), tools)
    choice = reading("tool_choice", parse_tool_choice, given, tuple(tools.values()))
    echoed = {"type": "function", "name": choice.name} if choice.mode == "named" else choice.mode
    return tuple(tools.values()), choice, echoed


def _allowed(choice: Fields, tools: Mapping[str, Tool]) -> tuple[tuple[Tool, ...], ToolChoice, Any]:
    mode = choice.choice("mode", _CHOICES, "auto")
    allowed = list(choice.objects("tools"))
    names = [tool.required_text("name") for tool in allowed if tool.text("type") == "function"]
    for name in names:
        if name not in tools:
            where = choice.name("tools")
            raise refusal(where, f"{where} names the function {name[:80]!r}, which is none of the tools.")
    wanted = set(names)
    kept = tuple(tool for name, tool in tools.items() if name in wanted)
    found = reading("tool_choice", parse_tool_choice, mode, kept)
    echoed = {
        "type": "allowed_tools",
        "mode": mode,
        "tools": [{"type": "function", "name": name} for name in names],
    }
    return kept, found, echoed


def _described(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
        "strict": tool.strict,
    }


def _text(fields: Fields) -> tuple[Grammar | None, dict[str, Any]]:
    """What `text` asks for: a grammar, and how the response says it."""
    given = fields.object("text") or Fields({}, "text")
    verbosity = given.choice("verbosity", VERBOSITIES, "medium")
    form = given.object("format")
    kind = "text" if form is None else form.required_text("type")
    if form is None or kind == "text":
        return None, {"format": {"type": "text"}, "verbosity": verbosity}
    grammar = grammar_of(form, kind, form)
    said: dict[str, Any] = {"type": kind}
    if kind == "json_schema":
        said |= {
            "name": form.text("name", "answer", most=LONGEST_NAME),
            "description": form.text("description"),
            "schema": form.values.get("schema"),
            "strict": form.flag("strict", True),
        }
    return grammar, {"format": said, "verbosity": verbosity}


def _reasoning(fields: Fields) -> tuple[str | None, str | None]:
    given = fields.object("reasoning") or Fields({}, "reasoning")
    summary = given.choice("summary", SUMMARIES) or given.choice("generate_summary", SUMMARIES)
    return given.choice("effort", EFFORTS), summary
