"""Calls as JSON: between marks (Hermes, Qwen), in a list (Phi, Mistral), or bare (Llama)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import EdgeError
from edge.formats.guarded_json import parse_json
from edge.text.messages import Tool, ToolCall, parse_arguments
from edge.text.tools.grammar import json_value, quoted
from edge.text.tools.parts import CallArguments, CallBegin, CallEnd, CallReader, Rules, State, Steps, whole

_HEAD = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.){1,256}")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_LONGEST_HEAD = 2048  # characters, blanks included: it is looked for again whenever text comes
_STRUCTURE = re.compile(r'["{}\[\]]')
_STRICT = re.compile(r'["{}\[\]]|[^ \t\r\n,:0-9.+\-EtruefalsnNIity]')  # and what JSON has in texts alone
_STRING = re.compile(r'["\\]')
_ARGUMENTS = ("arguments", "parameters")


class Balance:
    """Finds the end of a JSON object or list in text that grows, by its brackets."""

    def __init__(self, start: int, strict: bool = False) -> None:
        """strict: stop at a character that JSON does not have there, a mark's for example: `is_broken`."""
        self._at = start
        self._structure = _STRICT if strict else _STRUCTURE
        self._depth = 0
        self._in_string = False
        self.is_broken = False

    def open(self) -> None:
        """A bracket stands before the start."""
        self._depth += 1

    def end(self, text: str) -> int | None:
        """The place behind it; None if `text`, which may only have grown, does not have that."""
        at = self._at
        while found := (_STRING if self._in_string else self._structure).search(text, at):
            at, character = found.end(), found[0]
            if character == '"':
                self._in_string = not self._in_string
            elif not self._in_string and character not in "{}[]":
                self.is_broken = True
                return None
            elif character == "\\":
                if at == len(text):
                    self._at = at - 1
                    return None
                at += 1
            elif character in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    return at
        self._at = len(text)
        return None


@dataclass(frozen=True)
class JsonFormat:
    """begin, end: what stands around a call or, with `is_list`, around all of them. between: between blocks.
    key: of the arguments.
    """

    begin: str = "<tool_call>\n"
    end: str = "\n</tool_call>"
    between: str = "\n"
    key: str = "arguments"
    is_list: bool = False

    @property
    def openings(self) -> tuple[str, ...]:
        return (self.begin.strip() or "{",)

    @property
    def is_bare(self) -> bool:
        return not self.begin.strip()

    @property
    def marks(self) -> tuple[str, ...]:
        found = (self.begin.strip(), self.end.strip(), *(("<|python_tag|>",) if self.is_bare else ()))
        return tuple(mark for mark in found if mark)

    def reader(self, tools: Sequence[Tool], first: int) -> CallReader:
        return JsonReader(self, {tool.name for tool in tools} if self.is_bare else None, first)

    def write(self, calls: Sequence[ToolCall], tools: Sequence[Tool] = ()) -> str:
        found = [f'{{"name": {_dump(c.name)}, "{self.key}": {c.arguments_json}}}' for c in calls]
        if self.is_list:
            return f"{self.begin}[{', '.join(found)}]{self.end}"
        return self.between.join(f"{self.begin}{each}{self.end}" for each in found)

    def rules(self, tools: Sequence[Tool], lenient: bool, special: Mapping[str, int]) -> Rules:
        lines = [f"call: {' | '.join(f'call{i}' for i in range(len(tools)))}"]
        for i, tool in enumerate(tools):
            head = f'{{"name": {_dump(tool.name)}, "{self.key}": '
            lines.append(f'call{i}: {quoted(head)} arguments{i} "}}"')
            lines.append(f"arguments{i}: {json_value(tool.parameters, lenient)}")
        around = ("[", "]") if self.is_list else ("", "")
        between = ", " if self.is_list else self.between
        return Rules(
            self.begin + around[0], around[1] + self.end, between, not self.is_list, "call", "\n".join(lines)
        )


class JsonReader(CallReader):
    """Reads the calls of a block. The arguments are passed on as they come, where the name stands first."""

    def __init__(self, form: JsonFormat, names: set[str] | None, first: int) -> None:
        """names: those that a call may have, None for all."""
        super().__init__()
        self._form, self._names, self._index = form, names, first

    def _read(self) -> Steps[tuple[State, int]]:
        opening, closing, is_list = self._form.begin.strip(), self._form.end.strip(), self._form.is_list
        at = done = len(opening)
        first = self._index
        while True:
            some = self._index > first
            between = ("[]," if some else "[") if is_list else ";," if some else ""
            at = yield from self._blank(at, between)
            if some and closing and (yield from self._starts(at, closing)):
                return "done", at + len(closing)
            end = (yield from self._object(at)) if self.text.startswith("{", at) else None
            if end is None:
                closed = self.text.find("]", done, at) if is_list and some else -1
                return ("done", max(done, closed + 1)) if some else ("text", max(1, len(opening)))
            at = done = end

    def _object(self, start: int) -> Steps[int | None]:
        """The place behind the call in an object; None if it is no call."""
        whole_object = Balance(start, strict=True)
        seen = 0
        while True:
            head = _HEAD.match(self.text, start, start + _LONGEST_HEAD) if seen < _LONGEST_HEAD else None
            seen = len(self.text) - start
            name = None if head is None else _text(head[1])
            if head is not None and name and self._may_be(name):
                return (yield from self._streamed(name, head.end()))
            end = whole_object.end(self.text)
            if end is not None or self._final or whole_object.is_broken:
                break
            yield
        call = None if end is None else _call(self.text[start:end])
        if call is None or not self._may_be(call.name):
            return None
        self._parts += whole(self._index, call)
        self._index += 1
        return end

    def _streamed(self, name: str, start: int) -> Steps[int]:
        """Pass on the arguments from `start` on; returns the place behind the object around them."""
        self._parts.append(CallBegin(self._index, name))
        arguments, sent = Balance(start), start
        while True:
            end = arguments.end(self.text)
            upto = len(self.text) if end is None else end
            if upto > sent:
                self._parts.append(CallArguments(self._index, self.text[sent:upto]))
                sent = upto
            if end is not None or self._final:
                break
            yield
        if end is not None:
            at = yield from self._blank(sent)
            if self.text.startswith("}", at):
                sent = at + 1
            elif self.text.startswith(",", at):  # further members are part of the object
                object_end = Balance(at)
                object_end.open()
                while (behind := object_end.end(self.text)) is None and not self._final:
                    yield
                sent = sent if behind is None else behind
        call = ToolCall(name, parse_arguments(self.text[start:upto]))
        self._parts.append(CallEnd(self._index, call))
        self._index += 1
        return sent

    def _may_be(self, name: str) -> bool:
        return self._names is None or name in self._names


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(literal: str) -> str | None:
    """What a JSON string says."""
    try:
        found = parse_json(literal, "A name", EdgeError, "")
    except EdgeError:
        return None
    return found if isinstance(found, str) else None


def _call(text: str) -> ToolCall | None:
    """The call that a whole JSON object is."""
    try:
        found = parse_json(text, "A call", EdgeError, "", finite=True)
    except EdgeError:
        return None
    if isinstance(found, dict) and isinstance(found.get("function"), dict):
        found = found["function"]
    name = found.get("name", found.get("function")) if isinstance(found, dict) else None
    if not isinstance(name, str) or not name:
        return None
    given: Any = next((found[key] for key in _ARGUMENTS if key in found), {})
    if isinstance(given, str):
        return ToolCall(name, parse_arguments(given))
    return ToolCall(name, given) if isinstance(given, Mapping) else None
