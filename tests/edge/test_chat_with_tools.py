"""Chats whose model calls functions: rounds of calls, the conversation they leave, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.chat import Chat
from edge.errors import EdgeError
from edge.runtime import Model
from edge.text.messages import Message, Tool, ToolCall

ADD = {"type": "function", "function": {"name": "add"}}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture
def chat(smollm2: Model) -> Chat:
    return smollm2.chat(tools=[add], temperature=0, max_new_tokens=60, seed=1)


def test_calls_are_run_and_their_results_sent(chat: Chat) -> None:
    done = chat.run_tools("What is 3 plus 4?", tool_choice=ADD, max_new_tokens=120)
    roles = [message.role for message in chat.messages]
    assert roles[:2] == ["user", "assistant"] and roles[-1] == "assistant"
    called = chat.messages[1]
    assert called.calls and called.content == ""
    for call, result in zip(called.calls, chat.messages[2:], strict=False):
        assert isinstance(call.arguments, dict)
        assert (result.role, result.call_id) == ("tool", call.id)
        assert result.content == str(call.arguments["a"] + call.arguments["b"])
    assert done.content == chat.messages[-1].content


def test_a_round_of_calls_computes_only_what_is_new(chat: Chat) -> None:
    first = chat.send("What is 3 plus 4?", tool_choice="required", max_new_tokens=150)
    cached = chat.session.length
    second = chat.send(chat.results(first.calls), max_new_tokens=2)
    assert first.calls and second.reused_tokens == cached >= first.prompt_tokens + len(first.tokens) - 1


def test_a_refused_call_is_told(chat: Chat) -> None:
    asked: list[ToolCall] = []

    def refuse(call: ToolCall) -> bool:
        asked.append(call)
        return False

    chat.run_tools("What is 3 plus 4?", tool_choice=ADD, allow=refuse, most_rounds=1, max_new_tokens=150)
    assert asked and {m.content for m in chat.messages if m.role == "tool"} == {
        "Error: the user refused this call."
    }


def test_tools_need_functions_to_be_run(smollm2: Model) -> None:
    with pytest.raises(EdgeError, match="'now' has no function"):
        smollm2.chat(tools=[Tool("now")]).run_tools("Hi")
    with pytest.raises(EdgeError, match="there are no tools"):
        smollm2.chat().send("Hi", tool_choice="required")
    with pytest.raises(EdgeError, match="'x', which is none"):
        smollm2.chat(tools=[add]).send("Hi", tool_choice={"type": "function", "name": "x"})
    with pytest.raises(EdgeError, match="tools must be a list"):
        smollm2.chat(tools=add)  # type: ignore[arg-type]


def test_a_file_keeps_calls_results_and_reasoning(smollm2: Model, chat: Chat, tmp_path: Path) -> None:
    call: dict[str, Any] = {"id": "c1", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    chat.messages = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
        Message("assistant", "3."),
    ]
    chat.save(tmp_path / "c.json")
    other = smollm2.chat(tools=[add])
    other.load(tmp_path / "c.json")
    assert other.messages == chat.messages and other.messages[1].calls[0].arguments == {"a": 1, "b": 2}
    assert other.send("And 3+4?", max_new_tokens=2).tokens
