"""Calls as Python: `name(key=value, ...)`, as MiniCPM3, MiniCPM4-MCP and LFM2 write them.

They are read by Python's own parser, and nothing of them is ever run: calls of names with literals, no more.
Names that are no identifiers (`get-weather`, a key `from`) are given aliases before that.
"""

from __future__ import annotations

import ast
import json
import keyword
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.text.messages import Tool, ToolCall
from edge.text.tools.grammar import Parameter, json_value, listed, options_of, parameters_of, quoted
from edge.text.tools.parts import CallReader, Rules, State, Steps, whole

_LONGEST = 1 << 20  # characters of a block
_MOST_BITS = 996  # 300 digits, as in JSON; a hexadecimal number may be longer than Python writes
_MARK = re.compile(r"<\|?[\w/-]+\|?>|\[/?[A-Z_]+\]")
_FENCE = re.compile(r"```[a-z]*[ \t]*\n")
# A text that does not end and a name that is none are matched as well: otherwise each place in them would be
# tried anew, up to the end.
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"""|\\?\Z)|\'\'\'(?:[^\\]|\\.)*?(?:\'\'\'|\\?\Z)'
    r'|"(?:[^"\\\n]|\\.)*"?|\'(?:[^\'\\\n]|\\.)*\'?|\#[^\n]*'
    r"|(?P<name>[^\W\d][\w.-]*)(?P<named>(?=\s*(?:\(|=(?!=))))?",
    re.DOTALL,
)
_UNKNOWN_ESCAPE = re.compile(r"(\\[\\'\"abfnrtvxuUN0-7\n])|\\")
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class PythonFormat:
    """begin, end: what stands around all calls. between: between two of them."""

    begin: str = "<|tool_call_start|>\n```python\n"
    end: str = "\n```\n<|tool_call_end|>"
    between: str = "\n"

    @property
    def openings(self) -> tuple[str, ...]:
        return (_mark(self.begin, -1),)

    @property
    def is_bare(self) -> bool:
        return False

    @property
    def marks(self) -> tuple[str, ...]:
        return (_mark(self.begin, -1), _mark(self.end, 0))

    def reader(self, tools: Sequence[Tool], first: int) -> CallReader:
        return PythonReader(self.marks, tools, first)

    def write(self, calls: Sequence[ToolCall], tools: Sequence[Tool] = ()) -> str:
        return self.begin + self.between.join(self._written(call) for call in calls) + self.end

    def rules(self, tools: Sequence[Tool], lenient: bool, special: Mapping[str, int]) -> Rules:
        lines = [f"call: {' | '.join(f'call{i}' for i in range(len(tools)))}"]
        for i, tool in enumerate(tools):
            parameters = parameters_of(tool, lenient)
            names = [(f"argument{i}_{j}", each.required) for j, each in enumerate(parameters)]
            lines.append(f'call{i}: {quoted(alias(tool.name) + "(")} arguments{i} ")"')
            lines += listed(names, ", ", f"arguments{i}")
            for (rule, _), each in zip(names, parameters, strict=True):
                lines.append(f"{rule}: {quoted(alias(each.name) + '=')} ({_value(each, lenient)})")
        return Rules(self.begin, self.end, self.between, False, "call", "\n".join(lines))

    def _written(self, call: ToolCall) -> str:
        given = call.arguments if isinstance(call.arguments, Mapping) else {"arguments": call.arguments}
        return f"{alias(call.name)}({', '.join(f'{alias(k)}={_literal(v)}' for k, v in given.items())})"


class PythonReader(CallReader):
    """Reads a block as a whole, when its end has come."""

    def __init__(self, marks: Sequence[str], tools: Sequence[Tool], first: int) -> None:
        super().__init__()
        self._marks, self._tools, self._index = marks, tools, first

    def _read(self) -> Steps[tuple[State, int]]:
        opening, closing = self._marks
        # A further opening begins anew. Read to the end for each of many, they took seconds.
        end = yield from self._find(closing, len(opening), opening)
        inner = self.text[len(opening) : None if end < 0 else end]
        calls = None if end < 0 and opening in inner else read_calls(inner, self._tools)
        if not calls:
            return "text", len(opening)
        for call in calls:
            self._parts += whole(self._index, call)
            self._index += 1
        return "done", len(self.text) if end < 0 else end + len(closing)


def alias(name: str) -> str:
    """A name as an identifier of Python: `get-weather` is `get_weather`, and `from` is `from_`."""
    found = re.sub(r"\W", "_", name)
    if keyword.iskeyword(found):
        return found + "_"
    return found if found[:1].isidentifier() else "_" + found


def read_calls(text: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """The calls in a block of Python, with the tools' own names; None if it is anything else."""
    if len(text) > _LONGEST:
        return None
    text = text.lstrip()
    if fence := _FENCE.match(text):
        text = text[fence.end() :].rstrip().removesuffix("```")
    names: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        if match["name"] is not None and match["named"] is None:
            return match[0]
        if match["name"] is None:
            return _UNKNOWN_ESCAPE.sub(lambda found: found[1] or "\\\\", match[0])
        names.append(match["name"])
        return f"_{len(names) - 1}_"

    try:
        tree = ast.parse(_TOKEN.sub(replaced, text.strip()))
        found: list[ToolCall] = []
        for statement in tree.body:
            if not isinstance(statement, ast.Expr):
                return None
            value = statement.value
            calls = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
            found += [_call(call, names, tools) for call in calls]
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None
    return found


def _call(node: ast.expr, names: Sequence[str], tools: Sequence[Tool]) -> ToolCall:
    """ValueError for anything but a call with literals."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("no call")
    written = _name(node.func.id, names)
    tool = next((t for t in tools if written == t.name), None)
    tool = tool or next((t for t in tools if written == alias(t.name)), None)
    known = [] if tool is None else list(tool.parameters.get("properties") or {})
    arguments: dict[str, Any] = {}
    if len(node.args) > len(known):
        raise ValueError("positional arguments of nobody knows what")
    for name, value in zip(known, node.args, strict=False):
        arguments[name] = _plain(value)
    for given in node.keywords:
        if given.arg is None:
            raise ValueError("arguments from elsewhere")
        key = _key(_name(given.arg, names), known)
        if key in arguments:
            raise ValueError("an argument twice")
        arguments[key] = _plain(given.value)
    return ToolCall(written if tool is None else tool.name, arguments)


def _name(identifier: str, names: Sequence[str]) -> str:
    match = re.fullmatch(r"_(\d+)_", identifier)
    if match is None or int(match[1]) >= len(names):
        raise ValueError("a name that was not there")
    return names[int(match[1])]


def _key(written: str, known: Sequence[str]) -> str:
    if written in known:
        return written
    found = next((name for name in known if alias(name) == written), None)
    if found is None and written.endswith("_") and keyword.iskeyword(written[:-1]):
        return written[:-1]
    return written if found is None else found


def _plain(node: ast.expr) -> Any:
    """The JSON value of a literal."""
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("no JSON number")
        if isinstance(value, str):
            return value.encode("utf-16", "surrogatepass").decode("utf-16")  # ValueError for half a pair
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise ValueError("a number that nobody would write in decimal")
        if value is None or isinstance(value, (bool, int, float)):
            return value
    elif isinstance(node, (ast.List, ast.Tuple)):
        return [_plain(each) for each in node.elts]
    elif isinstance(node, ast.Dict):
        keys = [_plain(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("no JSON object")
        return dict(zip(keys, map(_plain, node.values), strict=True))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = _plain(node.operand)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    elif isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    raise ValueError("no literal")


def _literal(value: Any) -> str:
    """A JSON value as Python, so that no mark appears in it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("<|", "\\x3c|")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)


def _value(parameter: Parameter, lenient: bool) -> str:
    """What may stand behind `key=`. Words inside of lists and objects are JSON's: those are read as well."""
    listed = options_of(parameter.schema)
    if listed is not None:
        return " | ".join(quoted(_literal(value)) for value in listed)
    kinds = parameter.schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds or ())
    words = {"boolean": '"True" | "False"', "null": '"None"'}
    found = [words[kind] for kind in kinds if kind in words]
    rest = [kind for kind in kinds if kind not in words]
    if rest or not kinds:
        narrowed = {**parameter.schema, "type": rest} if found else parameter.schema
        found.append(json_value(narrowed, lenient))
    return " | ".join(found)


def _mark(text: str, which: int) -> str:
    """The mark in what stands around calls: the last before them (-1), the first behind them (0)."""
    found = _MARK.findall(text)
    return str(found[which]) if found else text.strip()
