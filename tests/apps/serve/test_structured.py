"""Answers that have to keep to a form: schemas, grammars and calls of tools, whole and as streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

openai = pytest.importorskip("openai")
jsonschema = pytest.importorskip("jsonschema")

ASK = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "How is the weather in Oslo?"}]}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": SCHEMA},
}


def ask(client: Any, **given: Any) -> Any:
    return client.chat.completions.create(**{**ASK, "temperature": 0, "max_tokens": 120, **given})


def test_a_schema(client: Any):
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    found = ask(client, response_format=form).choices[0]
    assert found.finish_reason == "stop"
    jsonschema.validate(json.loads(found.message.content), SCHEMA)
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, response_format={**form, "json_schema": {"name": "x", "schema": {"type": "poem"}}})
    assert raised.value.type == "invalid_request_error"


def test_a_regex(client: Any):
    form = {"type": "regex", "regex": "(cold|warm), [0-9] degrees"}
    found = ask(client, extra_body={"response_format": form}).choices[0].message.content
    assert found.split(",")[0] in ("cold", "warm") and found.endswith(" degrees")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_required_call(client: Any, choice: Any):
    found = ask(client, tools=[TOOL], tool_choice=choice).choices[0]
    assert found.finish_reason == "tool_calls" and found.message.content is None
    (call, *_) = found.message.tool_calls
    assert call.function.name == "get_weather" and call.id.startswith("call_")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_a_streamed_call_and_its_result(client: Any):
    whole = ask(client, tools=[TOOL], tool_choice="required").choices[0].message.tool_calls[0]
    names, arguments, ids, reasons = "", "", set(), []
    for chunk in ask(client, tools=[TOOL], tool_choice="required", stream=True):
        for choice in chunk.choices:
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for part in choice.delta.tool_calls or ():
                if part.index == 0:
                    names += part.function.name or ""
                    arguments += part.function.arguments or ""
                    ids |= {part.id} - {None}
    assert (names, json.loads(arguments)) == ("get_weather", json.loads(whole.function.arguments))
    assert len(ids) == 1 and reasons == ["tool_calls"]
    said = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [whole.model_dump()]},
        {"role": "tool", "tool_call_id": whole.id, "content": "It is 3 degrees."},
    ]
    assert (
        ask(client, messages=said, tools=[TOOL], tool_choice="none", max_tokens=4).choices[0].message.content
    )


def test_wrong_tools_are_named(client: Any):
    for given, param in (
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            ask(client, **given)
        assert raised.value.param == param
