"""No message is lost while rendering: templates that want typed parts get them, others are refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EdgeError
from edge.system.notices import EdgeWarning
from edge.text.answer_memory import AnswerMemory
from edge.text.chat_template import ChatTemplate, TemplateLimitError, template_worker
from edge.text.isolation.worker import Worker
from edge.text.prompts import Message, PromptEncoder

SYSTEM, USER, AGAIN = Message("system", "SYS"), Message("user", " Hi?\n"), Message("user", "More")
ANSWER = Message("assistant", "Yes", (7, 8, 9))
CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, AGAIN],
    "answer first": [ANSWER, USER],
}
LOOP = "{{% for m in messages %}}<|{{{{ m.role }}}}|>{}<end>{{% endfor %}}"
PARTS = {
    "loop": LOOP.format(
        "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
    ),
    "first": LOOP.format("{{ m.content[0].text }}"),
    "first by key": LOOP.format("{{ m['content'][0]['text'] + '.' }}"),
    "map": LOOP.format("{{ m.content | map(attribute='text') | join('') }}"),
    "select": LOOP.format(
        "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text }}{% endfor %}"
    ),
    "trimmed": LOOP.format("{% for c in m.content %}{{ c['text'] | trim }}{% endfor %}"),
}
TEXT = {
    "plain": LOOP.format("{{ m.content }}"),
    "both": LOOP.format(
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}*{{ c.text }}{% endfor %}{% endif %}"
    ),
    "trimmed": LOOP.format("{{ m.content | trim }}"),
    "upper": LOOP.format("{{ m.content | upper }}"),
    "without thinking": LOOP.format("{{ m.content.split('</think>')[-1] }}"),
    "json": "{{ messages | tojson }}",
    "ascii json": "{{ messages | tojson(ensure_ascii=true) }}",
    "json of text": LOOP.format('{"text": "{{ m.content }}"}'),
    "python": "{{ messages }}",
    "system in the first question": (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.s = m.content ~ '\n' %}{% else %}<|{{ m.role }}|>{{ ns.s ~ m.content }}{% set ns.s = '' %}"
        "{% endif %}{% endfor %}"
    ),
}
MIXED = {
    "system as text": (
        "{% if messages[0].role == 'system' %}{{ '<<' + messages[0].content + '>>' }}"
        "{% set messages = messages[1:] %}{% endif %}"
        + LOOP.format("{% for c in m.content %}{{ c.text }}{% endfor %}"),
        {"user", "assistant"},
    ),
    "user as parts": (
        LOOP.format(
            "{% if m.role == 'user' %}{% for c in m.content %}{{ c.text }}{% endfor %}"
            "{% else %}{{ m.content }}{% endif %}"
        ),
        {"user"},
    ),
}


class Characters:
    """A tokenizer whose ids are characters, and where an answer's own ids are seen at once."""

    special_tokens: dict[str, int] = {}  # noqa: RUF012

    def protect(self, text: str) -> str:
        return text

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(character) for character in text]


def shown(ids: list[int]) -> str:
    return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    found = template_worker()
    yield found
    found.close()


@pytest.fixture
def prompt(worker: Worker) -> Callable[..., str]:
    """The prompt for messages, with the three ids of the answer as \\x07\\x08\\t."""

    def make(template: str, messages: list[Message]) -> str:
        encoder = PromptEncoder(ChatTemplate(template, worker=worker), Characters())  # type: ignore[arg-type]
        return shown(encoder.encode(messages))

    return make


@pytest.fixture(scope="module")
def reference() -> Callable[..., str]:
    """transformers' rendering, with the content of some roles as typed parts."""
    module = pytest.importorskip("transformers.utils.chat_template_utils")

    def render(template: str, messages: list[Message], typed: set[str]) -> str:
        given = [
            {
                "role": m.role,
                "content": [{"type": "text", "text": m.content}] if m.role in typed else m.content,
            }
            for m in messages
        ]
        rendered, _ = module.render_jinja_template(
            [given], chat_template=template, add_generation_prompt=True
        )
        text: str = rendered[0]
        return text

    return render


@pytest.mark.parametrize("name", ["self", "messages", "tools", "add_generation_prompt", "rendered"])
def test_a_variable_may_have_any_name(worker: Worker, name: str) -> None:
    """What a request calls its variables is no argument of ours."""
    template = ChatTemplate("{{ rendered }}" + TEXT["plain"], worker=worker)
    encoder = PromptEncoder(template, Characters())  # type: ignore[arg-type]
    said = "1" if name == "rendered" else ""
    assert shown(encoder.encode([USER], **{name: 1})) == f"{said}<|user|>{USER.content}<end>"


def test_only_the_beginning_of_a_prompt_gets_a_bos(worker: Worker) -> None:
    """Also where the same text began the prompt before: what was encoded then has one."""

    class WithBos(Characters):
        def encode(self, text: str, *, add_bos: bool | None = None, **_: Any) -> list[int]:
            return [*([] if add_bos is False else [2]), *super().encode(text)]

    template = ChatTemplate("{% for m in messages %}|{{ m.content }}{% endfor %}|", worker=worker)
    encoder = PromptEncoder(template, WithBos())  # type: ignore[arg-type]
    for _ in range(2):
        assert shown(encoder.encode([AGAIN])) == "\x02|More|"
        assert shown(encoder.encode([SYSTEM, ANSWER, AGAIN])) == "\x02|SYS|\x07\x08\t|More|"


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_message_is_written_as_transformers_writes_it(
    prompt: Callable[..., str], reference: Callable[..., str], name: str
) -> None:
    messages = CONVERSATIONS[name]
    everyone = {"system", "user", "assistant"}
    cases = [(template, everyone) for template in PARTS.values()]
    cases += [(template, set()) for template in TEXT.values()]
    cases += MIXED.values()
    for template, typed in cases:
        expected = reference(template, messages, typed)
        found = prompt(template, messages)
        assert found.replace("\x07\x08\t", "Yes") == expected, template
        if "<end>" in template and "Yes" in expected:  # written as it is, so it keeps its ids
            assert "\x07\x08\t" in found, template


@pytest.mark.parametrize(
    ("template", "messages", "roles"),
    [
        (LOOP.format("{% if m.role != 'system' %}{{ m.content }}{% endif %}"), [SYSTEM, USER], "'system'"),
        ("{{ messages[-1].content }}", [SYSTEM, USER], "'system'"),
        ("{{ messages[-1].content }}", [USER, ANSWER, AGAIN], "'assistant' and 'user'"),
        (LOOP.format("{{ m.text }}"), [USER], "'user'"),
        (LOOP.format("{% for c in m.content %}{{ c.image }}{% endfor %}"), [USER], "'user'"),
        ("Hello.", [USER], "'user'"),
        # Each role is written in one form only, and never both at once.
        (
            "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}"
            "{{ messages[1].content }}{% endif %}",
            [SYSTEM, USER],
            "'user'",
        ),
    ],
)
def test_a_template_that_loses_messages_is_refused(
    prompt: Callable[..., str], template: str, messages: list[Message], roles: str
) -> None:
    with pytest.raises(EdgeError, match=f"leaves out messages of the role {roles}: begin"):
        prompt(template, messages)


SHORT = LOOP.format("{% if m.content | length < 12 %}{{ m.content }}{% endif %}")
FIRST_LINE = LOOP.format("{{ m.content.split('\n')[0] }}")


def test_a_template_that_loses_long_messages_is_refused(prompt: Callable[..., str]) -> None:
    """The short sentinel passes there."""
    assert prompt(SHORT, [USER, ANSWER, AGAIN])
    with pytest.raises(EdgeError, match="writes nothing of the user's message 'A longer message'"):
        prompt(SHORT, [USER, ANSWER, Message("user", "A longer message")])


def test_a_changed_message_is_told(prompt: Callable[..., str]) -> None:
    with pytest.warns(EdgeWarning, match="changes the user's message"):
        assert prompt(FIRST_LINE, [Message("user", "One\ntwo")]) == "<|user|>One<end>"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # spaces around it, and an answer's thinking, are no loss
        prompt(TEXT["trimmed"], [USER])
        prompt(TEXT["without thinking"], [USER, Message("assistant", "<think>x</think>y"), AGAIN])


@pytest.mark.parametrize("forged", ["\ufdd10\ufdd2", "\ufdd199\ufdd2", "\ufdd1" + "9" * 5000 + "\ufdd2"])
def test_a_template_can_not_forge_a_sentinel(prompt: Callable[..., str], forged: str) -> None:
    with pytest.raises(EdgeError, match="itself, which is no character"):
        prompt(TEXT["plain"] + forged, [USER])


def test_answers_before_the_first_question_may_be_left_out(prompt: Callable[..., str]) -> None:
    template = (
        "{% set ns = namespace(on=false) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.on = true %}{% endif %}{% if ns.on %}{{ m.content }};{% endif %}{% endfor %}"
    )
    assert prompt(template, [ANSWER, USER, ANSWER, AGAIN]) == " Hi?\n;\x07\x08\t;More;"


def test_the_templates_own_refusal_is_passed_on(prompt: Callable[..., str]) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}x"
    with pytest.raises(EdgeError, match="does not accept these messages: No system role"):
        prompt(template, [SYSTEM, USER])


@pytest.mark.parametrize("content", ["{{ messages | tojson }}", "{{ messages[0].content }}"])
def test_a_printed_list_of_parts_is_no_text(prompt: Callable[..., str], content: str) -> None:
    template = "{% if messages[0].content is string %}{{ raise_exception('no text') }}{% endif %}" + content
    with pytest.raises(EdgeError, match="does not accept these messages: no text"):
        prompt(template, [USER])


def test_a_breach_of_a_limit_is_not_tried_in_other_forms(worker: Worker) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(endless, worker=worker, time_limit=1.0)
    renders = []
    render = template.render
    template.render = lambda *given, **named: renders.append(1) or render(*given, **named)  # type: ignore
    with pytest.raises(TemplateLimitError):
        PromptEncoder(template, Characters()).encode([USER])  # type: ignore[arg-type]
    assert renders == [1]


def test_the_published_templates_keep_every_message(prompt: Callable[..., str], shared_data: Path) -> None:
    for folder in ("minicpm4-0.5b", "minicpm4-8b"):
        settings = json.loads((shared_data / folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        for messages in CONVERSATIONS.values():
            found = prompt(settings["chat_template"], messages)
            for message in messages:
                text = "\x07\x08\t" if message.tokens else message.content.strip()
                assert text in found


def test_answers_keep_their_ids_when_they_come_back_as_text(smollm2) -> None:
    """Behind the prompt that they answered, and nowhere else; what they say is the same."""
    tokenizer = smollm2.tokenizer
    encoder = PromptEncoder(smollm2.chat_template, tokenizer)
    asked = [Message("user", "Hello")]
    prompt = encoder.encode(asked)
    own = [
        token for letter in "Hi there" for token in tokenizer.encode(letter, add_bos=False, continues=True)
    ]
    assert own != tokenizer.encode("Hi there", add_bos=False, continues=True)
    again = [*asked, Message("assistant", "Hi there"), Message("user", "Yes?")]
    plain = encoder.encode(again)
    encoder.answers.remember(prompt, "Hi there", own)
    found = encoder.encode(again)
    assert found[: len(prompt) + len(own)] == [*prompt, *own] and found != plain
    assert tokenizer.decode(found, skip_special=False) == tokenizer.decode(plain, skip_special=False)
    longer = [*again, Message("assistant", "Hi there"), Message("user", "No.")]
    assert encoder.encode(longer)[: len(found)] == found  # the second one answered something else
    other = [Message("user", "Hullo"), *again[1:]]
    assert encoder.encode(other) == PromptEncoder(smollm2.chat_template, tokenizer).encode(other)
    encoder.answers.remember(prompt, "Hi there", own[:-1])  # does not say that
    assert encoder.encode(again) == plain


def test_an_answer_memory_has_a_limit() -> None:
    memory = AnswerMemory(30)
    memory.remember([1], "0123456789", [1, 2])
    memory.remember([2], "0123456789", [3, 4])
    assert memory.find([1], "0123456789") == [1, 2] and memory.find([3], "0123456789") is None
    memory.remember([1], "ab", [7, 8])
    memory.remember([1], "ab", [7, 9])
    memory.remember([4], "abc", [9])
    assert memory.find([2], "0123456789") is None and memory.find([1], "ab") == [7, 9]
    assert memory.has("0123456789") and memory.has("abc") and not memory.has("x")
    memory.remember([1], "x" * 40, [])
    assert not memory.has("abc") and not memory.has("x" * 40) and memory._size == 0
