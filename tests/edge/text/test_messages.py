"""Messages, tools and calls in OpenAI's form: read, refused by name, and written again."""

from __future__ import annotations

import re
from typing import Any

import pytest

from edge.errors import EdgeError, WrongTypeError
from edge.text.messages import (
    AUTO,
    NONE,
    REQUIRED,
    Message,
    Tool,
    ToolCall,
    ToolChoice,
    parse_messages,
    parse_tool_choice,
    parse_tools,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC", "n": -3}'}}
TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": None}}


def test_a_whole_conversation() -> None:
    given = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "time?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        {"role": "assistant", "content": "Noon.", "reasoning_content": "Easy."},
    ]
    found = parse_messages(given)
    assert found == [
        Message("system", "Be brief."),
        Message("user", "What time?"),
        Message("assistant", "", calls=(ToolCall("now", {"zone": "UTC", "n": -3}, "c1"),)),
        Message("tool", "12:00", call_id="c1"),
        Message("assistant", "Noon.", reasoning="Easy."),
    ]
    assert parse_messages([message.as_openai() for message in found]) == found
    assert found[2].as_openai()["tool_calls"] == [CALL]


@pytest.mark.parametrize("text", ["", " ", "{}"])
def test_no_arguments(text: str) -> None:
    call = {"function": {"name": "now", "arguments": text}}
    assert parse_messages([{"role": "assistant", "tool_calls": [call]}])[0].calls[0].arguments == {}


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"a": 1, "a": 2}', "{'a': 1}", "nan", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}'],
)
def test_arguments_that_are_no_object_stay_text(text: str) -> None:
    call = {"function": {"name": "now", "arguments": text}}
    (found,) = parse_messages([{"role": "assistant", "tool_calls": [call]}])[0].calls
    assert found.arguments == text == found.arguments_json


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "'image_url'.*text only"),
        ({"role": "user", "content": [{"type": "text"}]}, "an object with type and text"),
        ({"role": "user", "content": ["Hi"]}, "an object with type and text"),
        ({"role": "user", "content": "Hi", "tool_calls": [CALL]}, "field 'tool_calls'"),
        ({"role": "user", "content": "Hi", "tool_call_id": "c1"}, "field 'tool_call_id'"),
        ({"role": "assistant", "tool_calls": []}, "must be a text, not None"),
        ({"role": "assistant", "tool_calls": CALL}, "'tool_calls' of the assistant's message must be a list"),
        ({"role": "assistant", "tool_calls": [{"id": "c1"}]}, "function has a name"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "the type 'function'"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": 3}]}, "id of a call must be a text"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": 3}}]},
            "arguments of the call of 'now'",
        ),
        ({"role": "tool", "content": "x", "tool_call_id": 3}, "'tool_call_id' of the tool's message"),
        ({"role": "function", "content": "x"}, "role 'function'"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "field 'function_call'"),
    ],
)
def test_what_is_wrong_is_named(message: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgeError, match=says):
        parse_messages([message])


def test_tools() -> None:
    (tool,) = parse_tools([TOOL])
    assert tool == Tool("now", "The time.", {"type": "object", "properties": {}})
    flat = {"type": "function", "name": "now", "description": "The time.", "strict": True}  # as in Responses
    assert parse_tools([flat]) == (Tool("now", "The time.", None, True),)  # type: ignore[arg-type]
    assert parse_tools(None) == parse_tools([]) == ()
    assert parse_tools([tool.as_openai()]) == (tool,)


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ([TOOL, TOOL], "Two tools have the name 'now'"),
        ([{"type": "web_search"}], "'web_search'; only 'function'"),
        ([{"type": "function", "function": {"name": "a b"}}], "name 'a b'"),
        ([{"type": "function", "function": {}}], "name None"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
            "type 'object'",
        ),
        ([{"type": "function", "function": {"name": "f", "parameters": []}}], "type 'object'"),
        ({"type": "function"}, "a list of objects"),
        (["f"], "object with type and function"),
    ],
)
def test_what_is_no_tool(tools: Any, says: str) -> None:
    with pytest.raises(EdgeError, match=says):
        parse_tools(tools)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("properties", 5),
        ("properties", None),
        ("properties", {"a": 5}),
        ("properties", {5: {}}),
        ("required", 5),
        ("required", None),
        ("required", "ab"),
        ("required", ["a", ["b"]]),
        ("type", ["string", ["x"]]),
        ("type", []),
        ("type", 5),
        ("enum", 5),
        ("anyOf", {"type": "string"}),
        ("allOf", [5]),
        ("$defs", []),
        ("additionalProperties", 5),
        ("minLength", "5"),
        ("maxLength", -1),
        ("maxLength", True),
    ],
)
def test_parameters_of_another_shape_are_refused(keyword: str, value: Any) -> None:
    """Whoever walks over them later, such as the grammars of calls, relies on it; so also further inside."""
    bad = {keyword: value}
    places: list[dict[str, Any]] = [{"properties": {"p": bad}}]
    places += [{"properties": {"p": {"items": {"anyOf": [True, {"properties": {"q": bad}}]}}}}]
    places += [{"$defs": {"d": bad}}, {"additionalProperties": bad}]
    if keyword != "type":
        places.append(bad)
    for parameters in places:
        with pytest.raises(
            WrongTypeError, match=f"The parameters of the tool 'f' give {re.escape(repr(keyword))}"
        ):
            Tool("f", "", parameters)


def test_parameters_that_contain_themselves_are_refused() -> None:
    endless: dict[str, Any] = {}
    endless["properties"] = {"more": endless}
    with pytest.raises(WrongTypeError, match="nested deeper"):
        Tool("f", "", endless)


def test_tool_choice() -> None:
    tools = parse_tools([TOOL])
    named = {"type": "function", "function": {"name": "now"}}
    assert parse_tool_choice(None, ()) == AUTO and parse_tool_choice("none", ()) == NONE
    assert parse_tool_choice("required", tools) == REQUIRED
    assert parse_tool_choice(named, tools) == ToolChoice("named", "now")
    assert parse_tool_choice({"type": "function", "name": "now"}, tools) == ToolChoice("named", "now")
    wrong: list[tuple[Any, str]] = [
        ("any", "'auto', 'none'"),
        (["auto"], "'auto', 'none'"),
        ({"type": "function", "name": "x"}, "'x', which is none"),
        ({"type": "function", "function": {"name": ["x"]}}, "which is none"),
        ({"type": "function", "function": {"name": {}}}, "which is none"),
        ({"type": "function", "name": {}}, "which is none"),
        (ToolChoice("named", ["x"]), "which is none"),  # type: ignore[arg-type]
    ]
    for given, says in wrong:
        with pytest.raises(EdgeError, match=says):
            parse_tool_choice(given, tools)
    with pytest.raises(EdgeError, match="there are no tools"):
        parse_tool_choice("required", ())
