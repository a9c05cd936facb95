"""Responses through OpenAI's own client, and by the schemas of Open Responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from edge.apps.serve.errors import ApiError
from edge.apps.serve.responses.store import MOST_RESPONSES, ResponseStore, Stored
from edge.text.messages import Message, ToolCall
from tests.apps.serve.judges import complaints, events

openai = pytest.importorskip("openai")

MODEL = "smollm2-135m"
OPEN_RESPONSES = "openresponses.json"
ASK = {"model": MODEL, "input": "Name a colour.", "temperature": 0, "max_output_tokens": 8}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALL = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 60}
COUNT = "Count from 1 to 9."
THINKS = {"input": COUNT, "reasoning": {"effort": "low"}, "thinking_budget": 6, "max_output_tokens": 24}
CHANGES = {"status", "output", "usage", "completed_at", "incomplete_details", "x_edge"}
SCHEMAS = {
    "response.output_text": "ResponseOutputText",
    "response.content_part": "ResponseContentPart",
    "response.output_item": "ResponseOutputItem",
    "response.function_call_arguments": "ResponseFunctionCallArguments",
    "response.reasoning_summary_part": "ResponseReasoningSummaryPart",
    "response.reasoning_summary_text": "ResponseReasoningSummary",
}


def ask(client: Any, **given: Any) -> Any:
    return client.responses.create(**{**ASK, **given})


def posted(server: Any, **given: Any) -> dict[str, Any]:
    """A whole response, as it is sent."""
    answer = httpx.post(f"{server.address}/v1/responses", json={**ASK, **given}, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def schema_of(kind: str) -> str:
    """The name of an event's schema in Open Responses' document."""
    head, _, what = kind.rpartition(".")
    if head == "response":
        return f"Response{''.join(word.title() for word in what.split('_'))}StreamingEvent"
    return f"{SCHEMAS[head]}{what.title()}StreamingEvent"


def streamed(server: Any, **given: Any) -> dict[str, Any]:
    """The response at the end of a stream whose events are as they should be, one by one and together."""
    found = events(server.address, "/v1/responses", {**ASK, **given})
    assert found.pop() == (found[-1][0], {}), "the stream does not end with [DONE]"
    kinds = [data["type"] for _, data in found]
    assert [name for name, _ in found] == kinds
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    last = found[-1][1]["response"]
    for name, data in found:
        if not name.startswith("response.reasoning_text"):  # OpenAI's name; the document has another
            assert complaints(OPEN_RESPONSES, data, schema_of(name)) == [], data
        if "response" in data and data["response"] is not last:
            response = data["response"]
            assert response["status"] == "in_progress" and response["output"] == []
            assert {name for name in last if last[name] != response.get(name)} <= CHANGES
    check_items([data for _, data in found[2:-1]], last["output"])
    return dict(last)


def check_items(found: list[dict[str, Any]], output: list[dict[str, Any]]) -> None:
    """Each item is added, grows and is done, one behind the other, and is the same in the response."""
    at, text = -1, ""
    for data in found:
        if data["type"] == "response.output_item.added":
            at, text = at + 1, ""
            assert data["item"]["status"] == "in_progress"
        item = output[at]
        assert data["output_index"] == at
        assert (data["item"]["id"] if "item" in data else data["item_id"]) == item["id"]
        text += data.get("delta", "")
        if data["type"].endswith(".done"):
            part = next(iter([*item.get("content", []), *item.get("summary", [])]), None)
            assert text == (item["arguments"] if part is None else part["text"])
            assert data.get("text", data.get("arguments", text)) == text
            assert data.get("item", item) == item and data.get("part", part) == part
    assert at == len(output) - 1


# ---- Texts -------------------------------------------------------------------------------------------------


def test_a_whole_response(server: Any, client: Any):
    known = {"metadata": {"a": "b"}, "prompt_cache_key": "k", "client_metadata": {"c": "d"}, "user": "me"}
    found = posted(server, instructions="You paint.", max_output_tokens=3, **known)
    assert complaints(OPEN_RESPONSES, found, "ResponseResource") == []
    assert found["status"] == "incomplete" and found["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = found["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "incomplete")
    assert found["usage"]["output_tokens"] == 3
    assert found["usage"]["total_tokens"] == found["usage"]["input_tokens"] + 3
    assert (found["instructions"], found["metadata"], found["temperature"]) == ("You paint.", {"a": "b"}, 0)
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "You paint."}, {"role": "user", "content": ASK["input"]}],
        temperature=0,
        max_tokens=3,
    )
    assert item["content"][0]["text"] == chat.choices[0].message.content
    assert found["usage"]["input_tokens"] == chat.usage.prompt_tokens


def test_a_stream_is_the_same_response(server: Any):
    whole, stream = posted(server), streamed(server)
    assert complaints(OPEN_RESPONSES, stream, "ResponseResource") == []
    same = ("status", "usage", "model", "tools", "text", "reasoning", "incomplete_details")
    assert {name: stream[name] for name in same} == {name: whole[name] for name in same}
    texts = [response["output"][0]["content"] for response in (whole, stream)]
    assert texts[0] == texts[1]


def test_the_client_reads_a_stream(client: Any):
    with client.responses.stream(**{**ASK, "input": "Say one word.", "max_output_tokens": 200}) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed" and final.output_text == "".join(deltas) != ""


def test_logprobs_of_a_text(client: Any, server: Any):
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 4}
    (part,) = ask(client, **wanted).output[0].content
    assert "".join(entry.token for entry in part.logprobs) == part.text and len(part.logprobs) == 4
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)
    stream = streamed(server, **wanted)["output"][0]["content"][0]
    assert [entry["token"] for entry in stream["logprobs"]] == [entry.token for entry in part.logprobs]


def test_the_probe_of_clients(server: Any):
    for nothing in ([], ""):
        found = posted(server, input=nothing, max_output_tokens=1)
        assert found["usage"]["output_tokens"] == 1 and len(found["output"]) == 1


def test_a_schema(client: Any):
    from pydantic import BaseModel, Field

    class Colour(BaseModel):
        name: str = Field(max_length=8)
        red: int = Field(ge=0, le=255)

    given = {**ASK, "max_output_tokens": 80}
    found = client.responses.parse(text_format=Colour, **given)
    assert isinstance(found.output_parsed, Colour) and found.status == "completed"
    assert found.text.format.type == "json_schema" and found.text.format.name == "Colour"
    words = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=4)
    assert words.output_text.lstrip().startswith("{")


# ---- Calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [posted, streamed])
def test_a_call(server: Any, how: Callable[..., dict[str, Any]]):
    others = [{"type": "web_search"}, {"type": "custom", "name": "patch"}, {"type": "local_shell"}]
    found = how(server, **{**CALL, "tools": [*others, WEATHER]})
    assert complaints(OPEN_RESPONSES, found, "ResponseResource") == []
    (item,) = found["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "get_weather", "completed")
    assert set(json.loads(item["arguments"])) == {"city"}
    assert [tool["name"] for tool in found["tools"]] == ["get_weather"] and found["tool_choice"] == "required"


def test_allowed_and_named_tools(server: Any):
    other = {**WEATHER, "name": "get_time"}
    tools = [WEATHER, other]
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "get_time"}],
    }
    for choice in (allowed, {"type": "function", "name": "get_time"}):
        found = posted(server, **{**CALL, "tools": tools, "tool_choice": choice})
        assert complaints(OPEN_RESPONSES, found, "ResponseResource") == []
        assert [item["name"] for item in found["output"]] == ["get_time"]
        assert found["tool_choice"] == choice


def test_items_are_the_messages_of_chat(server: Any, client: Any):
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be short."}]},
        {"type": "message", "role": "user", "content": "Weather in Rome?"},
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": '{"city": "Bari"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Sun.", "annotations": []}]},
        {"role": "user", "content": "Thanks."},
    ]
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        for n, arguments in ((1, '{"city": "Rome"}'), (2, '{"city": "Bari"}'))
    ]
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "rain"},
        {"role": "assistant", "content": "Sun."},
        {"role": "user", "content": "Thanks."},
    ]
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    chat = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        tools=[{"type": "function", "function": function}],
        tool_choice="none",
        temperature=0,
        max_tokens=8,
    )
    found = posted(server, input=items, tools=[WEATHER], tool_choice="none")
    assert found["usage"]["input_tokens"] == chat.usage.prompt_tokens
    assert found["output"][0]["content"][0]["text"] == chat.choices[0].message.content


def test_what_codex_sends(thinking: Any):
    """Twelve fields, tools of many types, the whole history, nothing stored."""
    found = streamed(
        thinking,
        instructions="You are a coding agent.",
        input=[
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "Be short."}],
            },
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": COUNT}]},
        ],
        tools=[
            {**WEATHER, "strict": False},
            {"type": "custom", "name": "apply_patch", "description": "d", "format": {"type": "grammar"}},
            {"type": "namespace", "name": "mcp", "tools": []},
            {"type": "web_search", "external_web_access": False},
            {"type": "local_shell"},
        ],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "none", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="a",
        client_metadata={"b": "c"},
    )
    assert found["output"][-1]["type"] in ("message", "function_call") and found["store"] is False
    assert httpx.get(f"{thinking.address}/v1/responses/{found['id']}").status_code == 404


# ---- Stored responses --------------------------------------------------------------------------------------


def test_a_response_goes_on_from_a_stored_one(server: Any, client: Any):
    first = ask(client, instructions="Be short.")
    second = ask(client, input="Another?", previous_response_id=first.id)
    history = [
        {"role": "user", "content": ASK["input"]},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Another?"},
    ]
    plain = posted(server, input=history)
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens == plain["usage"]["input_tokens"]
    assert second.output_text == plain["output"][0]["content"][0]["text"]
    assert client.responses.retrieve(first.id) == first
    client.responses.delete(first.id)
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(first.id)


def test_an_unknown_response_is_refused(client: Any):
    kept_not = ask(client, store=False)
    for name in ("resp_0", kept_not.id):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, previous_response_id=name)
        assert (refused.value.code, refused.value.param) == (
            "previous_response_not_found",
            "previous_response_id",
        )


def test_the_store_forgets_what_is_oldest():
    store = ResponseStore()
    for number in range(MOST_RESPONSES + 2):
        if number > 1:
            store.get("r1")  # used all the time
        store.add(Stored({"id": f"r{number}"}, (Message("user", "x"),)))
    for name, there in (("r0", False), ("r1", True), ("r2", False), ("r3", True)):
        if there:
            assert store.get(name).response["id"] == name
        else:
            with pytest.raises(ApiError):
                store.get(name)
    large = Message("user", "x" * 10_000_000)
    for name in ("a", "b"):
        store.add(Stored({"id": name}, (large,)))
    assert store.get("b").messages == (large,)
    with pytest.raises(ApiError):
        store.get("a")


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key"])
def test_what_a_response_repeats_is_short(server: Any, name: str):
    answer = httpx.post(f"{server.address}/v1/responses", json={**ASK, name: "x" * 513}, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == name


@pytest.mark.parametrize(
    "large",
    [
        Stored({"id": "b", "text": "x" * 16_000_000}, ()),
        Stored({"id": "b"}, (Message("assistant", "", tuple(range(2_000_000))),)),
        Stored({"id": "b"}, (Message("assistant", "", calls=(ToolCall("f", {"x": "y" * 16_000_000}),)),)),
    ],
    ids=["response", "tokens", "arguments"],
)
def test_all_that_is_stored_counts(large: Stored):
    store = ResponseStore()
    store.add(Stored({"id": "a"}, ()))
    store.add(large)
    with pytest.raises(ApiError):
        store.get("a")
    store.remove("b")
    store.add(Stored({"id": "c"}, ()))
    store.add(Stored({"id": "d"}, ()))
    assert store.get("c").response["id"] == "c"


# ---- Thinking ----------------------------------------------------------------------------------------------


def test_thinking_is_an_item(thinking: Any):
    found, stream = posted(thinking, **THINKS), streamed(thinking, **THINKS)
    assert complaints(OPEN_RESPONSES, found, "ResponseResource") == []
    first, second = found["output"]
    assert (first["type"], second["type"]) == ("reasoning", "message")
    assert first["content"][0]["type"] == "reasoning_text" and first["content"][0]["text"]
    thought = found["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert 6 <= thought < found["usage"]["output_tokens"]  # the budget, and the closing mark
    assert found["usage"] == stream["usage"]
    assert [item["content"] for item in stream["output"]] == [first["content"], second["content"]]


def test_a_summary_is_what_was_thought(thinking: Any):
    text = posted(thinking, **THINKS)["output"][0]["content"][0]["text"]
    wanted = {**THINKS, "reasoning": {"effort": "low", "summary": "auto"}}
    for found in (posted(thinking, **wanted), streamed(thinking, **wanted)):
        assert complaints(OPEN_RESPONSES, found, "ResponseResource") == []
        assert found["output"][0]["summary"] == [{"type": "summary_text", "text": text}]
        assert found["output"][0]["content"] == []


def test_thoughts_come_back(thinking: Any):
    """As Codex hands them back: without the text, with the encrypted content."""
    first = posted(thinking, **THINKS, include=["reasoning.encrypted_content"], store=False)
    thought = first["output"][0]
    assert thought["encrypted_content"]
    question = {"role": "user", "content": COUNT}
    shapes = [
        {"type": "reasoning", "summary": [], "encrypted_content": thought["encrypted_content"]},
        {"type": "reasoning", "summary": [], "content": thought["content"]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": thought["content"][0]["text"]}]},
    ]
    why = {"role": "user", "content": "Why?"}

    def length(*items: dict[str, Any]) -> int:
        found = posted(thinking, input=[question, *items, first["output"][1], why], max_output_tokens=1)
        return int(found["usage"]["input_tokens"])

    lengths = {length(item) for item in shapes}
    assert len(lengths) == 1 and lengths.pop() > length()


# ---- Errors ------------------------------------------------------------------------------------------------

_USER = {"role": "user"}
REFUSED = {
    "model": ({"model": None}, "model"),
    "no input": ({"input": None}, "input"),
    "input": ({"input": 3}, "input"),
    "item": ({"input": [3]}, "input[0]"),
    "unknown item": ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
    "item without kind": ({"input": [{"id": "x"}]}, "input[0].type"),
    "role": ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role"),
    "no content": ({"input": [_USER]}, "input[0].content"),
    "content": ({"input": [{**_USER, "content": 3}]}, "input[0].content"),
    "image": ({"input": [{**_USER, "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
    "call": ({"input": [{"type": "function_call", "name": "a"}]}, "input[0].call_id"),
    "output": ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output"),
    "sealed": (
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "edge:x"}]},
        "input[0].encrypted_content",
    ),
    "thought": (
        {"input": [{"type": "reasoning", "summary": [{"type": "summary_text"}]}]},
        "input[0].summary[0].text",
    ),
    "thought without kind": (
        {"input": [{"type": "reasoning", "summary": [], "content": [{"text": ""}]}]},
        "input[0].content[0].type",
    ),
    "kind of thought": (
        {"input": [{"type": "reasoning", "summary": [{"type": "reasoning_text", "text": "a"}]}]},
        "input[0].summary[0].type",
    ),
    "conversation": ({"conversation": "c"}, "conversation"),
    "background": ({"background": True}, "background"),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "tool": ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0]"),
    "two tools": ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
    "choice": ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "b"}}, "tool_choice"),
    "no tools": ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
    "effort": ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    "format": ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    "metadata": ({"metadata": {"a": 3}}, "metadata.a"),
    "tokens": ({"max_output_tokens": 0}, "max_output_tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(server: Any, name: str):
    given, param = REFUSED[name]
    answer = httpx.post(f"{server.address}/v1/responses", json={**ASK, **given})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["message"].endswith(".") and error["type"] == "invalid_request_error"


def test_there_is_no_compaction(server: Any):
    answer = httpx.post(f"{server.address}/v1/responses/compact", json=ASK)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_an_error_ends_a_stream(going_down: Callable[..., list[tuple[str, dict[str, Any]]]]):
    found = going_down("/v1/responses", {**ASK, "max_output_tokens": 3000, "ignore_eos": True}, 6)
    (name, error), (last, failed), done = found[-3:]
    assert (name, last, done[1]) == ("error", "response.failed", {})
    assert complaints(OPEN_RESPONSES, error, "ErrorStreamingEvent") == []
    assert complaints(OPEN_RESPONSES, failed, "ResponseFailedStreamingEvent") == []
    assert error["code"] == error["error"]["code"] == failed["response"]["error"]["code"] == "shutting_down"
    assert failed["response"]["status"] == "failed" and failed["response"]["output"]
    numbers = [data["sequence_number"] for _, data in found[:-1]]
    assert numbers == list(range(len(numbers)))
