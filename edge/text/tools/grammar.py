"""Grammars of answers with calls, as Lark text for llguidance.

A format says what a call may be (`Rules`); here that becomes an answer: calls and nothing else, text with
calls in it, or text without any, each perhaps with thinking before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import EdgeError
from edge.text.messages import Tool, ToolChoice
from edge.text.tools.parts import Rules, ToolFormat

_NOTHING = '""'
MOST_CALLS = 8
"""Of an answer that must call: a small model may not stop by itself."""
_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_OF_OBJECTS = ("type", "properties", "required", "additionalProperties", "$defs", "definitions", "strict")
_WORDS = ("title", "description", "$schema", "$id", "$comment", "examples", "default")
_COMBINED = ("$ref", "allOf", "anyOf", "oneOf", "patternProperties", "if", "unevaluatedProperties")
_MOST_SHARED = 1 << 20  # characters, as many as a grammar may have
_TEXT = "TEXT: /(?s:.*)/"


def answer_grammar(
    form: ToolFormat,
    tools: Sequence[Tool],
    choice: ToolChoice,
    special: Mapping[str, int],
    *,
    parallel: bool = True,
    thought: tuple[str, str] | None = None,
    content: str | None = None,
) -> str | None:
    """The grammar of an answer; None where anything goes, or where the format can't be told from text.

    special: ids of the control tokens by their texts. thought: marks between which the answer may think
    first; empty ones where it follows on thinking. content: an expression of Lark for what it says if it does
    not call. Raises EdgeError for a schema that the format can't keep to, if the answer must call.
    """
    if choice.mode == "named":
        tools = [tool for tool in tools if tool.name == choice.name]
    lines: list[str] = []
    if choice.must_call:
        rules = form.rules(tools, lenient=False, special=special)
        lines += _calls(rules, special, parallel)
    elif content is not None and tools:
        rules = form.rules(tools, not any(tool.strict for tool in tools), special)
        lines += _calls(rules, special, parallel, name="calls")
        lines.append(f"answer: calls | content\ncontent: {content}")
    elif form.is_bare or not tools:
        return None
    elif choice.mode == "none":
        trigger = _trigger(form.openings[0], special)
        forbidden = "" if trigger in special else f" & ~/(?s:.*){_expression(trigger)}(?s:.*)/"
        lines.append(f"answer: PLAIN\nPLAIN: /(?s:.*)/{forbidden}")
    else:
        rules = form.rules(tools, not any(tool.strict for tool in tools), special)
        lines += _text_with_calls(rules, _trigger(form.openings[0], special), special, parallel)
    if thought is None:
        start = "start: answer"
    elif thought[0]:
        start = "start: thought? answer"
        lines += _thought(*thought, special)
    else:
        start = "start: BLANK answer\nBLANK: /\\s{0,4}/"
    return "\n".join(["%llguidance {}", start, *lines, _TEXT, ""])


def quoted(text: str) -> str:
    """A text as a literal of Lark."""
    return json.dumps(text, ensure_ascii=False)


def json_value(schema: Mapping[str, Any] | bool, lenient: bool) -> str:
    """JSON of a schema, spaced as `json.dumps` does: as templates write calls of earlier turns."""
    options = {**_SPACED, **({"lenient": True} if lenient else {})}
    given = closed(schema) if isinstance(schema, Mapping) else {}
    return f"%json {json.dumps({'x-guidance': options, **given}, ensure_ascii=False)}"


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without properties that it does not name, where it leaves that open: models invent some."""
    found = dict(schema)
    properties = found.get("properties")
    if isinstance(properties, Mapping):
        found["properties"] = {
            name: closed(each) if isinstance(each, Mapping) else each for name, each in properties.items()
        }
    if isinstance(found.get("items"), Mapping):
        found["items"] = closed(found["items"])
    if isinstance(properties, Mapping) or found.get("type") == "object":
        named = all(name in (properties or {}) for name in found.get("required", ()))
        if named and properties is not None and not any(key in found for key in _COMBINED):
            found.setdefault("additionalProperties", False)
    return found


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool. schema: with the definitions that it may refer to."""

    name: str
    schema: Mapping[str, Any]
    required: bool


def parameters_of(tool: Tool, lenient: bool) -> list[Parameter]:
    """The arguments by name, required ones first, for a syntax that writes each by itself.

    Raises EdgeError, unless lenient, for what can only be said of all of them together.
    """
    given = tool.parameters
    for key in given:
        if not lenient and key not in (*_OF_OBJECTS, *_WORDS):
            raise EdgeError(
                f"The parameters of the tool '{tool.name}' have the keyword {key!r}, which can't be kept to "
                "in this model's syntax of calls: say it inside of the properties."
            )
    shared = {key: given[key] for key in ("$defs", "definitions") if key in given}
    properties = given.get("properties") or {}
    required = dict.fromkeys(name for name in given.get("required", ()) if isinstance(name, str))
    names = [*(name for name in properties if name in required), *required, *properties]
    schemas = {name: _object(properties.get(name, {})) for name in dict.fromkeys(names)}
    # Each is a grammar of its own, with all definitions: only those have them that may need some.
    refer = {name for name, schema in schemas.items() if shared and '"$ref"' in json.dumps(schema)}
    if len(refer) > 1 and len(refer) * len(json.dumps(shared)) > _MOST_SHARED:
        raise EdgeError(
            f"{len(refer)} parameters of the tool '{tool.name}' refer to definitions that are too long to be "
            "repeated for each of them: make them shorter."
        )
    return [
        Parameter(name, {**shared, **schema} if name in refer else schema, name in required)
        for name, schema in schemas.items()
    ]


def options_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists; None if it lists none."""
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return list(listed) if isinstance(listed, (list, tuple)) and listed else None


def sequence(rules: Sequence[tuple[str, bool]]) -> str:
    """Rules in a row, each with whether it must be there."""
    return " ".join(rule if must else f"{rule}?" for rule, must in rules) or _NOTHING


def listed(rules: Sequence[tuple[str, bool]], separator: str, name: str) -> list[str]:
    """Lines with a rule of this name: the rules in a row with a separator between those that are there.

    Those that must be there come first.
    """
    gap = quoted(separator)
    if not rules:
        return [f"{name}: {_NOTHING}"]
    if rules[0][1]:
        rest = (f"{gap} {rule}" if must else f"({gap} {rule})?" for rule, must in rules[1:])
        return [f"{name}: {' '.join([rules[0][0], *rest])}"]
    # Any of them may be the first; what may follow it is a rule for each place.
    firsts = [f"{rule} {name}_{at}" for at, (rule, _) in enumerate(rules)]
    lines = [f"{name}: {' | '.join([*firsts, _NOTHING])}"]
    for at, (rule, _) in enumerate(rules[1:]):
        lines.append(f"{name}_{at}: ({gap} {rule})? {name}_{at + 1}")
    return [*lines, f"{name}_{len(rules) - 1}: {_NOTHING}"]


def literal(text: str, special: Mapping[str, int]) -> str:
    """A text as a sequence of Lark, the control tokens in it as tokens."""
    texts = sorted((each for each in special if each and each in text), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, texts))})", text) if texts else [text]
    return " ".join(f"<[{special[each]}]>" if each in texts else quoted(each) for each in pieces if each)


def _calls(rules: Rules, special: Mapping[str, int], parallel: bool, name: str = "answer") -> list[str]:
    """Calls and nothing else."""
    begin, end, between = (literal(each, special) for each in (rules.begin, rules.end, rules.between))
    more = f"{{0,{MOST_CALLS - 1}}}" if parallel else None
    if rules.several:
        lines = [f"block: {begin} {rules.call} {end}", f"{name}: block"]
        if more:
            lines = [lines[0], f"further: {between} block", f"{name}: block further{more}"]
    else:
        lines = [f"{name}: {begin} {rules.call} {end}"]
        if more:
            lines = [f"further: {between} {rules.call}", f"{name}: {begin} {rules.call} further{more} {end}"]
    return [*lines, rules.lark]


def _text_with_calls(rules: Rules, trigger: str, special: Mapping[str, int], parallel: bool) -> list[str]:
    """Any text until a call begins; then that is one."""
    rest = rules.begin[rules.begin.index(trigger) + len(trigger) :]
    if trigger in special:
        lines = [f"head: TEXT <[{special[trigger]}]>"]
    else:
        lines = [f"head[lazy]: /(?s:.*){_expression(trigger)}/"]
    calls = rules.call
    if parallel and not rules.several:
        lines.append(f"further: {literal(rules.between, special)} {rules.call}")
        calls += " further*"
    lines.append(f"block: head {literal(rest, special)} {calls} {literal(rules.end, special)}")
    lines.append("tail: TEXT")
    lines.append("answer: block* tail" if parallel and rules.several else "answer: block | tail")
    return [*lines, rules.lark]


def _thought(opening: str, closing: str, special: Mapping[str, int]) -> list[str]:
    lines = ["BLANK: /\\s{0,4}/"]
    end = until(closing, "thought_end", special, lines)
    return [f"thought: {literal(opening, special)} {end} BLANK", *lines]


def until(mark: str, rule: str, special: Mapping[str, int], lines: list[str]) -> str:
    """Any text up to a mark, as an expression; `lines` get the rule that it may need."""
    if found := [each for each in special if each and each in mark]:
        return f"TEXT {literal(mark[mark.index(max(found, key=len)) :], special)}"
    lines.append(f"{rule}[lazy]: /(?s:.*){_expression(mark)}/")
    return rule


def _trigger(opening: str, special: Mapping[str, int]) -> str:
    """What tells that a call begins: the opening, or the control token at its beginning."""
    return max((each for each in special if each and opening.startswith(each)), key=len, default=opening)


def _expression(text: str) -> str:
    """A regular expression of Rust, between slashes, for a text."""
    found = re.sub(r"[^\w<> ]", lambda match: "\\" + match[0], text, flags=re.ASCII)
    return found.replace("\\\n", "\\n").replace("\\\t", "\\t")


def _object(schema: Any) -> Mapping[str, Any]:
    return schema if isinstance(schema, Mapping) else {}
