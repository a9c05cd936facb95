"""Answers as parts: thinking, content and calls, whatever pieces the text comes in."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from edge.text.messages import Tool, ToolCall
from edge.text.reply import (
    CallEnd,
    ContentText,
    ReasoningText,
    ReplyParser,
    ReplyPart,
    joined,
)
from edge.text.thinking import Thinking, opened, thinking_marks
from edge.text.tools.json_calls import JsonFormat

TOOLS = (Tool("now"),)
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def read(parser: ReplyParser, pieces: list[str]) -> list[ReplyPart]:
    parts = [part for piece in pieces for part in parser.push(piece)]
    return joined([*parts, *parser.finish()])


def said(
    text: str, *, is_open: bool = False, calls: bool = True, control: tuple[str, ...] = ()
) -> list[ReplyPart]:
    thinking = Thinking("<think>", "</think>", is_open)
    return read(ReplyParser(JsonFormat() if calls else None, TOOLS, thinking, control), [text])


def test_thinking_content_and_calls() -> None:
    expected = [ReasoningText("Hm.\nSo."), ContentText("Yes."), CallEnd(0, ToolCall("now", {}))]
    for text, is_open in (("<think>\nHm.\nSo.\n</think>\n\n", False), ("\nHm.\nSo.\n</think>\n\n", True)):
        found = said(f"{text}Yes.\n{CALL}", is_open=is_open)
        assert [part for part in found if type(part) in (ReasoningText, ContentText, CallEnd)] == expected


def test_thinking_that_does_not_end_is_no_content() -> None:
    assert said("Hm. <tool_call>", is_open=True) == [ReasoningText("Hm. <tool_call>")]


def test_empty_thinking_leaves_no_trace() -> None:
    assert said("<think>\n\n</think>\n\nYes. ") == [ContentText("Yes.")]
    assert said("\n</think>\n\nYes", is_open=True) == [ContentText("Yes")]


def test_a_plain_answer_is_its_text() -> None:
    for text in (" a \n b \n", "\n", "", "a <think> b </think>"):
        assert said(text, calls=False) == ([ContentText(text)] if text else [])
        assert read(ReplyParser(), list(text)) == ([ContentText(text)] if text else [])


def test_control_tokens_do_not_leak() -> None:
    """Where marks are control tokens, those that stand in a wrong place are no text."""
    text = "a</think>b<tool_call>c</tool_call><think>d"
    assert said(text, control=MARKS) == [ContentText("abcd")]
    assert said(text) == [ContentText(text)]


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([*MARKS, CALL, "<", "th", "\n", " ", "a", "{", "}"]), max_size=8),
    cuts=st.lists(st.integers(0, 120), max_size=8),
    is_open=st.booleans(),
    control=st.sampled_from([(), MARKS, MARKS[:2]]),
)
def test_any_cut_gives_the_same_parts(
    pieces: list[str], cuts: list[int], is_open: bool, control: tuple[str, ...]
) -> None:
    text = "".join(pieces)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    cut = [text[a:b] for a, b in pairwise(places)]
    whole = said(text, is_open=is_open, control=control)
    for way in (cut, list(text)):
        parser = ReplyParser(JsonFormat(), TOOLS, Thinking("<think>", "</think>", is_open), control)
        assert read(parser, way) == whole
    content = "".join(part.text for part in whole if isinstance(part, ContentText))
    assert not any(mark in content for mark in control)


def test_marks_of_thinking() -> None:
    assert thinking_marks("{{ content.split('</think>')[-1] }}", ()) == ("<think>", "</think>")
    assert thinking_marks("{{ content }}", ("<think>", "</think>")) == ("<think>", "</think>")
    assert thinking_marks("{{ content }}", ()) is None
    marks = ("<think>", "</think>")
    assert opened("assistant\n<think>\n", marks) == Thinking(*marks, True)
    assert opened("assistant\n<think>\n\n</think>\n\n", marks) == Thinking(*marks, False)
    assert opened("<think>", None) is None
