"""Chat templates: the same text as transformers renders, errors in one sentence, and a closed sandbox."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EdgeError
from edge.text.chat_template import ChatTemplate, supports_thinking

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What larger templates use: tools, macros, namespaces, loop controls, tojson options, generation, thinking.
TOOLS = """
{#- a comment #}
{%- macro describe(tool) %}
{{ tool.function.name }}({% for name, kind in tool.function.parameters.properties|items %}
{{ name }}: {{ kind.type }}{{ ', ' if not loop.last }}{% endfor %})
{%- endmacro %}
{{- bos_token }}
{%- set ns = namespace(last=-1, seen=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools ' ~ tools|length ~ '\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\\n' }}
        {{- describe(tool) }}
    {%- endfor %}
    {{- tools | tojson(indent=2, sort_keys=true) }}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<tool>' + message.content | trim + '</tool>' }}
        {%- continue %}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
        {{- '<|im_start|>assistant\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<call>' }}{{ call.function.arguments | tojson(separators=(',', ':')) }}</call>
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {%- set parts = [message.content] if message.content is string else message.content %}
        {{- '<|im_start|>%s\\n' % message.role }}{{ parts | join(' ') }}{{- '<|im_end|>\\n' }}
    {%- endif %}
    {%- if loop.index0 > 50 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
  {%- if ns.last < 0 %}
    {{ raise_exception('No user query found in messages.') }}
  {%- endif %}
"""

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Le temps qu'il fait <ici> & là 天气",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "  hi\n"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 <b>&"}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c {{ 1 }} {% if %}"},
    ],
    "calls": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}],
        },
        {"role": "tool", "content": " 20° \n"},
    ],
}


@pytest.fixture(scope="module")
def reference() -> Callable[..., str]:
    """transformers' own rendering."""
    module = pytest.importorskip("transformers.utils.chat_template_utils")

    def render(template: str, messages: Any, **variables: Any) -> str:
        rendered, _ = module.render_jinja_template([messages], chat_template=template, **variables)
        found: str = rendered[0]
        return found

    return render


def minicpm4_template(shared_data: Path) -> str:
    data = json.loads((shared_data / "minicpm4-8b" / "tokenizer_config.json").read_text())
    template: str = data["chat_template"]
    return template


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_plain_templates_equal_transformers(
    reference: Callable[..., str], shared_data: Path, name: str, prompt: bool
) -> None:
    for template in (CHATML, minicpm4_template(shared_data)):
        messages = CONVERSATIONS[name]
        expected = reference(template, messages, add_generation_prompt=prompt)
        assert ChatTemplate(template).render(messages, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"tools": [TOOL, TOOL]},
        {"enable_thinking": False},
        {"enable_thinking": True, "add_generation_prompt": False},
    ],
)
def test_a_tool_template_equals_transformers(
    reference: Callable[..., str], name: str, variables: dict[str, Any]
) -> None:
    given = {"add_generation_prompt": True, **variables}
    expected = reference(TOOLS, CONVERSATIONS[name], bos_token="<s>", **given)
    assert ChatTemplate(TOOLS, {"bos_token": "<s>"}).render(CONVERSATIONS[name], **variables) == expected


def test_the_default_models_template_is_the_one_tested(smollm2_gguf: Path) -> None:
    import gguf

    assert gguf.GGUFReader(smollm2_gguf).fields["tokenizer.chat_template"].contents() == CHATML


def test_thinking_is_recognized() -> None:
    assert supports_thinking(TOOLS)
    assert ChatTemplate(TOOLS).supports_thinking
    assert not supports_thinking(CHATML)


def test_documents_and_the_date_are_there() -> None:
    template = "{{ documents[0].text }} {{ strftime_now('%Y') }}"
    assert ChatTemplate(template).render([], documents=[{"text": "d"}]) == time.strftime("d %Y")


def test_a_refusal_carries_the_templates_message() -> None:
    with pytest.raises(EdgeError, match="does not accept these messages: No user query found in messages"):
        ChatTemplate(TOOLS).render([{"role": "assistant", "content": "x"}])


@pytest.mark.parametrize(
    "source", ["{% for x in %}", "{{ a", "{% endfor %}", "{% unknown %}", "{{ x | nofilter }}"]
)
def test_invalid_templates_are_refused(source: str) -> None:
    with pytest.raises(EdgeError, match="not valid Jinja in line 1") as caught:
        ChatTemplate(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ nothing.attribute }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{{ (messages|attr('__class__')).__init__.x }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% include 'x' %}",
    ],
)
def test_failures_and_forbidden_access_get_one_sentence(source: str) -> None:
    with pytest.raises(EdgeError, match="The chat template failed") as caught:
        ChatTemplate(source).render([{"role": "user", "content": "a"}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_endless_templates_are_stopped(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(EdgeError, match="takes too long"):
        ChatTemplate(source, time_limit=0.2).render([])
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 12 }}",
        "{{ 10 ** 12 * [1] }}",
        "{{ 2 ** (10 ** 8) }}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% for i in range(9999) %}{{ s }}{% endfor %}",
    ],
)
def test_giant_texts_are_stopped(source: str) -> None:
    with pytest.raises(EdgeError, match=r"builds a text of more than|raises to a power"):
        ChatTemplate(source).render([])


@pytest.mark.parametrize("message", ["text", None, ["role", "user"]])
def test_a_message_must_be_an_object(message: Any) -> None:
    with pytest.raises(EdgeError, match="must be an object with 'role' and 'content'"):
        ChatTemplate(CHATML).render([message])


def test_objects_do_not_reach_the_template() -> None:
    with pytest.raises(EdgeError, match="plain JSON values, not P"):
        ChatTemplate("{{ messages[0].content.home() }}").render([{"role": "user", "content": Path()}])


def test_the_callers_messages_stay_as_they_are() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    template = ChatTemplate("{{ messages[0].content[0].text }}{% set messages = [] %}")
    assert template.render([message]) == "a"
    assert message == {"role": "user", "content": [{"type": "text", "text": "a"}]}
