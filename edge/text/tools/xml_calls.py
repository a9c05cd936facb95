"""Calls as XML-like functions with parameters: MiniCPM5's, and Qwen3-Coder's and Qwen3.5's.

Values are bare text; what it stands for, the tool's schema says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

from edge.errors import EdgeError
from edge.formats.guarded_json import parse_json
from edge.text.messages import Tool, ToolCall, parse_arguments
from edge.text.tools.grammar import (
    Parameter,
    json_value,
    literal,
    options_of,
    parameters_of,
    quoted,
    sequence,
    until,
)
from edge.text.tools.json_calls import Balance
from edge.text.tools.parts import CallArguments, CallBegin, CallEnd, CallReader, Rules, State, Steps

_ENTITY = re.compile("&(?:lt|gt|amp|quot|apos);")
_CDATA = ("<![CDATA[", "]]>")
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_LONGEST_NAME = 256  # characters
_STRING_KEYWORDS = ("pattern", "format")


@dataclass(frozen=True)
class XmlFormat:
    """The tags around names, and whether they are quoted.

    begin, end: around each function. pad: at both ends of a value. gap: behind the opening of a function and
    each parameter. cdata: values are escaped where that is needed.
    """

    function: tuple[str, str] = ('<function name="', '">')
    parameter: tuple[str, str] = ('<param name="', '">')
    parameter_end: str = "</param>"
    function_end: str = "</function>"
    begin: str = ""
    end: str = ""
    between: str = ""
    pad: str = ""
    gap: str = ""
    cdata: bool = True

    @property
    def openings(self) -> tuple[str, ...]:
        outer = self.begin.strip()
        return (outer, self.function[0]) if outer else (self.function[0],)

    @property
    def is_bare(self) -> bool:
        return False

    @property
    def marks(self) -> tuple[str, ...]:
        tags = (self.function[0], self.parameter[0])
        names = [*(re.split("[ =]", tag)[0] for tag in tags), *tags, self.parameter_end, self.function_end]
        return tuple(mark for mark in (self.begin.strip(), self.end.strip(), *names) if mark)

    def reader(self, tools: Sequence[Tool], first: int) -> CallReader:
        return XmlReader(self, tools, first)

    def write(self, calls: Sequence[ToolCall], tools: Sequence[Tool] = ()) -> str:
        schemas = {tool.name: tool.parameters.get("properties") or {} for tool in tools}
        return self.between.join(
            f"{self.begin}{self._written(call, schemas.get(call.name, {}))}{self.end}" for call in calls
        )

    def rules(self, tools: Sequence[Tool], lenient: bool, special: Mapping[str, int]) -> Rules:
        lines = [f"call: {' | '.join(f'call{i}' for i in range(len(tools)))}"]
        for i, tool in enumerate(tools):
            parameters = parameters_of(tool, lenient)
            names = [(f"argument{i}_{j}", each.required) for j, each in enumerate(parameters)]
            opening = self._name(tool.name) + self.function[1] + self.gap
            end = literal(self.function_end, special)
            lines.append(f"call{i}: {quoted(opening)} {sequence(names)} {end}")
            for (rule, _), each in zip(names, parameters, strict=True):
                head = self.parameter[0] + self._name(each.name) + self.parameter[1] + self.pad
                values = " | ".join(self._values(each, rule, lenient, special, lines))
                lines.append(f"{rule}: {literal(head, special)} ({values})")
        return Rules(self.begin + self.function[0], self.end, self.between, True, "call", "\n".join(lines))

    def _values(
        self, each: Parameter, rule: str, lenient: bool, special: Mapping[str, int], lines: list[str]
    ) -> Iterator[str]:
        """What may stand in a parameter, its end included."""
        close = self.pad + self.parameter_end + self.gap
        end = literal(close, special)
        listed = options_of(each.schema)
        if listed is not None:
            yield "(" + " | ".join(quoted(self._value(value, each.schema)) for value in listed) + f") {end}"
            return
        kinds = kinds_of(each.schema)
        rest = [kind for kind in kinds if kind != "string"]
        if rest and not (lenient and "string" in kinds):
            schema = {**each.schema, "type": rest} if kinds != _ALL else each.schema
            yield f"{json_value(schema, lenient)} {end}"
        if "string" in kinds and (kinds != _ALL or "type" not in each.schema):
            if kinds == _ALL:
                return  # any JSON, strings in quotes
            for key in _STRING_KEYWORDS:
                if key in each.schema and not lenient:
                    raise EdgeError(
                        f"The parameter '{each.name}' has the keyword '{key}', which can't be kept to in "
                        "this model's syntax of calls: leave it out."
                    )
            least, most = each.schema.get("minLength", 0), each.schema.get("maxLength", "")
            name = rule.upper()
            if least or most != "":
                lines.append(f"{name}: /[^<&\\n]{{{least},{most}}}/")
                yield f"{name} {end}"
            elif self.cdata:
                lines.append(f"{name}: /[^<&\\n]*/")
                yield f"{name} {end}"
                yield f"{quoted(_CDATA[0])} {until(_CDATA[1], f'{rule}_raw', special, lines)} {end}"
            else:
                value = until(self.pad + self.parameter_end, f"{rule}_raw", special, lines)
                yield f"{value} {literal(self.gap, special)}"

    def _written(self, call: ToolCall, schemas: Mapping[str, Any]) -> str:
        given = call.arguments if isinstance(call.arguments, Mapping) else {"arguments": call.arguments}
        found = [self.function[0], self._name(call.name), self.function[1], self.gap]
        for name, value in given.items():
            found += [self.parameter[0], self._name(name), self.parameter[1], self.pad]
            found += [self._value(value, schemas.get(name, {})), self.pad, self.parameter_end, self.gap]
        return "".join([*found, self.function_end])

    def _name(self, name: str) -> str:
        if not self.cdata:
            return name
        return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")

    def _value(self, value: Any, schema: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if self.cdata and any(character in text for character in "<&\n"):
            return _CDATA[0] + text.replace(_CDATA[1], "]]]]><![CDATA[>") + _CDATA[1]
        return text


_ALL = ("string", "number", "integer", "boolean", "null", "array", "object")


def kinds_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON types that a schema allows, as far as it says so plainly; all where it does not."""
    given = schema.get("type")
    if isinstance(given, str):
        return (given,)
    if isinstance(given, (list, tuple)) and given:
        return tuple(kind for kind in given if isinstance(kind, str))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), (list, tuple)):
            found = [kind for each in schema[key] if isinstance(each, Mapping) for kind in kinds_of(each)]
            return tuple(dict.fromkeys(found)) or _ALL
    listed = options_of(schema)
    return tuple(dict.fromkeys(_kind(value) for value in listed)) if listed is not None else _ALL


def value_of(text: str, schema: Any) -> Any:
    """What a text in a parameter stands for: JSON where the schema has such a type, otherwise itself."""
    kinds = kinds_of(schema) if isinstance(schema, Mapping) else _ALL
    if kinds == ("string",):
        return text
    try:
        found = parse_json(_PYTHON_WORDS.get(text.strip(), text), "A value", EdgeError, "", finite=True)
    except EdgeError:
        return text
    kind = _kind(found)
    fits = kind in kinds or (kind == "integer" and "number" in kinds)
    if isinstance(found, float) and found.is_integer() and kinds == ("integer",):
        return int(found)
    return found if fits or "string" not in kinds else text


def _kind(value: Any) -> str:
    names = ((str, "string"), (bool, "boolean"), (int, "integer"), (float, "number"), (type(None), "null"))
    found = next((name for kind, name in names if isinstance(value, kind)), None)
    return found or ("object" if isinstance(value, Mapping) else "array")


class XmlReader(CallReader):
    """Reads one function. Each argument is passed on when it is whole."""

    def __init__(self, form: XmlFormat, tools: Sequence[Tool], first: int) -> None:
        super().__init__()
        self._form, self._index = form, first
        self._schemas = {tool.name: tool.parameters.get("properties") or {} for tool in tools}

    def _read(self) -> Steps[tuple[State, int]]:
        form, outer, at = self._form, self._form.begin.strip(), 0
        if outer and self.text.startswith(outer):
            at = yield from self._blank(len(outer))
        failed: tuple[State, int] = ("text", len(outer) if at else len(form.function[0]))
        if not (yield from self._starts(at, form.function[0])):
            return failed
        at += len(form.function[0])
        end = yield from self._end_of_name(form.function[1], at)
        if end is None:
            return failed
        name = self._plain(self.text[at:end])
        at = end + len(form.function[1])
        at = yield from self._arguments(name, at)
        self._index += 1
        if outer:
            behind = yield from self._blank(at)
            if (yield from self._starts(behind, form.end.strip())):
                at = behind + len(form.end.strip())
        return "done", at

    def _end_of_name(self, mark: str, at: int) -> Steps[int | None]:
        """Where a name ends, before `mark`; None if it is none."""
        while True:
            end = self.text.find(mark, at, at + _LONGEST_NAME + len(mark))
            name = self.text[at : at + _LONGEST_NAME if end < 0 else end]
            if end == at or any(character in name for character in "<>\n"):
                return None
            if end > 0:
                return end
            if self._final or len(self.text) >= at + _LONGEST_NAME + len(mark):
                return None
            yield

    def _arguments(self, name: str, at: int) -> Steps[int]:
        """Pass on the arguments; returns the place behind the function."""
        form, sent = self._form, ""
        arguments: Mapping[str, Any] | str
        schemas = self._schemas.get(name, {})
        self._parts.append(CallBegin(self._index, name))
        while True:
            at = yield from self._blank(at)
            if (yield from self._starts(at, form.function_end)):
                at += len(form.function_end)
                rest = "}" if sent else "{}"
                arguments = parse_arguments(sent + rest)
                break
            begin = at
            found: tuple[str, Any, int] | None = None
            if (yield from self._starts(at, form.parameter[0])):
                found = yield from self._parameter(at + len(form.parameter[0]), schemas)
            if found is None:  # something else: the arguments are raw text
                end = yield from self._find(form.function_end, begin)
                at = len(self.text) if end < 0 else end + len(form.function_end)
                rest = self.text[begin : None if end < 0 else end]
                arguments = sent + rest
                break
            key, value, at = found
            pair = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
            piece = (", " if sent else "{") + pair
            sent += piece
            self._parts.append(CallArguments(self._index, piece))
        if rest:
            self._parts.append(CallArguments(self._index, rest))
        self._parts.append(CallEnd(self._index, ToolCall(name, arguments)))
        return at

    def _parameter(self, at: int, schemas: Mapping[str, Any]) -> Steps[tuple[str, Any, int] | None]:
        """Name, value and the place behind a parameter; None if it is none."""
        form = self._form
        end = yield from self._find(form.parameter[1], at)
        if end < 0:
            return None
        name = self._plain(self.text[at:end])
        at = end + len(form.parameter[1])
        schema = schemas.get(name, {})
        if form.cdata and (yield from self._starts(at, _CDATA[0])):
            text = ""
            while self.text.startswith(_CDATA[0], at):
                end = yield from self._find(_CDATA[1], at)
                if end < 0:
                    return None
                text += self.text[at + len(_CDATA[0]) : end]
                at = end + len(_CDATA[1])
                yield from self._starts(at, _CDATA[0])
            if not (yield from self._starts(at, form.parameter_end)):
                return None
            return name, value_of(text, schema), at + len(form.parameter_end)
        behind = yield from self._json_end(at, schema)
        end = (yield from self._find(form.parameter_end, at)) if behind is None else behind
        if end < 0:
            return None
        text = self.text[at:end]
        if form.pad:
            text = text.removeprefix(form.pad).removesuffix(form.pad)
        text = self._plain(text)
        return name, value_of(text, schema), end + len(form.parameter_end)

    def _json_end(self, at: int, schema: Any) -> Steps[int | None]:
        """Where a list or an object ends: it may have tags in its texts."""
        if not isinstance(schema, Mapping) or not {"array", "object"} & {*kinds_of(schema)}:
            return None
        begin = yield from self._blank(at)
        if self.text[begin : begin + 1] not in ("{", "["):
            return None
        balance = Balance(begin, strict=True)
        while (end := balance.end(self.text)) is None and not (self._final or balance.is_broken):
            yield
        if end is None:
            return None
        end = yield from self._blank(end)
        return end if (yield from self._starts(end, self._form.parameter_end)) else None

    def _plain(self, text: str) -> str:
        return _ENTITY.sub(lambda match: unescape(match[0]), text) if self._form.cdata else text
