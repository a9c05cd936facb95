"""Requests whose answers never change, and the texts of their answers, whole and streamed.

Their prompts are few, so that the prefix cache has all of them after a while and memory can be watched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

PATIENCE = 300.0  # seconds for an answer, on a machine that does other things too
_ASKED = (
    "Tell me a story about a sailor.",
    "What is the capital of France?",
    "Write a list of five animals.",
    "Explain rain to a child.",
)
_TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["celsius", "kelvin"]}},
        "required": ["city", "unit"],
    },
}
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "legs": {"type": "integer", "maximum": 99}},
    "required": ["name", "legs"],
}


@dataclass(frozen=True)
class Known:
    """A request. body: without `stream`."""

    name: str
    path: str
    body: Mapping[str, Any]


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _requests() -> Iterable[Known]:
    greedy = {"model": "default", "temperature": 0}
    for number, text in enumerate(_ASKED):
        chat = {**greedy, "messages": _messages(text), "max_tokens": 24}
        yield Known(f"chat {number}", "/v1/chat/completions", chat)
        yield Known(f"messages {number}", "/v1/messages", chat)
        words = {**greedy, "input": text, "max_output_tokens": 24}
        yield Known(f"responses {number}", "/v1/responses", words)
        yield Known(f"completions {number}", "/v1/completions", {**greedy, "prompt": text, "max_tokens": 24})
    chat = {**greedy, "messages": _messages("A fact about cats."), "max_tokens": 40}
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": _SCHEMA}}
    yield Known("schema", "/v1/chat/completions", {**chat, "response_format": form})
    words = {"type": "regex", "regex": "[a-z]{4,12}( [a-z]{2,9}){2}"}
    yield Known("regex", "/v1/chat/completions", {**chat, "response_format": words})
    tools = {"tools": [{"type": "function", "function": _TOOL}], "tool_choice": "required"}
    yield Known("tools", "/v1/chat/completions", {**chat, **tools, "max_tokens": 60})
    flat = {"type": "function", **_TOOL}
    asked = {**greedy, "input": "The weather in Rome?", "max_output_tokens": 60}
    yield Known("tools of responses", "/v1/responses", {**asked, "tools": [flat], "tool_choice": "required"})
    several = {"seed": 5, "temperature": 0.9, "n": 2, "logprobs": True}
    yield Known("seeds", "/v1/chat/completions", {**chat, **several})
    stop = {"stop": ["\n", "."], "repetition_penalty": 1.2, "logit_bias": {"100": -5}}
    yield Known("stops", "/v1/chat/completions", {**chat, **stop})
    several = {"prompt": ["One, two,", "Red, green,"], "max_tokens": 12}
    yield Known("two prompts", "/v1/completions", {**greedy, **several})


KNOWN = tuple(_requests())


def answer(client: httpx.Client, known: Known, stream: bool) -> tuple[int, list[str]]:
    """Status and texts; those of an error are its body."""
    if not stream:
        response = client.post(known.path, json=dict(known.body))
        found = response.text
        return response.status_code, _whole(response.json()) if response.status_code == 200 else [found]
    with client.stream("POST", known.path, json={**known.body, "stream": True}) as response:
        if response.status_code != 200:
            return response.status_code, [response.read().decode(errors="replace")]
        data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    return 200, _streamed([json.loads(each) for each in data if each != "[DONE]"])


def _whole(found: Mapping[str, Any]) -> list[str]:
    """What it says, a text for each choice or item."""
    if "choices" in found:
        return [
            each["text"] if "text" in each else _message(each["message"])
            for each in sorted(found["choices"], key=lambda each: int(each["index"]))
        ]
    if "output" in found:
        return [_item(each) for each in found["output"]]
    return [each.get("text") or json.dumps(each["input"]) for each in found["content"]]


def _message(message: Mapping[str, Any]) -> str:
    calls = (call["function"] for call in message.get("tool_calls") or ())
    return (message["content"] or "") + "".join(f"{call['name']}{call['arguments']}" for call in calls)


def _item(item: Mapping[str, Any]) -> str:
    if item["type"] == "function_call":
        return f"{item['name']}{item['arguments']}"
    return "".join(part.get("text", "") for part in item["content"])


def _streamed(events: list[dict[str, Any]]) -> list[str]:
    """The same of a stream's events."""
    if events and "type" not in events[0]:
        texts: dict[int, str] = {}
        for choice in (choice for event in events for choice in event.get("choices", ())):
            texts[choice["index"]] = texts.get(choice["index"], "") + _delta(choice)
        return [texts[index] for index in sorted(texts)]
    for event in events:
        if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
            return _whole(event["response"])
    parts: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            delta = event["delta"]
            text = delta.get("text", delta.get("partial_json", ""))
            parts[event["index"]] = parts.get(event["index"], "") + text
    return [parts[index] for index in sorted(parts)]


def _delta(choice: Mapping[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    delta = choice["delta"]
    calls = (call["function"] for call in delta.get("tool_calls") or ())
    return (delta.get("content") or "") + "".join(
        f"{call.get('name') or ''}{call.get('arguments') or ''}" for call in calls
    )
