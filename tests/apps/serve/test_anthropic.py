"""Messages through Anthropic's own client, and by the schemas of its API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apps.serve.judges import complaints, events

anthropic = pytest.importorskip("anthropic")

MODEL = "smollm2-135m"
DOCUMENT = "anthropic.json"
USER = [{"role": "user", "content": "Name a colour."}]
ASK = {"model": MODEL, "messages": USER, "temperature": 0, "max_tokens": 8}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALL = {
    "tools": [WEATHER],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "max_tokens": 60,
}
THINKS = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 12}


@pytest.fixture(scope="module")
def claude(server: Any) -> Any:
    """Anthropic's client."""
    return anthropic.Anthropic(base_url=server.address, api_key="not-needed", max_retries=0)


def posted(server: Any, **given: Any) -> dict[str, Any]:
    """A whole message, as it is sent."""
    answer = httpx.post(f"{server.address}/v1/messages", json={**ASK, **given}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["request-id"] in answer.json()["id"]
    return dict(answer.json())


def streamed(server: Any, **given: Any) -> dict[str, Any]:
    """The message that a stream adds up to, whose events are as they should be."""
    found = [each for each in events(server.address, "/v1/messages", {**ASK, **given}) if each[0] != "ping"]
    assert [name for name, _ in found] == [data["type"] for _, data in found]
    for _, data in found:
        assert complaints(DOCUMENT, data, "MessageStreamEvent") == [], data
    assert (found[0][0], found[-2][0], found[-1][0]) == ("message_start", "message_delta", "message_stop")
    message: dict[str, Any] = found[0][1]["message"]
    for name, data in found[1:-2]:
        if name == "content_block_start":
            message["content"].append(data["content_block"])
            parts: list[str] = []
        assert data["index"] == len(message["content"]) - 1
        block = message["content"][-1]
        if name == "content_block_delta":
            add(block, data["delta"], parts)
        if name == "content_block_stop" and block["type"] == "tool_use":
            assert block["input"] == {}
            block["input"] = httpx.Response(200, text="".join(parts)).json()
    usage = {**message["usage"], **found[-2][1]["usage"]}
    return {**message, **found[-2][1]["delta"], "usage": usage, "x_edge": found[-2][1]["x_edge"]}


def add(block: dict[str, Any], delta: dict[str, Any], parts: list[str]) -> None:
    """Let a block grow."""
    if delta["type"] == "input_json_delta":
        parts.append(delta["partial_json"])
        return
    name = delta["type"].removesuffix("_delta")
    assert name == "signature" or name == block["type"]
    block[name] += delta[name]


def same(message: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from one answer to the next."""
    found = {name: message[name] for name in ("content", "stop_reason", "stop_sequence", "role", "type")}
    for block in found["content"]:
        block.pop("id", None)
    return {**found, "usage": message["usage"]}


# ---- Texts -------------------------------------------------------------------------------------------------


def test_a_whole_message(server: Any, client: Any):
    found = posted(server, system="You paint.", max_tokens=3, metadata={"user_id": "me"})
    assert complaints(DOCUMENT, found, "Message") == []
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "You paint."}, *USER],
        temperature=0,
        max_tokens=3,
    )
    (block,) = found["content"]
    assert block["text"] == chat.choices[0].message.content
    assert (found["stop_reason"], found["stop_sequence"]) == ("max_tokens", None)
    usage = found["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat.usage.prompt_tokens
    assert usage["output_tokens"] == 3


def test_a_stream_is_the_same_message(server: Any):
    whole, stream = posted(server), streamed(server)
    assert complaints(DOCUMENT, stream, "Message") == []
    assert same(stream) == same(whole)


def test_the_client_reads_both(claude: Any):
    given = {"model": MODEL, "max_tokens": 200, "messages": USER, "extra_body": {"temperature": 0}}
    whole = claude.messages.create(**given)
    with claude.messages.stream(**given) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text != ""
    assert whole.stop_reason == final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens > 0


def test_the_stop_sequence_that_came_is_told(server: Any):
    text = posted(server, max_tokens=12)["content"][0]["text"]
    stop = text[4:9]
    for how in (posted, streamed):
        found = how(server, max_tokens=12, stop_sequences=["never said", stop])
        assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", stop)
        assert found["content"][0]["text"] == text[: text.index(stop)]


@pytest.mark.parametrize(("stop", "token"), [("<|im_end|>", "2"), ("<|endoftext|>", "0")])
def test_a_stop_sequence_may_be_a_control_token(server: Any, stop: str, token: str):
    for how in (posted, streamed):
        found = how(server, stop_sequences=["never said", stop], logit_bias={token: 100})
        assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", stop)
    unasked = posted(server, stop_sequences=["never said"], logit_bias={"2": 100})
    assert (unasked["stop_reason"], unasked["stop_sequence"]) == ("end_turn", None)


def test_tokens_are_counted_as_they_are_read(server: Any, claude: Any):
    given = {"model": MODEL, "system": [{"type": "text", "text": "Be short."}], "messages": USER}
    counted = claude.messages.count_tokens(**given, tools=[WEATHER])
    usage = posted(server, **given, tools=[WEATHER], max_tokens=1)["usage"]
    assert counted.input_tokens == usage["input_tokens"] + usage["cache_read_input_tokens"]
    without = claude.messages.count_tokens(**given)
    assert without.input_tokens < counted.input_tokens


def test_a_schema(server: Any):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    form = {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}
    found = posted(server, output_config={"format": form}, max_tokens=30)
    assert httpx.Response(200, text=found["content"][0]["text"]).json()["n"] in (1, 2)


# ---- Calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [posted, streamed])
def test_a_call(server: Any, how: Callable[..., dict[str, Any]]):
    for choice in (CALL["tool_choice"], {**CALL["tool_choice"], "type": "tool", "name": "get_weather"}):
        found = how(server, **{**CALL, "tool_choice": choice})
        assert complaints(DOCUMENT, found, "Message") == []
        (block,) = found["content"]
        assert (block["type"], block["name"]) == ("tool_use", "get_weather")
        assert set(block["input"]) == {"city"} and found["stop_reason"] == "tool_use"


def test_blocks_are_the_messages_of_chat(server: Any, client: Any):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather in Rome", "cache_control": None}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sun"}]},
                {"type": "tool_result", "tool_use_id": "c1", "content": "late", "is_error": True},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    function = {
        "name": WEATHER["name"],
        "description": WEATHER["description"],
        "parameters": WEATHER["input_schema"],
    }
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'},
    }
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "user", "content": "Weather in Rome"},
            {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sun"},
            {"role": "tool", "tool_call_id": "c1", "content": "Error: late"},
            {"role": "user", "content": "And now?"},
        ],
        tools=[{"type": "function", "function": function}],
        tool_choice="none",
        temperature=0,
        max_tokens=8,
    )
    found = posted(server, messages=messages, tools=[WEATHER], tool_choice={"type": "none"})
    usage = found["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat.usage.prompt_tokens
    assert found["content"][0]["text"] == chat.choices[0].message.content


# ---- Thinking ----------------------------------------------------------------------------------------------


def test_thinking_is_a_block(thinking: Any):
    whole, stream = posted(thinking, **THINKS), streamed(thinking, **THINKS)
    assert complaints(DOCUMENT, whole, "Message") == []
    assert same(whole) == same(stream)
    block = whole["content"][0]
    assert block["type"] == "thinking" and block["thinking"] and block["signature"]
    assert whole["usage"]["output_tokens_details"]["thinking_tokens"] > 0
    hidden = {**THINKS, "thinking": {**THINKS["thinking"], "display": "omitted"}}
    for how in (posted, streamed):
        found = how(thinking, **hidden)["content"][0]
        assert (found["type"], found["thinking"]) == ("thinking", "")


def test_without_the_field_there_is_no_thinking(thinking: Any):
    plain = posted(thinking)
    assert [block["type"] for block in plain["content"]] == ["text"]
    assert same(posted(thinking, thinking={"type": "disabled"})) == same(plain)


# ---- Errors ------------------------------------------------------------------------------------------------


def told(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, kind and sentence of an error."""
    body = answer.json()
    assert body["request_id"] == answer.headers["request-id"]
    if answer.status_code != 413:  # which the API's pages know, and its document does not
        assert complaints(DOCUMENT, body, "ErrorResponse") == []
    return answer.status_code, body["error"]["type"], body["error"]["message"]


def _said(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


REFUSED = {
    "model": ({"model": None}, "model"),
    "max_tokens": ({"max_tokens": None}, "max_tokens"),
    "no messages": ({"messages": None}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    "content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "image": (_said({"type": "image", "source": {}}), "messages[0].content[0].type"),
    "document": (_said({"type": "document", "source": {}}), "messages[0].content[0].type"),
    "text": (_said({"type": "text", "text": 3}), "messages[0].content[0].text"),
    "result": (_said({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
    "call": (_said({"type": "tool_use", "id": "a"}, role="assistant"), "messages[0].content[0].name"),
    "system": ({"system": [{"type": "image"}]}, "system[0].type"),
    "prefill": ({"messages": [*USER, {"role": "assistant", "content": "I"}]}, "messages[1]"),
    "server tool": ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
    "tool": ({"tools": [{"name": "w"}]}, "tools[0].input_schema"),
    "two tools": ({"tools": [WEATHER, WEATHER]}, "tools"),
    "choice": ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice"),
    "budget": ({"thinking": {"type": "enabled", "budget_tokens": 3}}, "thinking.budget_tokens"),
    "stops": ({"stop_sequences": "x"}, "stop_sequences"),
    "container": ({"container": "c"}, "container"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(server: Any, name: str):
    given, param = REFUSED[name]
    status, kind, sentence = told(httpx.post(f"{server.address}/v1/messages", json={**ASK, **given}))
    assert (status, kind) == (400, "invalid_request_error")
    assert sentence.startswith(param) and sentence.endswith(".")


def test_all_errors_have_the_shape(server: Any, start: Callable[..., Any], tiny_folder: str, tmp_path: Path):
    address = server.address
    paths = {"/v1/messages/batches": 404, "/v1/messages/count_tokens/": 404, "/v1/messages": 405}
    for path, status in paths.items():
        assert told(httpx.get(f"{address}{path}"))[0] == status
    assert told(httpx.post(f"{address}/v1/messages", json={**ASK, "model": "x"}))[:2] == (
        404,
        "not_found_error",
    )
    assert told(httpx.post(f"{address}/v1/messages", content=b"{"))[0] == 400
    large = httpx.post(f"{address}/v1/messages", json={**ASK, "system": "x" * 1_100_000})
    assert told(large)[:2] == (413, "request_too_large")
    foreign = httpx.post(f"{address}/v1/messages", json=ASK, headers={"host": "evil.example"})
    assert told(foreign)[:2] == (403, "permission_error")

    (tmp_path / "keys").write_text("a-long-secret\n")
    keyed = start(tiny_folder, "--prefix-folder", "off", "--api-keys", str(tmp_path / "keys")).address
    counted = f"{keyed}/v1/messages/count_tokens"
    assert told(httpx.post(counted, json=ASK))[:2] == (401, "authentication_error")
    for headers in ({"x-api-key": "a-long-secret"}, {"authorization": "Bearer a-long-secret"}):
        assert told(httpx.post(counted, json=ASK, headers=headers))[:2] == (404, "not_found_error")


def test_an_error_ends_a_stream(going_down: Callable[..., list[tuple[str, dict[str, Any]]]]):
    found = going_down("/v1/messages", {**ASK, "max_tokens": 3000, "ignore_eos": True}, 6)
    assert "content_block_delta" in [name for name, _ in found]
    name, error = found[-1]
    assert name == "error" and complaints(DOCUMENT, error, "ErrorResponse") == []
    assert error["error"]["type"] == "overloaded_error"
    assert error["request_id"] in found[0][1]["message"]["id"]
