"""Chat templates: the same text as transformers renders, errors in one sentence, a closed sandbox, limits."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EdgeError
from edge.text.chat_template import ChatTemplate, TemplateLimitError, supports_thinking, template_worker

Compile = Callable[..., ChatTemplate]
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
def compiled() -> Iterator[Compile]:
    """`ChatTemplate` with one process for all templates of this module."""
    worker = template_worker()
    yield functools.partial(ChatTemplate, worker=worker)
    worker.close()


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
    compiled: Compile, reference: Callable[..., str], shared_data: Path, name: str, prompt: bool
) -> None:
    for template in (CHATML, minicpm4_template(shared_data)):
        messages = CONVERSATIONS[name]
        expected = reference(template, messages, add_generation_prompt=prompt)
        assert compiled(template).render(messages, add_generation_prompt=prompt) == expected


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
    compiled: Compile, reference: Callable[..., str], name: str, variables: dict[str, Any]
) -> None:
    given = {"add_generation_prompt": True, **variables}
    expected = reference(TOOLS, CONVERSATIONS[name], bos_token="<s>", **given)
    assert compiled(TOOLS, {"bos_token": "<s>"}).render(CONVERSATIONS[name], **variables) == expected


def test_the_default_models_template_is_the_one_tested(smollm2_gguf: Path) -> None:
    import gguf

    assert gguf.GGUFReader(smollm2_gguf).fields["tokenizer.chat_template"].contents() == CHATML


def test_thinking_is_recognized(compiled: Compile) -> None:
    assert supports_thinking(TOOLS)
    assert compiled(TOOLS).supports_thinking
    assert not supports_thinking(CHATML)


def test_documents_and_the_date_are_there(compiled: Compile) -> None:
    template = "{{ documents[0].text }} {{ strftime_now('%Y') }}"
    assert compiled(template).render([], documents=[{"text": "d"}]) == time.strftime("d %Y")


def test_a_refusal_carries_the_templates_message(compiled: Compile) -> None:
    with pytest.raises(EdgeError, match="does not accept these messages: No user query found in messages"):
        compiled(TOOLS).render([{"role": "assistant", "content": "x"}])


@pytest.mark.parametrize(
    "source", ["{% for x in %}", "{{ a", "{% endfor %}", "{% unknown %}", "{{ x | nofilter }}"]
)
def test_invalid_templates_are_refused(compiled: Compile, source: str) -> None:
    with pytest.raises(EdgeError, match="not valid Jinja in line 1") as caught:
        compiled(source)
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
def test_failures_and_forbidden_access_get_one_sentence(compiled: Compile, source: str) -> None:
    with pytest.raises(EdgeError, match="The chat template failed") as caught:
        compiled(source).render([{"role": "user", "content": "a"}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ %s }}" % ("7" * 5000), "4300 digits"),
        ("".join(f"{{% for a{i} in [1] %}}" for i in range(25)) + "{% endfor %}" * 25, "nested blocks"),
        ("{{ " + "(" * 99999 + "1" + ")" * 99999 + " }}", "recursion"),
    ],
)
def test_what_python_cannot_compile_is_refused(compiled: Compile, source: str, reason: str) -> None:
    with pytest.raises(EdgeError, match=rf"not valid Jinja \(.*{reason}") as caught:
        compiled(source)
    assert len(str(caught.value)) < 400


def test_half_characters_and_nul_go_through(compiled: Compile) -> None:
    template = compiled("\x00\ud800 {{ '\\ud801' }} {{ messages[0].content }}")
    assert template.render([{"content": "\udfff\x00"}]) == "\x00\ud800 \ud801 \udfff\x00"


def test_a_giant_message_of_an_error_is_cut_and_made_printable(compiled: Compile) -> None:
    with pytest.raises(EdgeError, match=r"these messages: \[31mred x+\.$") as caught:
        compiled("{{ raise_exception('\x1b[31mred\n\n' ~ 'x' * 10000000) }}").render([])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ lipsum(n=99999999) }}",
        "{{ (7 ** 9999999) % 10 }}",
    ],
)
def test_endless_templates_are_stopped(compiled: Compile, source: str) -> None:
    begin = time.monotonic()
    with pytest.raises(TemplateLimitError, match=r"failed \(it takes more than 0\.5 seconds\)"):
        compiled(source, time_limit=0.5).render([])
    assert time.monotonic() - begin < 10
    assert compiled("again").render([]) == "again"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 12 }}",
        "{{ 10 ** 12 * [1] }}",
        "{{ 'a' | center(3000000000) }}",
        "{{ 'a'.ljust(3000000000) }}",
        "{{ '%3000000000d' % 1 }}",
        "{{ '%*d' % (2000000000, 1) }}",
        "{{ '{:3000000000d}'.format(1) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 100000) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 100000) }}",
        "{{ ([1] * 100000) | join('b' * 100000) }}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% for i in range(9999) %}{{ s }}{% endfor %}",
        "{{ 'a' * 40000000 }}",
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process can be limited on Linux only")
def test_giant_texts_are_stopped(compiled: Compile, source: str) -> None:
    with pytest.raises(TemplateLimitError, match=r"needs too much memory|result is too large"):
        compiled(source, time_limit=60).render([])
    assert compiled("again").render([]) == "again"


@pytest.mark.parametrize("message", ["text", None, ["role", "user"]])
def test_a_message_must_be_an_object(compiled: Compile, message: Any) -> None:
    with pytest.raises(EdgeError, match="must be an object with 'role' and 'content'"):
        compiled(CHATML).render([message])


def test_objects_do_not_reach_the_template(compiled: Compile) -> None:
    with pytest.raises(EdgeError, match="plain JSON values, not P"):
        compiled("{{ messages[0].content.home() }}").render([{"role": "user", "content": Path()}])


def nested(levels: int) -> Any:
    """A list in a list in a list."""
    found: Any = "a"
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(10**5000, "whole numbers of 4096 bits", id="number"),
        pytest.param(nested(9999), "nested 100 levels", id="nested"),
        ({1: "a"}, "plain JSON values"),
    ],
)
def test_messages_that_cannot_be_sent_are_refused(compiled: Compile, content: Any, reason: str) -> None:
    with pytest.raises(EdgeError, match=reason):
        compiled(CHATML).render([{"role": "user", "content": content}])


def test_the_callers_messages_stay_as_they_are(compiled: Compile) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    template = compiled("{{ messages[0].content[0].text }}{% set messages = [] %}")
    assert template.render([message]) == "a"
    assert message == {"role": "user", "content": [{"type": "text", "text": "a"}]}


def test_variables_are_plain_up_to_their_limits():
    """100 levels below the outermost, and numbers of 4096 bits."""

    def nested(levels: int) -> list[object]:
        value: list[object] = []
        for _ in range(levels):
            value = [value]
        return value

    template = ChatTemplate("{{ variable is defined }}")
    for inside, beyond in ((nested(99), nested(100)), (2**4096 - 1, 2**4096), (1 - 2**4096, -(2**4096))):
        assert template.render([], variable=inside) == "True"
        with pytest.raises(EdgeError, match=r"100 levels deep|4096 bits"):
            template.render([], variable=beyond)


def test_what_is_said_at_a_rendering_is_stronger_than_the_special_tokens() -> None:
    """As in transformers; but nothing takes the place of the messages."""
    template = ChatTemplate("{{ bos_token }}{{ eos_token }}{{ messages|length }}", {"bos_token": "<s>"})
    assert template.render([]) == "<s>0"
    assert template.render([], bos_token="<b>", eos_token="<e>") == "<b><e>0"
    named = ChatTemplate("{{ messages|length }}{{ tools }}", {"messages": "abc", "tools": "t"})
    assert named.render([{}]) == "1None"
