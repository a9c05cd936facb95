"""The input of a response: its items as messages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace

from edge.apps.serve.errors import ApiError, refusal
from edge.apps.serve.json_in import Fields
from edge.errors import EdgeError
from edge.text.messages import Message, ToolCall, parse_arguments, parse_messages

_MOST_ITEMS = 4096
_SEALED = "edge:"
"""Before what was thought, in an item's `encrypted_content`: clients hand that back, and not the text."""
THOUGHTS = ("reasoning_text", "text")
"""Parts of a reasoning item's `content`; Codex knows the second name, too."""
SUMMARY = ("summary_text",)
_ROLES = ("user", "assistant", "system", "developer")


def sealed(text: str) -> str:
    """What was thought as one word. It hides nothing from whoever got it."""
    return _SEALED + base64.urlsafe_b64encode(text.encode()).decode()


def read_input(fields: Fields, before: Sequence[Message] = ()) -> tuple[Message, ...]:
    """The messages of `input`, which go on with those `before`.

    A text is the user's message. Messages, calls and thoughts of the assistant that follow each other are one
    message where a template can say so. ApiError names the item that can't be read.
    """
    given = fields.values.get("input")
    if given is None:
        if before:
            return ()
        raise fields.missing("input")
    if isinstance(given, str):
        return (Message("user", given),)
    if not isinstance(given, list):
        raise fields.error("input", "be a text or a list of items")
    if len(given) > _MOST_ITEMS:
        raise refusal("input", f"input may have {_MOST_ITEMS} items at most.")
    reader = _Reader(before)
    for item in fields.objects("input"):
        reader.read(item)
    return reader.messages()


class _Reader:
    """Goes through items, and puts those of one answer together."""

    def __init__(self, before: Sequence[Message]) -> None:
        self._names = {call.id: call.name for message in before for call in message.calls}
        self._messages: list[Message] = []
        self._answer: Message | None = None  # of the assistant, while more may belong to it
        self._thoughts: list[str] = []  # before it, joined once: there may be thousands

    def messages(self) -> tuple[Message, ...]:
        """All that was read."""
        self._end_answer()
        return tuple(self._messages)

    def read(self, item: Fields) -> None:
        """Take the next item."""
        kind = item.text("type", "message" if item.has("role") else None)
        if kind is None:
            raise item.missing("type")
        if kind == "message":
            self._message(item)
        elif kind == "function_call":
            self._call(item)
        elif kind == "function_call_output":
            self._result(item)
        elif kind == "reasoning":
            self._reasoning(item)
        else:
            known = "message, function_call, function_call_output or reasoning"
            where = item.name("type")
            raise refusal(where, f"{where} is {kind[:60]!r}, which is not known here: send {known}.")

    def _message(self, item: Fields) -> None:
        role = item.choice("role", _ROLES)
        if role is None:
            raise item.missing("role")
        if not isinstance(item.values.get("content"), (str, list)):
            raise (
                item.missing("content")
                if not item.has("content")
                else item.error("content", "be a text or parts")
            )
        message = _parsed(item, role, item.values["content"], "content")
        if message.role != "assistant":
            self._end_answer()
            self._messages.append(message)
        elif self._answer is None or self._answer.content or self._answer.calls:
            self._end_answer()
            self._answer = message
        else:
            self._answer = replace(self._answer, content=message.content)

    def _call(self, item: Fields) -> None:
        name, call_id = item.required_text("name"), item.required_text("call_id")
        arguments = parse_arguments(item.text("arguments", ""))
        answer = self._answer or Message("assistant", "")
        self._answer = replace(answer, calls=(*answer.calls, ToolCall(name, arguments, call_id)))
        self._names[call_id] = name

    def _result(self, item: Fields) -> None:
        call_id = item.required_text("call_id")
        output = item.values.get("output")
        if not isinstance(output, (str, list)):
            raise item.missing("output") if output is None else item.error("output", "be a text or parts")
        message = _parsed(item, "tool", output, "output")
        self._end_answer()
        self._messages.append(replace(message, call_id=call_id, name=self._names.get(call_id)))

    def _reasoning(self, item: Fields) -> None:
        if self._answer is not None and (self._answer.content or self._answer.calls):
            self._end_answer()
        text = _thought(item)
        if text:
            self._answer = self._answer or Message("assistant", "")
            self._thoughts.append(text)

    def _end_answer(self) -> None:
        if self._answer is not None and (self._answer.content or self._answer.calls):
            self._messages.append(replace(self._answer, reasoning="".join(self._thoughts) or None))
        self._answer, self._thoughts = None, []


def _parsed(item: Fields, role: str, content: object, field: str) -> Message:
    if isinstance(content, list):
        content = [_refusal_as_text(part) for part in content]
    try:
        return parse_messages([{"role": role, "content": content}])[0]
    except EdgeError as error:
        raise refusal(_place(item, content, field), str(error)) from None


def _refusal_as_text(part: object) -> object:
    if isinstance(part, dict) and part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return part


def _place(item: Fields, content: object, field: str) -> str:
    """Where a part is that can't be read."""
    for index, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            return f"{item.name(field)}[{index}]"
    return item.name(field)


def _thought(item: Fields) -> str:
    """What a reasoning item says, whichever of its forms has it."""
    summary, content = _parts(item, "summary", SUMMARY), _parts(item, "content", THOUGHTS)
    hidden = item.text("encrypted_content")
    if hidden is not None and hidden.startswith(_SEALED):
        try:
            return base64.b64decode(hidden[len(_SEALED) :], b"-_", validate=True).decode()
        except (binascii.Error, ValueError):
            raise item.error("encrypted_content", "be as this server wrote it") from None
    return content or summary


def _parts(item: Fields, name: str, kinds: Sequence[str]) -> str:
    """The texts of parts of these types."""
    texts = []
    for part in item.objects(name):
        if part.choice("type", kinds) is None:
            raise part.missing("type")
        texts.append(part.required_text("text"))
    return "".join(texts)


def check_metadata(fields: Fields) -> dict[str, str]:
    """`metadata`: up to 16 texts by name."""
    given = fields.object("metadata")
    if given is None:
        return {}
    found: dict[str, str] = {name: given.text(name, "") for name in given.values}
    if len(found) > 16 or any(len(name) > 64 or len(text) > 512 for name, text in found.items()):
        raise ApiError(
            400,
            "metadata may have 16 texts of up to 512 characters, by names of up to 64.",
            param="metadata",
        )
    return found
