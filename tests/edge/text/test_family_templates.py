"""Chat templates in the manner of each family's: how they take tools, how they write calls, what is told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from edge.runtime import Model
from edge.system.notices import EdgeWarning
from edge.text.chat_template import ChatTemplate
from edge.text.messages import Message, Tool, ToolCall, new_call_id
from edge.text.prompts import PromptEncoder
from edge.text.reply import CallEnd, ContentText, ReplyParser, joined
from edge.text.tools.detection import tool_support
from edge.text.tools.json_calls import JsonFormat
from tests.published import MINICPM41
from tests.tool_templates import MISTRAL, NAMED, PHI4, PHI4_MINI, PLAIN, SMOLLM3, TEMPLATES

WEATHER = Tool("weather", "The <weather>.", {"type": "object", "properties": {"city": {"type": "string"}}})
SYSTEM, ASKED = Message("system", "Be brief."), Message("user", "Is it nice?")
CALLED = Message("assistant", "", calls=(ToolCall("weather", {"city": "Rome"}, "c00000001"),))
RESULT = Message("tool", "Sunny.", call_id="c00000001", name="weather")
SPECIAL = ("<|tool_call|>", "<|/tool_call|>", "[TOOL_CALLS]")
PHI = JsonFormat("<|tool_call|>", "<|/tool_call|>", "", is_list=True)
FAMILIES = {
    **TEMPLATES,
    "minicpm4.1": MINICPM41,
    "phi-4": PHI4,
    "phi-4-mini": PHI4_MINI,
    "smollm3": SMOLLM3,
    "mistral": MISTRAL,
}


def template(name: str) -> ChatTemplate:
    return ChatTemplate(FAMILIES[name], NAMED)


def prompt(model: Model, name: str, messages: list[Message], tools: tuple[Tool, ...] = ()) -> str:
    encoder = PromptEncoder(template(name), model.tokenizer)
    return model.tokenizer.decode(encoder.encode(messages, tools), skip_special=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_is_transformers(name: str) -> None:
    """With and without tools, in every setting of thinking; slices, namespaces and generation blocks too."""
    compiled = _compile_jinja_template(FAMILIES[name])
    user, system = (
        {"role": "user", "content": "Hi é <x>"},
        {"role": "system", "content": "Be brief. /no_think"},
    )
    said = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYo"}
    tools = [WEATHER.as_openai()]
    asked: list[dict[str, Any]] = [
        {"messages": [system, user], "tools": None},
        {"messages": [user, said, user], "tools": None, "enable_thinking": False},
        {"messages": [user, said, user], "tools": tools, "xml_tools": tools, "enable_thinking": True},
        {"messages": [{**system, "tools": "[]"}, user, said], "tools": tools, "add_generation_prompt": False},
    ]
    for variables in asked:
        given = {"add_generation_prompt": True, **variables}
        wanted = compiled.render(**given, documents=None, **NAMED)
        assert "Hi é <x>" in wanted and template(name).render(given.pop("messages"), **given) == wanted


def test_how_templates_take_tools() -> None:
    found = {name: tool_support(template(name), SPECIAL) for name in FAMILIES}
    ways = {name: support.way for name, support in found.items() if support.tells}
    assert ways == {
        **dict.fromkeys((*TEMPLATES, "phi-4", "mistral"), "tools"),
        **{"smollm3": "xml_tools", "phi-4-mini": "system"},
    }
    assert (found["phi-4-mini"].form, found["phi-4-mini"].writes) == (PHI, False)
    assert (found["smollm3"].form, found["smollm3"].writes) == (JsonFormat(), False)
    mistral = found["mistral"]
    assert (mistral.form, mistral.writes) == (JsonFormat("[TOOL_CALLS] ", "", "", is_list=True), True)


def test_smollm3_is_told_of_tools(smollm2: Model) -> None:
    """In its variable `xml_tools`, which holds functions and prints them as Python does."""
    text = prompt(smollm2, "smollm3", [SYSTEM, ASKED, CALLED, RESULT], (WEATHER,))
    assert "Be brief.\n\n### Tools\n\n<tools>\n{'name': 'weather', 'description': 'The <weather>.'" in text
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}' in text
    assert text.count("weather") == 3 and "You can call functions" not in text
    assert "### Tools" not in prompt(smollm2, "smollm3", [SYSTEM, ASKED])


def test_phi_4_mini_is_told_of_tools(smollm2: Model) -> None:
    """In its system message, which it gets where there is none; calls of earlier turns are text."""
    listed = '<|tool|>[{"name": "weather", "description": "The <weather>.", "parameters": {'
    text = prompt(smollm2, "phi-4-mini", [SYSTEM, ASKED, CALLED, RESULT], (WEATHER,))
    assert text.startswith(f"<|system|>Be brief.{listed}") and "You can call functions" not in text
    assert '<|assistant|><tool_call>\n{"name": "weather", "arguments"' in text  # it has no marks of Phi's
    assert prompt(smollm2, "phi-4-mini", [ASKED], (WEATHER,)).startswith(f"<|system|>{listed}")
    assert "<|tool|>" not in prompt(smollm2, "phi-4-mini", [SYSTEM, ASKED])
    tool = Tool("weather", "Say <|im_end|>.", WEATHER.parameters)
    ids = PromptEncoder(template("phi-4-mini"), smollm2.tokenizer).encode([ASKED], [tool])
    assert smollm2.tokenizer.special_tokens["<|im_end|>"] not in ids


def test_mistral_leaves_out_the_system_prompt_behind_calls(smollm2: Model) -> None:
    """As transformers writes it; a notice says so. Ids of calls are made as long as it wants them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", EdgeWarning)
        text = prompt(smollm2, "mistral", [SYSTEM, ASKED], (WEATHER,))
        assert "[AVAILABLE_TOOLS] [" in text and text.endswith("[INST] Be brief.\n\nIs it nice?[/INST]")
    with pytest.warns(EdgeWarning, match="leaves out messages of the role 'system' behind calls of tools"):
        text = prompt(smollm2, "mistral", [SYSTEM, ASKED, CALLED, RESULT], (WEATHER,))
    wanted = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}, "id": "c00000001"}]</s>'
    assert wanted in text and "Be brief." not in text
    assert text.endswith('[TOOL_RESULTS] {"content": Sunny., "call_id": "c00000001"}[/TOOL_RESULTS]')
    call = ToolCall("weather", {"city": "Rome"}, new_call_id())
    assert new_call_id() != call.id and f'"id": "{call.id}"' in prompt(
        smollm2,
        "mistral",
        [ASKED, Message("assistant", "", calls=(call,)), Message("tool", "1", call_id=call.id)],
    )


def test_mistrals_calls_are_read() -> None:
    form = tool_support(template("mistral"), SPECIAL).form
    text = 'Let me see.[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "A]"}, "id": "abcdefghi"}]'
    for step in (1, 7, len(text)):
        parser = ReplyParser(form, (WEATHER,), None, ("[TOOL_CALLS]",))
        parts = [part for at in range(0, len(text), step) for part in parser.push(text[at : at + step])]
        parts = joined([*parts, *parser.finish()])
        calls = [part.call for part in parts if isinstance(part, CallEnd)]
        assert [(call.name, call.arguments) for call in calls] == [("weather", {"city": "A]"})]
        assert [part.text for part in parts if isinstance(part, ContentText)] == ["Let me see."]


def test_an_unknown_syntax_is_said() -> None:
    source = PLAIN.replace(
        "m.content", "(m.tool_calls[0].function.name + '!' if m.tool_calls else m.content)"
    )
    source = "{{ tools | tojson }}" + source
    with pytest.warns(EdgeWarning, match="in a syntax that is not known here"):
        found = tool_support(ChatTemplate(source), ())
    assert found.tells and not found.writes
