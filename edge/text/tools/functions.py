"""Python functions as tools: a JSON schema from signature and docstring, and a call that gives text back."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

from edge.errors import EdgeError, WrongTypeError
from edge.text.messages import Message, Tool, ToolCall, parse_tools

Function = Callable[..., Any]
_PLAIN: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    list: "array",
    dict: "object",
}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list, tuple),
    "object": (dict,),
}


@dataclass(frozen=True)
class ToolBox:
    """Tools, and the functions behind them. functions: by their tools' names; a tool may have none."""

    tools: tuple[Tool, ...] = ()
    functions: Mapping[str, Function] = field(default_factory=dict)

    def run(self, call: ToolCall) -> Message:
        """Call the function; returns the message with its result. What goes wrong is told to the model."""
        return Message("tool", self._result(call), call_id=call.id or None, name=call.name)

    def _result(self, call: ToolCall) -> str:
        function = self.functions.get(call.name)
        if function is None:
            known = ", ".join(self.functions)
            return f"Error: there is no function '{call.name}'; there are {known}."
        if not isinstance(call.arguments, Mapping):
            return "Error: the arguments are no JSON object."
        tool = next(tool for tool in self.tools if tool.name == call.name)
        try:
            inspect.signature(function).bind(**call.arguments)
        except TypeError as error:
            return f"Error: {error}."
        for name, value in call.arguments.items():
            if wrong := _wrong(value, tool.parameters["properties"].get(name, {})):
                return f"Error: the argument '{name}' must be {wrong}."
        try:
            result = function(**call.arguments)
        except Exception as error:  # whatever it is, the model is told
            return f"Error: {type(error).__name__}: {error}"
        if isinstance(result, str):
            return result
        try:
            return json.dumps(result, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return str(result)


def tool_box(given: Sequence[Any] | None) -> ToolBox:
    """Tools of functions, `Tool`s and objects in OpenAI's form; EdgeError names what is wrong."""
    if given is None:
        return ToolBox()
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise WrongTypeError(f"tools must be a list of functions or of objects, got {given!r:.80}.")
    functions: dict[str, Function] = {}
    tools: list[Any] = []
    for each in given:
        if callable(each) and not isinstance(each, Tool):
            tool = tool_of(each)
            functions[tool.name] = each
            tools.append(tool)
        else:
            tools.append(each)
    return ToolBox(parse_tools(tools), functions)


def tool_of(function: Function) -> Tool:
    """The tool that a function is: each parameter has a type, and a default if it may be left out.

    The docstring is its description; a line `NAME: ...` in it is that of a parameter. Types are str, int,
    float, bool, None, list, dict, Literal and unions of them. EdgeError names what can't be a tool.
    """
    name = getattr(function, "__name__", "")
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise EdgeError(f"The function '{name}' can't be a tool: {error}.") from None
    description, about = _documented(inspect.getdoc(function) or "", list(signature.parameters))
    properties, required = {}, []
    for parameter in signature.parameters.values():
        where = f"The parameter '{parameter.name}' of the function '{name}'"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise EdgeError(f"{where} can't be given by its name: make it an ordinary one.")
        if parameter.name not in hints:
            raise EdgeError(f"{where} has no type: write one, such as {parameter.name}: str.")
        schema = _schema(hints[parameter.name], where)
        if parameter.name in about:
            schema = {**schema, "description": about[parameter.name]}
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return Tool(
        name, description, {"type": "object", "properties": properties, "required": required}, strict=False
    )


def _schema(hint: Any, where: str) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin is typing.Annotated:
        words = [each for each in inner[1:] if isinstance(each, str)]
        return {**_schema(inner[0], where), **({"description": words[0]} if words else {})}
    if origin is Literal and all(isinstance(value, (str, int, bool, type(None))) for value in inner):
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        options = [_schema(each, where) for each in inner]
        if all(list(option) == ["type"] for option in options):
            return {"type": [option["type"] for option in options]}
        return {"anyOf": options}
    if origin in (list, Sequence) and len(inner) == 1:
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin in (dict, Mapping) and inner[:1] == (str,):
        return {"type": "object", "additionalProperties": _schema(inner[1], where)}
    raise EdgeError(
        f"{where} has the type {hint!r:.80}: use str, int, float, bool, list, dict, Literal or a union of "
        "them."
    )


def _documented(text: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A docstring without the lines about parameters, and those."""
    about: dict[str, str] = {}
    rest = []
    for line in text.splitlines():
        found = re.match(r"\s*(?::param\s+)?(\w+)\s*(?:\([^)]*\))?\s*:\s+(\S.*)", line)
        if found and found[1] in names:
            about[found[1]] = found[2].strip()
        elif line.strip() not in ("Args:", "Arguments:", "Parameters:"):
            rest.append(line)
    return "\n".join(rest).strip(), about


def _wrong(value: Any, schema: Mapping[str, Any]) -> str | None:
    """What a value should have been, as far as its type goes."""
    if "enum" in schema:
        return None if value in schema["enum"] else f"one of {schema['enum']}"
    kinds = schema.get("type")
    if kinds is None:
        return None
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool):
        return None if "boolean" in kinds else " or ".join(kinds)
    return None if any(isinstance(value, _TYPES[kind]) for kind in kinds) else " or ".join(kinds)
