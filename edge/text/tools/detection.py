"""Which syntax of calls a model uses: told from what its chat template makes of a call."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from edge.errors import EdgeError
from edge.system.notices import notice
from edge.text.chat_template import ChatTemplate, TemplateLimitError
from edge.text.messages import Message, Tool, ToolCall
from edge.text.thinking import thinking_marks
from edge.text.tools.json_calls import Balance, JsonFormat
from edge.text.tools.parts import ToolFormat
from edge.text.tools.python_calls import PythonFormat
from edge.text.tools.xml_calls import XmlFormat

_NAME, _KEY, _VALUE = "edge_probe", "edge_key", "edge_value"
_QUESTION, _ANSWER = "edgequestion", "edgeanswer"
_TOOL = Tool(_NAME, "A probe.", {"type": "object", "properties": {_KEY: {"type": "string"}}})
_CALL = ToolCall(_NAME, {_KEY: _VALUE}, "call00001")
_JSON = re.compile(rf'\{{\s*(?:"type":\s*"function",\s*)?"name":\s*"{_NAME}",\s*"(\w+)":\s*(?=["{{])')
_PYTHON = re.compile(rf"{_NAME}\([^()]*\)")
_XML = re.compile(
    rf"<(?P<function>\w+)(?P<equals> name=\"|=){_NAME}(?P<close>\"?>)(?P<gap>\s*)"
    rf"<(?P<parameter>\w+)(?P=equals){_KEY}(?P=close)(?P<pad>\s*){_VALUE}\s*</(?P=parameter)>\s*</(?P=function)>"
)
_BY_TOKEN = (  # where a template tells of tools and does not write calls
    ("<tool_call>", JsonFormat()),
    ("<|/tool_call|>", JsonFormat("<|tool_call|>", "<|/tool_call|>", "", is_list=True)),
    ("<|python_tag|>", JsonFormat("", "", "; ", key="parameters")),
    ("<|tool_call_start|>", PythonFormat()),
    ("<function name=", XmlFormat()),
)


Way = Literal["tools", "xml_tools", "system"]
"""How templates take tools: as the variable `tools`, which nearly all do, as SmolLM3's `xml_tools`, or in the
field `tools` of the system message, as Phi-4-mini's.
"""


@dataclass(frozen=True)
class ToolSupport:
    """What a chat template does for tools.

    form: how calls are written. tells: it tells the model which tools there are. writes: it writes the calls
    and the results of earlier turns. way: how it takes the tools.
    """

    form: ToolFormat
    tells: bool
    writes: bool
    way: Way = "tools"


GENERIC = ToolSupport(JsonFormat(), tells=False, writes=False)


def variables_with(tools: Sequence[Mapping[str, Any]], way: Way) -> dict[str, Any]:
    """The variables of a template that tell of tools, which are objects in OpenAI's form."""
    if way == "xml_tools":
        return {way: [tool["function"] for tool in tools]}
    return {"tools": list(tools)}


def messages_with(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], way: Way
) -> list[Mapping[str, Any]]:
    """The messages that tell a template of tools."""
    if way != "system":
        return list(messages)
    text = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "tools": text}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": text}, *messages]


def tool_support(template: ChatTemplate, special_tokens: Collection[str]) -> ToolSupport:
    """What this template does for tools; GENERIC for one that knows none."""
    return _support(template.source, template.special_tokens, tuple(special_tokens))


@lru_cache(maxsize=16)
def _support(source: str, named: tuple[tuple[str, str], ...], special: tuple[str, ...]) -> ToolSupport:
    if "tool" not in source and "function" not in source:
        return GENERIC
    template = ChatTemplate(source, dict(named))
    question: dict[str, Any] = {"role": "user", "content": _QUESTION}
    for way in get_args(Way):
        asked = _render(template, [question], True, way)
        if asked is not None and _NAME in asked:
            break
    else:
        return GENERIC
    one, two = _calls(template, question, asked, way, thinking_marks(source, special))
    form = None if one is None else _read(one, two)
    if form is not None:
        return ToolSupport(form, tells=True, writes=True, way=way)
    known = next((each for mark, each in _BY_TOKEN if mark in special or mark in source), None)
    if one is not None and known is None:
        notice(
            "The chat template writes calls of tools in a syntax that is not known here: calls of the model "
            "stay in the text of its answers."
        )
    return ToolSupport(known or GENERIC.form, tells=True, writes=False, way=way)


def _calls(
    template: ChatTemplate, question: dict[str, Any], asked: str, way: Way, thinking: tuple[str, str] | None
) -> list[str | None]:
    """What the template makes of an answer with one call, and with two; None where it writes none."""
    plain = _render(template, [question, {"role": "assistant", "content": _ANSWER}], False, way)
    heads = [asked.rpartition(_QUESTION)[2]]
    tail = ""
    if plain is not None and _ANSWER in plain:
        before, _, tail = plain.rpartition(_ANSWER)
        heads.insert(0, before.rpartition(_QUESTION)[2])
    called: list[str | None] = []
    for count in (1, 2):
        message = Message("assistant", "", calls=(_CALL,) * count)
        given = template_message(message)
        found = _render(template, [question, given], False, way)
        if found is None:
            found = _render(template, [question, {**given, "content": None}], False, way)
        if found is not None:
            found = _without(found.rpartition(_QUESTION)[2], heads, tail, thinking)
        called.append(found if found is not None and _NAME in found else None)
    return called


def template_message(message: Message) -> dict[str, Any]:
    """A message as templates know it: arguments are an object, where clients send text."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        found["reasoning_content"] = message.reasoning
    if message.calls:
        found["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.calls
        ]
    if message.call_id is not None:
        found["tool_call_id"] = message.call_id
    if message.name is not None:
        found["name"] = message.name
    return found


def _render(template: ChatTemplate, messages: list[dict[str, Any]], opened: bool, way: Way) -> str | None:
    tools = [_TOOL.as_openai()]
    given = messages_with(messages, tools, way)
    try:
        return template.render(given, add_generation_prompt=opened, **variables_with(tools, way))
    except TemplateLimitError:
        raise
    except EdgeError:
        return None


def _without(text: str, heads: list[str], tail: str, thinking: tuple[str, str] | None) -> str:
    """A call without the opening and the end of the turn, and without thinking."""
    for head in heads:
        if text.startswith(head):
            text = text[len(head) :]
            break
    else:
        alike = next((i for i, (a, b) in enumerate(zip(text, heads[0], strict=False)) if a != b), 0)
        text = text[max(text.rfind("\n", 0, alike), text.rfind(">", 0, alike)) + 1 :]
    if tail and text.endswith(tail):
        text = text[: -len(tail)]
    if thinking is not None:
        text = text.rpartition(thinking[1])[2]
    return text.lstrip()


def _read(one: str, two: str | None) -> ToolFormat | None:
    """The format of a text with one call; the text of two tells what stands between them."""
    xml = _XML.search(one)
    if xml is not None:
        equals, close = xml["equals"], xml["close"]
        begin, end = one[: xml.start()], one[xml.end() :]
        return XmlFormat(
            (f"<{xml['function']}{equals}", close),
            (f"<{xml['parameter']}{equals}", close),
            f"</{xml['parameter']}>",
            f"</{xml['function']}>",
            begin,
            end,
            _between(two, xml[0], begin, end) or "",
            xml["pad"],
            xml["gap"],
            cdata=equals != "=",
        )
    found = _JSON.search(one)
    if found is not None:
        behind = Balance(found.start()).end(one)
        if behind is None:
            return None
        call, begin, end = one[found.start() : behind], one[: found.start()], one[behind:]
        between = _between(two, call, begin, end)
        if begin.rstrip().endswith("[") and end.lstrip().startswith("]"):
            return JsonFormat(begin.rstrip()[:-1], end.lstrip()[1:], "", key=found[1], is_list=True)
        return JsonFormat(begin, end, "\n" if between is None else between, key=found[1])
    python = _PYTHON.search(one)
    if python is not None:
        begin, end = one[: python.start()], one[python.end() :]
        if not begin.strip() or not end.strip():
            return None
        form = PythonFormat(begin, end)
        if two is not None and two.count(python[0]) == 2:
            form = replace(form, between=two.split(python[0])[1])
        return form
    return None


def _between(two: str | None, call: str, begin: str, end: str) -> str | None:
    """What stands between two blocks."""
    if two is None or two.count(call) != 2:
        return None
    middle = two.split(call)[1]
    if middle.startswith(end) and middle.endswith(begin) and len(middle) >= len(begin) + len(end):
        return middle[len(end) : len(middle) - len(begin)]
    return None
