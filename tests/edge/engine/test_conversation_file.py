"""The file of a conversation by itself: what is read, what is refused, and who can read it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from edge.engine.conversation_file import read_conversation, write_conversation
from edge.errors import EdgeError, WrongTypeError
from edge.text.messages import Message, parse_messages

CONVERSATION: dict[str, Any] = {
    "model": "m",
    "system": "Be brief.",
    "thinking": False,
    "settings": {"logit_bias": {2**31 - 1: -1.5, 7: 2.0}, "seed": 0},
    "messages": [{"role": "user", "content": "Hi ä"}, {"role": "assistant", "content": ""}],
}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_conversation(tmp_path / "c.json", CONVERSATION)
    found = read_conversation(tmp_path / "c.json")
    assert found["messages"] == [Message("user", "Hi ä"), Message("assistant", "")]
    for name in ("model", "system", "thinking", "settings"):
        assert found[name] == CONVERSATION[name]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "another"}, "is not a saved conversation"),
        ({"version": 2}, "format version 2 and this program reads version 1"),
        ({"version": None}, "format version None"),
        ({"system": 3}, "'system' is missing or wrong"),
        ({"thinking": "yes"}, "'thinking' is missing or wrong"),
        ({"settings": []}, "'settings' is missing or wrong"),
        ({"messages": {}}, "'messages' is missing or wrong"),
        ({"messages": [{"role": "user"}]}, "without role or text"),
        ({"settings": {"top_p": 2}}, "top_p must be from 0 to 1"),
        ({"settings": {"logit_bias": {"12345678901": 1}}}, "token ids"),  # no id has eleven digits
        ({"settings": {"logit_bias": {"-1": 1}}}, "token ids"),
        ({"settings": {"temprature": 1}}, "temprature"),
    ],
)
def test_a_damaged_field_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "c.json"
    write_conversation(path, CONVERSATION)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(EdgeError, match=says):
        read_conversation(path)


def test_null_leaves_system_prompt_and_thinking_open(tmp_path: Path) -> None:
    write_conversation(tmp_path / "c.json", {**CONVERSATION, "system": None, "thinking": None})
    found = read_conversation(tmp_path / "c.json")
    assert found["system"] is None and found["thinking"] is None


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_conversation(tmp_path / "c.json", CONVERSATION)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c.json").stat().st_mode) == 0o600


def test_messages_come_without_token_ids_and_empty_fields() -> None:
    """Ids may be another model's; other programs write `"tool_calls": null`."""
    given = [
        Message("assistant", "Hello", (1, 2)),
        {"role": "tool", "content": "3", "tool_calls": None, "name": ""},
    ]
    assert parse_messages(given) == [Message("assistant", "Hello"), Message("tool", "3")]
    with pytest.raises(EdgeError, match="'images'"):
        parse_messages([{"role": "tool", "content": "3", "images": ["clock"]}])
    with pytest.raises(WrongTypeError, match="role 'robot'; choose one of system, user, assistant, tool"):
        parse_messages([{"role": "robot", "content": "3"}])
