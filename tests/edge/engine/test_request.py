"""Requests on a real model: calls that are valid as nothing else can be written, thinking, and replies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from edge.engine.generation import Stream
from edge.engine.request import Prepared, Request, answer_prepared, prepare
from edge.engine.settings import merge_settings
from edge.errors import EdgeError, TokenizerError
from edge.runtime import Model
from edge.text.chat_template import ChatTemplate
from edge.text.messages import AUTO, NONE, REQUIRED, Message, Tool, ToolChoice
from edge.text.prompts import PromptEncoder
from edge.text.reply import CallBegin, CallEnd, ContentText, ReasoningText, joined
from edge.text.tools.grammar import MOST_CALLS
from tests.tool_templates import MINICPM5, PLAIN, QWEN3, TEMPLATES

ASKED = (Message("user", "What is the weather in Paris in degrees, and what time is it there?"),)
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "number"}},
    "required": ["x", "y"],
}
PROPERTIES: dict[str, Any] = {
    "city": {"type": "string", "maxLength": 20},
    "unit": {"enum": ["celsius", "kelvin"]},
    "days": {"type": "integer", "minimum": 1, "maximum": 14},
    "exact": {"type": "boolean"},
    "note": {"type": ["string", "null"], "maxLength": 12},
    "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    "from": POINT,
    "mode": {"const": "fast"},
    "max-size": {"type": "number", "minimum": -3, "maximum": 3},
    "level": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
}


def tools(count: int) -> tuple[Tool, ...]:
    """Each with three of the properties, two of them required."""
    names = list(PROPERTIES)
    found = []
    for i in range(count):
        chosen = [names[(i + step * (1 + i // 10)) % 10] for step in (0, 3, 4)]
        chosen = list(dict.fromkeys(chosen))
        schema = {"type": "object", "properties": {n: PROPERTIES[n] for n in chosen}, "required": chosen[:2]}
        found.append(Tool(f"tool-{i}" if i % 2 else f"tool_{i}", f"Does {i}.", schema))
    return tuple(found)


@pytest.fixture(scope="module")
def model(smollm2: Model) -> Iterator[Model]:
    yield smollm2


def prepared(model: Model, template: str, request: Request) -> Prepared:
    encoder = PromptEncoder(ChatTemplate(template), model.tokenizer)
    return prepare(request, encoder, merge_settings(request=request.settings))


def answered(model: Model, found: Prepared) -> Stream:
    session = model.session()
    stream = Stream(
        lambda cancelled, ended: answer_prepared(found, session, model.tokenizer, cancelled, ended)
    )
    session.begin(stream)
    return stream


def check(done: Any, given: tuple[Tool, ...], template: str) -> None:
    """Whole, nothing but calls, and each as its schema says."""
    assert done.stop_reason == "eos" and done.content == "" and done.calls
    for call in done.calls:
        (tool,) = (tool for tool in given if tool.name == call.name)
        jsonschema.validate(call.arguments, tool.parameters)
    assert len({call.id for call in done.calls}) == len(done.calls)


@pytest.mark.parametrize("name", [*TEMPLATES, "plain"])
def test_required_calls_are_valid(model: Model, name: str) -> None:
    """In the model's own syntax, whatever is sampled: all ten tools for SmolLM2's, some for each other."""
    template = {**TEMPLATES, "plain": PLAIN}[name]
    given = tools(10)
    first = [*TEMPLATES, "plain"].index(name)
    for i in range(10) if name == "plain" else (first, first + 2):
        settings = {"seed": i, "temperature": 1.0, "max_new_tokens": 250}
        request = Request(ASKED, given[i % 10 :][:1], REQUIRED, False, thinking=False, settings=settings)
        done = answered(model, prepared(model, template, request)).result
        check(done, given, template)
        assert len(done.calls) == 1


def test_several_calls_at_once(model: Model) -> None:
    """Small models do not stop by themselves: the grammar ends it."""
    tool = Tool("f", "", {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})
    ends = {token: -100.0 for token in model.tokenizer.end_tokens}
    settings = {"seed": 1, "max_new_tokens": 400, "logit_bias": ends}
    for name in ("qwen3", "minicpm4-mcp", "minicpm5"):
        request = Request(ASKED, (tool,), REQUIRED, thinking=False, settings=settings)
        done = answered(model, prepared(model, TEMPLATES[name], request)).result
        check(done, (tool,), TEMPLATES[name])
        assert len(done.calls) == (MOST_CALLS if name != "minicpm4-mcp" else len(done.calls)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEMPLATES, "plain"])
def test_required_calls_of_a_hundred_tools_are_valid(model: Model, name: str) -> None:
    template = {**TEMPLATES, "plain": PLAIN}[name]
    given = tools(100)
    for i in range(0, 100, 4):
        request = Request(
            ASKED,
            given[i : i + 4],
            REQUIRED,
            False,
            thinking=False,
            settings={"seed": i, "temperature": 1.0, "max_new_tokens": 1500},
        )
        check(answered(model, prepared(model, template, request)).result, given, template)


def test_a_named_tool_is_the_one_that_is_called(model: Model) -> None:
    given = tools(4)
    choice = ToolChoice("named", "tool-3")
    request = Request(ASKED, given, choice, False, settings={"seed": 1, "max_new_tokens": 200})
    done = model.reply(request).result
    check(done, given, PLAIN)
    assert [call.name for call in done.calls] == ["tool-3"]


def test_a_call_that_has_begun_is_valid(model: Model) -> None:
    """With the choice left to the model: here it is led to the mark by the grammar's own freedom."""
    given = tools(4)
    begin = model.tokenizer.encode("<tool_call>", add_bos=False)
    request = Request(ASKED, given, AUTO, settings={"temperature": 0, "max_new_tokens": 300})
    found = model.prepare(request)
    constraint = found.constraint()
    assert constraint is not None
    for token in (*model.tokenizer.encode("Well.\n", add_bos=False), *begin):
        allowed = constraint.allowed()
        assert allowed is None or allowed[token // 32] >> (token % 32) & 1
        constraint.advance(token)
    assert not constraint.is_complete
    text = model.tokenizer.decode(list(constraint.forced()))
    assert text.startswith('\n{"name": "tool')


def test_without_a_wish_for_calls_text_is_free(model: Model) -> None:
    settings = {"temperature": 0, "max_new_tokens": 24}
    for choice in (AUTO, NONE):
        done = model.reply(Request(ASKED, tools(2), choice, settings=settings)).result
        assert done.calls == () and done.content == done.text != ""
    free = model.reply(Request(ASKED, settings=settings)).result
    chat = model.chat(**settings)
    assert free.tokens == chat.send(ASKED[0].content).tokens and free.content == free.text


def test_no_call_can_begin_where_none_is_wanted(model: Model) -> None:
    constraint = model.prepare(Request(ASKED, tools(2), NONE)).constraint()
    assert constraint is not None
    *begun, last = model.tokenizer.encode("<tool_call>", add_bos=False)
    for token in begun:
        constraint.advance(token)
    allowed = constraint.allowed()
    assert allowed is not None and not allowed[last // 32] >> (last % 32) & 1


def test_the_parts_of_a_stream_are_the_reply(model: Model) -> None:
    request = Request(ASKED, tools(3), REQUIRED, False, settings={"seed": 2, "max_new_tokens": 200})
    stream = model.reply(request)
    chunks = list(stream)
    parts = joined(part for chunk in chunks for part in chunk.parts)
    done = stream.result
    assert "".join(chunk.text for chunk in chunks) == done.text
    assert isinstance(parts[0], CallBegin) and isinstance(parts[-1], CallEnd)
    assert [(part.call.name, part.call.arguments) for part in parts if isinstance(part, CallEnd)] == [
        (call.name, call.arguments) for call in done.calls
    ]


def test_marks_that_are_control_tokens_are_read_and_not_shown(model: Model) -> None:
    """SmolLM2's own control tokens in the place of the marks, as in models whose marks are such."""
    marks = {"<tool_call>": "<jupyter_code>", "</tool_call>": "<jupyter_output>"}
    marks |= {"<think>": "<issue_start>", "</think>": "<issue_closed>"}
    template = QWEN3
    for mark, token in marks.items():
        template = template.replace(mark, token)
    given = tools(4)
    settings = {"seed": 3, "temperature": 1.0, "max_new_tokens": 200}
    request = Request(ASKED, given, REQUIRED, False, thinking=False, settings=settings)
    found = prepared(model, template, request)
    special = model.tokenizer.special_tokens
    assert {special["<jupyter_code>"], special["<jupyter_output>"]} <= found.visible
    done = answered(model, found).result
    check(done, given, template)
    assert special["<jupyter_code>"] in done.tokens and "<jupyter_code>" in done.text


@pytest.mark.parametrize("template", [MINICPM5, QWEN3], ids=["opened by the prompt", "by the model"])
def test_thinking_is_apart_from_calls(model: Model, template: str) -> None:
    """A budget ends it where the prompt has begun it; a required call follows either way."""
    given = tools(2)
    settings = {"seed": 4, "temperature": 0.5, "max_new_tokens": 300}
    request = Request(ASKED, given, REQUIRED, False, thinking_budget=10, settings=settings)
    found = prepared(model, template, request)
    if template is MINICPM5:
        assert model.tokenizer.decode(found.prompt).endswith("<think>\n")
        done = answered(model, found).result
        check(done, given, template)
        assert done.reasoning and done.text.index("</think>") < 100
    parser = found.parser()
    text = "Hm.\n</think>\n\nYes." if template is MINICPM5 else "<think>\nHm.\n</think>\n\nYes."
    assert joined([*parser.push(text), *parser.finish()]) == [ReasoningText("Hm."), ContentText("Yes.")]


def test_thinking_that_takes_all_tokens_leaves_no_content(model: Model) -> None:
    request = Request(ASKED, settings={"temperature": 0, "max_new_tokens": 6})
    done = answered(model, prepared(model, MINICPM5, request)).result
    assert (done.stop_reason, done.content, done.reasoning) == ("length", "", done.text.strip())


def test_content_of_a_schema_beside_tools(model: Model) -> None:
    from edge.engine.constraints.grammar import Grammar

    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    settings = {"seed": 5, "max_new_tokens": 300}
    request = Request(ASKED, tools(1), AUTO, False, Grammar.json_schema(schema), settings=settings)
    done = model.reply(request).result
    assert done.stop_reason == "eos"
    if not done.calls:
        jsonschema.validate(json.loads(done.content or ""), schema)
    with pytest.raises(EdgeError, match="regex grammar and tools"):
        model.prepare(Request(ASKED, tools(1), AUTO, grammar=Grammar.regex("a+")))


def test_what_can_not_be_kept_to_is_refused(model: Model) -> None:
    odd = Tool("odd", "", {"type": "object", "properties": {"a": {"type": "string", "contentEncoding": "x"}}})
    pattern = Tool("odd", "", {"type": "object", "properties": {"a": {"type": "string", "pattern": "x+"}}})
    together = Tool("odd", "", {"type": "object", "properties": {"a": {}}, "dependentRequired": {"a": ["b"]}})
    with pytest.raises(EdgeError, match="there are no tools"):
        model.prepare(Request(ASKED, (), REQUIRED))
    for template, tool, word in (
        (MINICPM5, pattern, "'pattern'"),
        (MINICPM5, together, "'dependentRequired'"),
    ):
        with pytest.raises(EdgeError, match=word):
            prepared(model, template, Request(ASKED, (tool,), REQUIRED))
        assert prepared(model, template, Request(ASKED, (tool,))).prompt  # a free choice does not fail
    assert model.prepare(Request(ASKED, (odd,))).prompt
    with pytest.raises(EdgeError, match="'tempo'"):
        model.prepare(Request(ASKED, settings={"tempo": 1}))


def test_settings_of_another_vocabulary_are_refused_before_anything_is_computed(model: Model) -> None:
    size = model.tokenizer.vocab_size
    messages = (Message("user", "Hello"),)
    model.prepare(Request(messages, settings={"logit_bias": {size - 1: 1.0}}))
    chat = model.chat()
    for wrong in ({"logit_bias": {size: 1.0}}, {"eos_token_id": size}):
        with pytest.raises(TokenizerError, match=f"{size}"):
            model.prepare(Request(messages, settings=wrong))
        with pytest.raises(TokenizerError, match=f"{size}"):
            chat.stream("Hello", **wrong)
        with pytest.raises(TokenizerError, match=f"{size}"):
            model.chat(**wrong)
    assert chat.messages == ()
