"""How models write calls: told from their templates, written, and read in any pieces."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.text.chat_template import ChatTemplate
from edge.text.messages import REQUIRED, Tool, ToolCall
from edge.text.reply import CallArguments, CallEnd, ContentText, ReplyParser, ReplyPart, joined
from edge.text.tools import json_calls
from edge.text.tools.detection import GENERIC, tool_support
from edge.text.tools.grammar import answer_grammar
from edge.text.tools.json_calls import JsonFormat
from edge.text.tools.parts import ToolFormat
from edge.text.tools.python_calls import PythonFormat, read_calls
from edge.text.tools.xml_calls import XmlFormat
from tests.tool_templates import PHI4, PLAIN, TEMPLATES

MCP = PythonFormat()
LFM2 = PythonFormat("<|tool_call_start|>[", "]<|tool_call_end|>", ", ")
MINICPM5 = XmlFormat()
CODER = XmlFormat(
    ("<function=", ">"),
    ("<parameter=", ">"),
    "</parameter>",
    begin="<tool_call>\n",
    end="\n</tool_call>",
    between="\n",
    pad="\n",
    gap="\n",
    cdata=False,
)
LLAMA = JsonFormat("", "", "\n", key="parameters")
PHI = JsonFormat("<|tool_call|>", "<|/tool_call|>", "", is_list=True)
FORMATS = {
    "qwen3": JsonFormat(),
    "coder": CODER,
    "minicpm5": MINICPM5,
    "minicpm4-mcp": MCP,
    "lfm2": LFM2,
    "llama3.2": LLAMA,
}
TOOLS = (
    Tool(
        "get-weather",
        "The weather.",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "from": {"type": "integer"},
                "degrees": {"type": "number"},
                "max-wind": {"type": ["number", "null"]},
                "exact": {"type": "boolean"},
                "days": {"type": "array"},
                "more": {"type": "object"},
            },
            "required": ["city"],
        },
    ),
    Tool("now"),
)


def read(form: ToolFormat, text: str, cuts: tuple[int, ...] = (), tools: Any = TOOLS) -> list[ReplyPart]:
    """The parts of a text that comes in pieces."""
    parser = ReplyParser(form, tools)
    parts: list[ReplyPart] = []
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        parts += parser.push(text[start:end])
    return joined([*parts, *parser.finish()])


def calls_of(parts: list[ReplyPart]) -> list[ToolCall]:
    return [part.call for part in parts if isinstance(part, CallEnd)]


def content_of(parts: list[ReplyPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, ContentText))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_tells_its_syntax(name: str) -> None:
    found = tool_support(ChatTemplate(TEMPLATES[name]), ())
    assert (found.form, found.tells, found.writes) == (FORMATS[name], True, True)


def test_templates_that_do_not_write_calls() -> None:
    assert tool_support(ChatTemplate(PLAIN), ()) == GENERIC
    assert tool_support(ChatTemplate(PLAIN), ("<tool_call>",)) == GENERIC
    found = tool_support(ChatTemplate(PHI4), ("<|tool_call|>", "<|/tool_call|>"))
    assert (found.form, found.tells, found.writes) == (PHI, True, False)
    assert tool_support(ChatTemplate(PHI4), ()).form == JsonFormat()


def test_the_published_templates_know_no_tools(shared_data) -> None:
    for folder in ("minicpm4-0.5b", "minicpm4-8b"):
        files = json.loads((shared_data / folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert tool_support(ChatTemplate(files["chat_template"]), ("<|tool_call|>",)) == GENERIC


# Text of any kind, and of what the syntaxes are made of.
_PIECES = [
    "<",
    ">",
    "&",
    '"',
    "'",
    "\\",
    "\n",
    "{",
    "}",
    "[",
    "]",
    "(",
    "=",
    ",",
    "]]>",
    "<![CDATA[",
    "```",
    "-3",
]
_TEXTS = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=5)), max_size=6).map("".join)
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**18), 10**18), st.floats(-1e9, 1e9), _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)),
    max_leaves=6,
)
_ARGUMENTS = st.fixed_dictionaries(
    {"city": _TEXTS},
    optional={
        "from": st.integers(-(10**18), 10**18),
        "degrees": st.floats(-1e9, 1e9),
        "max-wind": st.one_of(st.none(), st.floats(-1e9, 1e9)),
        "exact": st.booleans(),
        "days": st.lists(_VALUES, max_size=3),
        "more": st.dictionaries(_TEXTS, _VALUES, max_size=3),
    },
)
_CALLS = st.lists(
    st.one_of(_ARGUMENTS.map(lambda given: ToolCall("get-weather", given)), st.just(ToolCall("now", {}))),
    min_size=1,
    max_size=3,
)
_CUTS = st.lists(st.integers(0, 400), max_size=8).map(tuple)


@pytest.mark.parametrize("form", [*FORMATS.values(), PHI], ids=[*FORMATS, "phi4"])
@settings(max_examples=40, deadline=None)
@given(calls=_CALLS, cuts=_CUTS, before=st.sampled_from(["", "Let me see.", "a < b\n"]))
def test_written_calls_are_read_again(
    form: ToolFormat, calls: list[ToolCall], cuts: tuple[int, ...], before: str
) -> None:
    before = "" if form.is_bare else before
    written = form.write(calls, TOOLS)
    if form is CODER and written.count("</parameter>") != sum(len(call.arguments) for call in calls):
        return  # there is no way to write that
    found = read(form, f"{before}\n{written}\n" if before else written, cuts)
    assert calls_of(found) == calls
    assert content_of(found) == before.rstrip()
    for index, call in enumerate(calls):
        sent = "".join(p.json_text for p in found if isinstance(p, CallArguments) and p.index == index)
        assert json.loads(sent) == call.arguments


@pytest.mark.parametrize("form", [*FORMATS.values(), PHI], ids=[*FORMATS, "phi4"])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), cuts=_CUTS)
def test_any_cut_gives_the_same_parts(form: ToolFormat, data: st.DataObject, cuts: tuple[int, ...]) -> None:
    """Whole calls, halves of them, and what only looks like one."""
    written = form.write([ToolCall("get-weather", {"city": "A\nB", "days": [1]}), ToolCall("now", {})], TOOLS)
    pieces = [*form.marks, *form.openings, written, "now", '"name"', "{", "}", "(", ")", "\n", " ", "Hi"]
    pieces += [written[:at] for at in (5, 30, len(written) // 2, len(written) - 3)]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=6)))
    whole = read(form, text)
    assert read(form, text, cuts) == whole
    assert read(form, text, tuple(range(len(text)))) == whole
    if not calls_of(whole):
        assert content_of(whole) == text


BROKEN = [
    (JsonFormat(), "<tool_call>\nnothing\n</tool_call>"),
    (JsonFormat(), "<tool_call>"),
    (JsonFormat(), '<tool_call>{"arguments": {}}</tool_call>'),
    (JsonFormat(), '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
    (JsonFormat(), '<tool_call>{"name": "f"'),
    (LLAMA, '{"name": "Bob", "parameters": {}}'),  # no tool of ours: any JSON
    (LLAMA, 'So: {"name": "now", "parameters": {}}'),  # not at the beginning
    (MCP, "<|tool_call_start|>\n```python\nimport os\n```\n<|tool_call_end|>"),
    (MCP, "<|tool_call_start|>now(<|tool_call_end|>"),
    (MCP, "<|tool_call_start|>now(1)<|tool_call_end|>"),
    (MCP, "<|tool_call_start|>now(x=f())<|tool_call_end|>"),
    (MCP, "<|tool_call_start|>now(x=a)<|tool_call_end|>"),
    (MCP, "<|tool_call_start|>now(**{'a': 1})<|tool_call_end|>"),
    (MCP, "<|tool_call_start|>now(x=1e999)<|tool_call_end|>"),
    (JsonFormat(), '<tool_call>{"arguments": {"a": -Infinity}, "name": "f"}</tool_call>'),
    (
        MCP,
        "<|tool_call_start|>now(x=0x" + "f" * 5000 + ")<|tool_call_end|>",
    ),  # no decimal number is that long
    (MCP, "<|tool_call_start|>now(x=1, x=2)<|tool_call_end|>"),
    (MCP, "<|tool_call_start|>now(x=" + "[" * 5000 + "]" * 5000 + ")<|tool_call_end|>"),
    (MCP, "<|tool_call_start|>now(x=" + "-" * 5000 + "1)<|tool_call_end|>"),
    (MCP, "<|tool_call_start|>os.system('x')[0]<|tool_call_end|>"),
    (MCP, "<|tool_call_start|><|tool_call_end|>"),
    (MINICPM5, '<function name="'),
    (MINICPM5, '<function name="f'),
    (MINICPM5, '<function name=""></function>'),
    (CODER, "<tool_call>\n<functions=f>\n</tool_call>"),
]


@pytest.mark.parametrize(("form", "text"), BROKEN, ids=[f"{text:.40}" for _, text in BROKEN])
def test_what_is_no_call_stays_text(form: ToolFormat, text: str) -> None:
    found = read(form, text)
    assert calls_of(found) == [] and content_of(found) == text


@pytest.mark.parametrize(
    ("form", "text", "name", "raw"),
    [
        (JsonFormat(), '<tool_call>{"name": "f", "arguments": {"a": [1, ', "f", '{"a": [1, '),
        (JsonFormat(), '<tool_call>{"name": "f", "arguments": {"a": }}', "f", '{"a": }'),
        (JsonFormat(), '<tool_call>{"name": "f", "arguments": {"a": NaN}}', "f", '{"a": NaN}'),
        (JsonFormat(), '<tool_call>{"name": "f", "arguments": {"a": 1e999}}', "f", '{"a": 1e999}'),
        (MINICPM5, '<function name="f"><param name="a">1</param><param', "f", '{"a": 1<param'),
        (MINICPM5, '<function name="f"><param name="a">1</param>x</function>', "f", '{"a": 1x'),
        (MINICPM5, '<function name="f">', "f", ""),
        (CODER, "<function=f>\n<parameter=a>\n1\n", "f", "<parameter=a>\n1\n"),
    ],
)
def test_a_call_that_was_cut_keeps_its_raw_text(form: ToolFormat, text: str, name: str, raw: str) -> None:
    """It never looks like a whole one."""
    assert calls_of(read(form, text)) == [ToolCall(name, raw)]


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (JsonFormat(), '<tool_call>{"arguments":{"a":1},"name":"f"}</tool_call>', [("f", {"a": 1})]),
        (JsonFormat(), '<tool_call>{"name":"f","arguments":"{\\"a\\":1}"}</tool_call>', [("f", {"a": 1})]),
        (JsonFormat(), '<tool_call>{"function":{"name":"f","arguments":{"a":1}}}', [("f", {"a": 1})]),
        (JsonFormat(), '<tool_call>{"name":"f"}</tool_call>', [("f", {})]),
        (JsonFormat(), '<tool_call>{"name":"f","arguments":{}, "id": "{"}</tool_call>', [("f", {})]),
        (JsonFormat(), '<tool_call>{"name":"f","arguments":{}}\n{"name":"g"}</tool_call>',
         [("f", {}), ("g", {})]),
        (LLAMA, '\n{"name": "now", "parameters": {}}; {"name": "now", "parameters": {"a": 1}}',
         [("now", {}), ("now", {"a": 1})]),
        (LLAMA, '{"type": "function", "name": "now", "parameters": {}}', [("now", {})]),
        (MCP, "<|tool_call_start|>get-weather(city='Köln', from=-3, max-wind=-1.5)<|tool_call_end|>",
         [("get-weather", {"city": "Köln", "from": -3, "max-wind": -1.5})]),
        (MCP, '<|tool_call_start|>\n```python\nget_weather("2024-01-02", from_=3)\nnow()\n```\n'
         "<|tool_call_end|>",
         [("get-weather", {"city": "2024-01-02", "from": 3}), ("now", {})]),
        (MCP, '<|tool_call_start|>get_weather(city="from=1, now(2)", exact=true, days=[None, {"a": -1}])',
         [("get-weather", {"city": "from=1, now(2)", "exact": True, "days": [None, {"a": -1}]})]),
        (MCP, "<|tool_call_start|>a.b-c(d=+1, path='C:\\dir')<|tool_call_end|>",
         [("a.b-c", {"d": 1, "path": "C:\\dir"})]),
        (MINICPM5, '<function name="get-weather"><param name="city">5</param> <param name="from"> 5 '
         '</param>\n<param name="exact">True</param><param name="degrees">5.0</param></function>',
         [("get-weather", {"city": "5", "from": 5, "exact": True, "degrees": 5.0})]),
        (MINICPM5, '<function name="get-weather"><param name="city">A &amp; B & C</param><param name="days">'
         '["</param>"]</param></function>', [("get-weather", {"city": "A & B & C", "days": ["</param>"]})]),
        (MINICPM5, '<function name="f"><param name="a">1</param><param name="b">x</param></function>',
         [("f", {"a": 1, "b": "x"})]),
        (MINICPM5, '<function name="get-weather"><param name="degrees">1e999</param><param name="days">'
         '[NaN]</param></function>', [("get-weather", {"degrees": "1e999", "days": "[NaN]"})]),
        (CODER, "<function=now>\n</function>\n</tool_call>", [("now", {})]),
    ],
)  # fmt: skip
def test_how_else_models_write(form: ToolFormat, text: str, expected: list[tuple[str, Any]]) -> None:
    found = read(form, text)
    assert [(call.name, call.arguments) for call in calls_of(found)] == expected
    assert content_of(found).strip() == ""


def test_arguments_come_as_they_are_written() -> None:
    """A long text in them is seen while it grows."""
    parser = ReplyParser(JsonFormat(), TOOLS)
    parser.push('<tool_call>\n{"name": "get-weather", "arguments": {"city": "A')
    assert parser.push(" long") == [CallArguments(0, " long")]
    xml = ReplyParser(MINICPM5, TOOLS)
    xml.push('<function name="get-weather"><param name="city">A')
    assert xml.push("</param><param") == [CallArguments(0, '{"city": "A"')]


def test_text_around_calls() -> None:
    text = 'One.\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n\nTwo. '
    parts = read(JsonFormat(), text)
    assert [part.text for part in parts if isinstance(part, ContentText)] == ["One.", "Two."]
    assert [type(part).__name__ for part in parts] == [
        *("ContentText", "CallBegin", "CallArguments", "CallEnd", "ContentText"),
    ]


def test_no_mark_of_python_stands_in_a_text() -> None:
    value: Mapping[str, Any] = {"city": "<|tool_call_end|>"}
    assert calls_of(read(MCP, MCP.write([ToolCall("get-weather", value)]))) == [
        ToolCall("get-weather", value)
    ]


@pytest.mark.parametrize(
    "text",
    [
        'now(city="' + '\\"' * (1 << 18),
        "now(city='" + "\\'" * (1 << 18),
        "a" * (1 << 19),
        '"""' + '\n\\"""' * (1 << 16),
        "'''" + "\n\\'''" * (1 << 16),
        '"""' + '\n\\"""' * (1 << 16) + "\\",
        "```python\nnow()" + "\n" * (1 << 19) + "x",
        "now()" + " " * (1 << 19) + "x",
    ],
    ids=["double", "single", "name", "triple", "triple single", "triple, escape", "fence", "blanks"],
)
def test_a_cut_call_is_read_once(text: str) -> None:
    """Each place was tried up to the end: for these texts that takes many minutes."""
    assert read_calls(text, TOOLS) is None


def test_many_openings_are_read_once() -> None:
    """A small model may write one after the other: each was read to the end."""
    text = MCP.marks[0] * 10_000 + "now()"
    found = read(MCP, text)
    assert calls_of(found) == [ToolCall("now", {})] and content_of(found) == MCP.marks[0] * 9_999


def test_comments_and_what_looks_like_a_name() -> None:
    text = "# it's \"\"\" from=now(\nget-weather(city='#a b', exact=true)  # don't(\nnow()\n"
    for written in (text, f"```python\n{text}\n```\n", f"\n```\n{text}"):
        found = read_calls(written, TOOLS)
        assert found == [ToolCall("get-weather", {"city": "#a b", "exact": True}), ToolCall("now", {})]


def test_the_beginning_of_a_call_is_not_looked_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each piece all blanks before its name were read again."""

    class Counted:
        def __init__(self) -> None:
            self.characters = 0

        def match(self, text: str, start: int, end: int = sys.maxsize) -> re.Match[str] | None:
            self.characters += min(end, len(text)) - start
            return head.match(text, start, end)

    head = json_calls._HEAD
    scanned = []
    for count in (1 << 12, 1 << 13):
        counted = Counted()
        monkeypatch.setattr(json_calls, "_HEAD", counted)
        text = "<tool_call>{" + " " * count + '"name": "now", "arguments": {}}'
        assert calls_of(read(JsonFormat(), text, tuple(range(len(text))))) == [ToolCall("now", {})]
        assert read(JsonFormat(), text, tuple(range(len(text)))) == read(JsonFormat(), text)
        scanned.append(counted.characters)
    assert scanned[0] == scanned[1] > 0


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("form", [MCP, XmlFormat()], ids=["python", "xml"])
def test_the_grammar_of_many_parameters_grows_with_their_number(form: ToolFormat, required: bool) -> None:
    """Every optional parameter had all that may follow it in its own alternative."""

    def size(count: int) -> int:
        properties = {f"p{n:05}": {"type": "integer"} for n in range(count)}
        schema = {"type": "object", "properties": properties, "required": [*properties] if required else []}
        return len(answer_grammar(form, [Tool("f", "", schema)], REQUIRED, {}) or "")

    assert size(800) < 4.5 * size(200)


def test_definitions_are_repeated_for_those_that_need_them() -> None:
    shared = {"$defs": {"a": {"enum": ["x" * 100] * 100}}}
    properties: dict[str, Any] = {f"p{n}": {"type": "integer"} for n in range(500)}
    schema = {"properties": {"q": {"$ref": "#/$defs/a"}, **properties}, **shared}
    found = answer_grammar(MCP, [Tool("f", "", schema)], REQUIRED, {})
    assert found is not None and found.count("x" * 100) == 100
    many = {"properties": {f"p{n}": {"$ref": "#/$defs/a"} for n in range(500)}, **shared}
    with pytest.raises(EdgeError, match="500 parameters of the tool 'f' refer to definitions"):
        answer_grammar(MCP, [Tool("f", "", many)], REQUIRED, {})
