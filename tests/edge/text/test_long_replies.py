"""Answers that open a call again and again are read in a time that grows as they do."""

from __future__ import annotations

from time import process_time

import pytest

from edge.text.messages import Tool
from edge.text.reply import CallEnd, ContentText, ReplyParser, Unread, joined
from edge.text.tools.json_calls import JsonFormat
from edge.text.tools.parts import ToolFormat
from edge.text.tools.python_calls import PythonFormat
from edge.text.tools.xml_calls import XmlFormat

TOOL = Tool("f", "", {"type": "object", "properties": {"a": {"type": "array"}, "b": {"type": "string"}}})
JSON, LIST = JsonFormat(), JsonFormat("<|tool_call|>", "<|/tool_call|>", "", is_list=True)
XML = XmlFormat()
OUTER = XmlFormat(
    ("<function=", ">"), ("<parameter=", ">"), "</parameter>", begin="<tool_call>\n", end="\n</tool_call>"
)


def seconds(form: ToolFormat, text: str) -> float:
    """Of the processor."""
    found = []
    for _ in range(2):
        parser = ReplyParser(form, [TOOL], control=form.marks)
        before = process_time()
        parser.push(text)
        parser.finish()
        found.append(process_time() - before)
    return min(found)


@pytest.mark.parametrize(
    ("form", "unit"),
    [
        (JSON, "<tool_call>{"),
        (JSON, '<tool_call>{\\"'),
        (JSON, '<tool_call>{"'),
        (JSON, '<tool_call>{"a": ["'),
        (JSON, "<tool_call>" + " " * 30),
        (LIST, "<|tool_call|>[{"),
        (XML, '<function name="'),
        (XML, '<function name="f"></function>'),
        (XML, '<function name="f"><param name="a">[</param>'),
        (OUTER, "<tool_call><function="),
        (PythonFormat(), "<|tool_call_start|>f("),
    ],
    ids=str,
)
def test_time_grows_with_the_length(form: ToolFormat, unit: str):
    """Four times as much took 12 times as long, some 10 s for 50,000 characters."""
    few = seconds(form, unit * 800)
    assert seconds(form, unit * 3200) < 8 * few + 0.05


def test_many_parameters_with_lists_that_do_not_end():
    unit = '<param name="a">[</param>'
    few = seconds(XML, '<function name="f">' + unit * 800)
    assert seconds(XML, '<function name="f">' + unit * 3200) < 8 * few + 0.05


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_call_among_many_openings_is_found(size: int):
    text = "<tool_call>{" * 100 + 'x<tool_call>{"name": "f", "arguments": {"b": "<tool_call>{"}}</tool_call>y'
    parser = ReplyParser(JSON, [TOOL])
    parts = [part for at in range(0, len(text), size) for part in parser.push(text[at : at + size])]
    found = joined([*parts, *parser.finish()])
    assert [part.call.arguments for part in found if isinstance(part, CallEnd)] == [{"b": "<tool_call>{"}]
    said = "".join(part.text for part in found if isinstance(part, ContentText))
    assert said == "<tool_call>{" * 100 + "xy"


def test_unread_text_and_its_marks():
    unread = Unread()
    unread.add("ab<c<")
    assert (unread.find("<"), unread.find("c"), unread.find("d")) == (2, 3, -1)
    taken = unread.take(3)
    assert (taken, unread.find("<"), unread.rest) == ("ab<", 1, "c<")
    unread.put_back(taken, 1)
    assert (unread.find("<"), unread.rest, len(unread)) == (0, "<c<", 3)
    unread.add("d")
    assert (unread.find("d"), unread.tail(2), unread.take()) == (3, "<d", "<c<d")
    unread.put_back("ab<c<d", 5)
    assert (unread.rest, unread.find("b"), unread.find("d")) == ("b<c<d", 0, 4)
