"""Messages, tools and calls as values, and the form in which OpenAI's API and most programs write them.

What templates make of them is `edge.text.prompts`'; how a model writes a call is `edge.text.tools`'.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import EdgeError, WrongTypeError
from edge.formats.guarded_json import parse_json
from edge.text.schema_shape import check_shape

ROLES = ("system", "user", "assistant", "tool")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TEXT_PARTS = ("text", "input_text", "output_text")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
_FIELDS = {
    "system": ("name",),
    "user": ("name",),
    "assistant": ("name", "tool_calls", "reasoning_content", "reasoning"),
    "tool": ("name", "tool_call_id"),
}
"""Of a message, beside role and content."""


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for.

    arguments: by name, or the raw text where that could not be read. id: what the result refers to.
    """

    name: str
    arguments: Mapping[str, Any] | str
    id: str = ""

    @property
    def arguments_json(self) -> str:
        """The arguments as JSON text, or the raw text as it came."""
        if isinstance(self.arguments, str):
            return self.arguments
        return json.dumps(self.arguments, ensure_ascii=False)

    def as_openai(self) -> dict[str, Any]:
        """An entry of `tool_calls`."""
        function = {"name": self.name, "arguments": self.arguments_json}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    tokens: for an answer, the ids that the model produced (without the end token), if they are known and
    stand for exactly this answer, its reasoning and calls included. reasoning: what it thought before, None
    for nothing known. calls: what it asked to call. call_id: which call this is the result of (role `tool`).
    name: of the tool that was called, or of who speaks.
    """

    role: str
    content: str
    tokens: tuple[int, ...] | None = None
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None

    def as_openai(self) -> dict[str, Any]:
        """The message as `parse_messages` reads it."""
        optional = {
            "reasoning_content": self.reasoning,
            "tool_calls": [call.as_openai() for call in self.calls] or None,
            "tool_call_id": self.call_id,
            "name": self.name,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        return {"role": self.role, "content": self.content, **given}


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask to call.

    parameters: a JSON schema of its arguments, which are an object. strict: arguments keep to the schema even
    where the model chooses freely whether to call.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = None  # type: ignore[assignment]  # `_NO_PARAMETERS`, which is no value to share
    strict: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _TOOL_NAME.fullmatch(self.name):
            raise EdgeError(
                f"A tool has the name {self.name!r:.80}: use 1 to 64 letters, digits, dots, dashes and _."
            )
        if not isinstance(self.description, str):
            raise WrongTypeError(f"The description of the tool '{self.name}' must be a text.")
        if self.parameters is None:
            object.__setattr__(self, "parameters", dict(_NO_PARAMETERS))
        if not isinstance(self.parameters, Mapping) or self.parameters.get("type", "object") != "object":
            raise WrongTypeError(
                f"The parameters of the tool '{self.name}' must be a JSON schema of the type 'object'."
            )
        check_shape(self.parameters, f"The parameters of the tool '{self.name}'")

    def as_openai(self) -> dict[str, Any]:
        """An entry of `tools`."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": {"type": "object", **self.parameters},
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolChoice:
    """Whether the model calls: as it likes, never, at least once, or the one tool `name`."""

    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None

    @property
    def must_call(self) -> bool:
        """An answer without a call is none."""
        return self.mode in ("required", "named")


AUTO, NONE, REQUIRED = ToolChoice("auto"), ToolChoice("none"), ToolChoice("required")


def new_call_id() -> str:
    """An id for a call: nine letters and digits, which is what the strictest templates take."""
    return secrets.token_hex(5)[:9]


def parse_messages(given: object) -> list[Message]:
    """Messages of a list of them, or of objects in OpenAI's form.

    `developer` is the system; content may be a list of text parts; an answer may have `tool_calls`, whose
    arguments are JSON text (or an object), and `reasoning_content`. Raises WrongTypeError for anything else;
    a key that means nothing here is refused by name.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise WrongTypeError(f"Say a text, or a list of messages, not {_kind(given)}.")
    return [_parse_message(each) for each in given]


def parse_tools(given: object) -> tuple[Tool, ...]:
    """Tools of a list of them, or of objects in OpenAI's form; EdgeError names what is wrong."""
    if given is None:
        return ()
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise WrongTypeError(f"Tools are a list of objects, not {_kind(given)}.")
    tools = tuple(each if isinstance(each, Tool) else _parse_tool(each) for each in given)
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise EdgeError(f"Two tools have the name '{tool.name}': give each its own.")
        seen.add(tool.name)
    return tools


def parse_tool_choice(given: object, tools: Sequence[Tool]) -> ToolChoice:
    """`auto`, `none`, `required`, or an object that names a function; None is `auto`."""
    name: object = None
    if given is None:
        return AUTO
    if isinstance(given, str) and given in ("auto", "none", "required"):
        choice = {"auto": AUTO, "none": NONE, "required": REQUIRED}[given]
    elif isinstance(given, ToolChoice):
        choice, name = given, given.name
    elif isinstance(given, Mapping) and given.get("type") == "function":
        function = given.get("function")
        name = function.get("name") if isinstance(function, Mapping) else given.get("name")
        choice = ToolChoice("named", name if isinstance(name, str) else None)
    else:
        raise WrongTypeError(
            f"tool_choice must be 'auto', 'none', 'required' or an object that names a function, not "
            f"{_kind(given)}."
        )
    if choice.mode == "named" and all(name != tool.name for tool in tools):
        raise EdgeError(f"tool_choice names the function {name!r:.80}, which is none of the tools.")
    if choice.must_call and not tools:
        raise EdgeError("tool_choice asks for a call, but there are no tools: give some.")
    return choice


def parse_arguments(text: str) -> Mapping[str, Any] | str:
    """The arguments of a call by name; the text as it came if it is no JSON object."""
    if not text.strip():
        return {}
    try:
        found = parse_json(text, "The arguments", EdgeError, "", finite=True)
    except EdgeError:
        return text
    return found if isinstance(found, dict) else text


def _parse_message(given: object) -> Message:
    if isinstance(given, Message):
        if given.role not in ROLES:
            raise WrongTypeError(f"A message has the role {given.role!r}; choose one of {', '.join(ROLES)}.")
        said = _content(given.role, given.content)
        # without token ids, which may be another model's
        return Message(given.role, said, None, given.reasoning, tuple(given.calls), given.call_id, given.name)
    if not isinstance(given, Mapping):
        raise WrongTypeError(f"A message is an object with role and content, not {_kind(given)}.")
    role: object = given.get("role")
    role = "system" if role == "developer" else role
    if not isinstance(role, str) or role not in ROLES:
        raise WrongTypeError(f"A message has the role {role!r}; choose one of {', '.join(ROLES)}.")
    for name, value in given.items():
        if name not in ("role", "content", *_FIELDS[role]) and value:
            raise EdgeError(f"A message has the field {name!r}, which means nothing here: leave it out.")
    calls = tuple(_parse_call(call) for call in _list(given, "tool_calls", role))
    content = given.get("content")
    return Message(
        role,
        "" if content is None and calls else _content(role, content),
        reasoning=_text(given, "reasoning_content", role) or _text(given, "reasoning", role),
        calls=calls,
        call_id=_text(given, "tool_call_id", role),
        name=_text(given, "name", role),
    )


def _content(role: str, given: object) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, Sequence) and not isinstance(given, bytes):
        return "".join(_part(role, part) for part in given)
    raise WrongTypeError(f"The content of the {role}'s message must be a text, not {_kind(given)}.")


def _part(role: str, given: object) -> str:
    kind, text = (given.get("type"), given.get("text")) if isinstance(given, Mapping) else (None, None)
    if kind in _TEXT_PARTS and isinstance(text, str):
        return text
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise EdgeError(
            f"The content of the {role}'s message has a part of the type {kind!r:.80}; this model reads text "
            "only."
        )
    raise WrongTypeError(f"A part of the {role}'s message must be an object with type and text.")


def _parse_call(given: object) -> ToolCall:
    if isinstance(given, ToolCall):
        return given
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise WrongTypeError("An entry of tool_calls must be an object whose function has a name.")
    if given.get("type", "function") != "function":  # type: ignore[attr-defined]
        raise EdgeError("An entry of tool_calls must have the type 'function'.")
    arguments: Any = function.get("arguments")
    if arguments is None:
        arguments = {}
    if isinstance(arguments, str):
        arguments = parse_arguments(arguments)
    elif not isinstance(arguments, Mapping):
        raise WrongTypeError(
            f"The arguments of the call of '{function['name']}' must be JSON text, not {_kind(arguments)}."
        )
    call_id = given.get("id")  # type: ignore[attr-defined]
    if call_id is not None and not isinstance(call_id, str):
        raise WrongTypeError(f"The id of a call must be a text, not {_kind(call_id)}.")
    return ToolCall(function["name"], arguments, call_id or "")


def _parse_tool(given: object) -> Tool:
    if not isinstance(given, Mapping):
        raise WrongTypeError(f"A tool is an object with type and function, not {_kind(given)}.")
    kind = given.get("type", "function")
    if kind != "function":
        raise EdgeError(f"A tool has the type {kind!r:.80}; only 'function' is known here.")
    function = given.get("function", given)
    if not isinstance(function, Mapping):
        raise WrongTypeError("The function of a tool must be an object with a name.")
    parameters = function.get("parameters")
    return Tool(
        function.get("name"),  # type: ignore[arg-type]  # it checks
        function.get("description") or "",
        parameters,  # type: ignore[arg-type]
        function.get("strict") is True,
    )


def _list(given: Mapping[str, Any], name: str, role: str) -> Sequence[object]:
    value = given.get(name)
    if not value:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise WrongTypeError(
            f"The field '{name}' of the {role}'s message must be a list, not {_kind(value)}."
        )
    return value


def _text(given: Mapping[str, Any], name: str, role: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise WrongTypeError(
            f"The field '{name}' of the {role}'s message must be a text, not {_kind(value)}."
        )
    return value or None


def _kind(value: object) -> str:
    return f"the {type(value).__name__} {value!r}" if value is not None else "None"
