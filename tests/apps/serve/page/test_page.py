"""The chat page in a real browser: answers as they stream, what is kept, what is refused."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("starlette", reason="the package starlette is not installed")
pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")

from edge.apps.serve.page_files import POLICY
from tests.apps.serve.page.reading import (
    ANSWERS,
    BUSY,
    ERROR,
    FOCUS,
    NOTICE,
    QUESTIONS,
    TITLES,
    answered,
    ask,
    fill,
    find,
    press_button,
    reload,
)
from tests.apps.serve.page.scripted import ATTACK, KEY, PAGE, Script
from tests.browser import CONTROL, Page

SHIFT = 8


def test_an_answer_is_shown_with_what_it_cost(chat: Page, script: Script):
    assert answered(chat, "hello") == "Hello world, how are you?"
    assert chat.evaluate("document.querySelector('.assistant strong').textContent") == "world"
    (request,) = script.requests
    assert request["messages"] == [{"role": "user", "content": "hello"}] and request["stream"] is True
    assert request["model"] == "minicpm5-1b" and request["stream_options"] == {"include_usage": True}
    assert not {"temperature", "max_tokens", "seed", "tools", "thinking_budget"} & set(request)
    figures = chat.evaluate("document.querySelector('.figures').textContent")
    assert figures.split(" · ") == [""] or "41.3 tokens/s" in figures
    assert (
        "120 tokens (20 thinking)" in figures and "first after 0.3 s" in figures and "1,000 reused" in figures
    )
    assert chat.evaluate(FOCUS) == "message" and chat.evaluate(TITLES) == ["hello"]


def test_the_next_question_has_the_conversation_before_it(chat: Page, script: Script):
    answered(chat, "hello")
    answered(chat, "long")
    assert [each["role"] for each in script.requests[1]["messages"]] == ["user", "assistant", "user"]
    assert script.requests[1]["messages"][1]["content"] == "Hello **world**, how are you?"
    assert "cut at the limit" in chat.evaluate("document.querySelector('.note').textContent")
    gap = "document.querySelector('#scroll').scrollHeight - document.querySelector('#scroll').scrollTop"
    assert chat.evaluate(f"{gap} - document.querySelector('#scroll').clientHeight") < 2  # follows the answer


def test_text_is_shown_before_the_answer_is_complete(chat: Page, script: Script):
    ask(chat, "gated")
    chat.wait(f"{ANSWERS}.at(-1) === 'The first half,'", 20)
    assert chat.evaluate(BUSY) and chat.evaluate("document.querySelector('#send').hidden")
    assert chat.evaluate("document.querySelector('.assistant').getAttribute('aria-busy')") == "true"
    ask(chat, "not yet")  # one answer at a time: it stays in the field
    assert chat.evaluate(QUESTIONS) == ["gated"] and chat.evaluate("document.querySelector('#message').value")
    script.gate.set()
    chat.wait(f"!{BUSY}", 20)
    assert chat.evaluate(ANSWERS) == ["The first half, the second half."]


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_ends_the_request(chat: Page, script: Script, way: str):
    ask(chat, "endless")
    chat.wait(f"{ANSWERS}.at(-1).length > 20", 20)
    assert not script.closed.is_set()
    if way == "button":
        chat.click("#stop")
    else:
        chat.press("Escape")
    assert script.closed.wait(20)
    chat.wait(f"!{BUSY}", 20)
    assert chat.evaluate(ANSWERS)[0].startswith("word word") and chat.evaluate(ERROR) is None
    assert chat.evaluate("document.querySelector('.note').textContent") == "You stopped the answer."


def test_conversations_are_answered_side_by_side(chat: Page, script: Script):
    ask(chat, "gated")
    chat.wait(f"{ANSWERS}.at(-1) === 'The first half,'", 20)
    chat.press("k", CONTROL)
    assert answered(chat, "hello") == "Hello world, how are you?"
    assert chat.evaluate("[...document.querySelectorAll('li.running')].map((each) => each.innerText)") == [
        "gated"
    ]
    script.gate.set()
    chat.wait("document.querySelector('li.running') === null", 20)
    assert chat.evaluate(ANSWERS) == ["Hello world, how are you?"]
    chat.evaluate(f"document.querySelectorAll('#conversations .open')[{TITLES}.indexOf('gated')].click()")
    assert chat.evaluate(ANSWERS) == ["The first half, the second half."]


def test_conversations_survive_a_reload(chat: Page, script: Script):
    answered(chat, "hello")
    chat.press("k", CONTROL)
    assert (
        chat.evaluate("document.querySelector('#welcome').hidden") is False
        and chat.evaluate(FOCUS) == "message"
    )
    answered(chat, "long")
    reload(chat)
    assert chat.evaluate(TITLES) == ["long", "hello"] and chat.evaluate(QUESTIONS) == ["long"]
    press_button(chat, "#conversations .open")
    assert chat.evaluate(ANSWERS) == ["Hello world, how are you?"]
    chat.evaluate("history.back()")
    chat.wait(f"{QUESTIONS}[0] === 'long'", 20)


def test_half_an_answer_survives_a_reload(chat: Page, script: Script):
    ask(chat, "gated")
    chat.wait(f"{ANSWERS}.at(-1) === 'The first half,'", 20)
    reload(chat)
    assert chat.evaluate(ANSWERS) == ["The first half,"]
    assert "page was closed" in chat.evaluate("document.querySelector('.note').textContent")
    script.gate.set()
    press_button(chat, find(chat, "Answer again"))
    chat.wait(f"{ANSWERS}.at(-1) === 'The first half, the second half.'", 20)


def test_conversations_are_renamed_searched_deleted_and_brought_back(chat: Page):
    answered(chat, "hello")
    chat.press("k", CONTROL)
    answered(chat, "empty")
    assert (
        chat.evaluate("document.querySelector('.note').textContent") == "The model ended its answer at once."
    )
    press_button(chat, find(chat, "Rename \u201chello\u201d"))
    chat.type("A greeting")
    chat.press("Enter")
    assert set(chat.evaluate(TITLES)) == {"A greeting", "empty"}
    chat.evaluate("document.querySelector('#search').focus()")
    chat.type("WORLD")  # stands in an answer
    assert chat.evaluate(TITLES) == ["A greeting"]
    press_button(chat, find(chat, "Delete \u201cA greeting\u201d"))
    assert chat.evaluate(TITLES) == [] and "was deleted" in chat.evaluate(NOTICE)
    press_button(chat, "#notice button")
    assert chat.evaluate(TITLES) == ["A greeting"] and chat.evaluate(QUESTIONS) == ["hello"]


def test_a_conversation_is_exported(chat: Page):
    answered(chat, "hello")
    chat.evaluate(
        """(() => { window.exported = []; const before = URL.createObjectURL;
        URL.createObjectURL = (blob) => { exported.push(blob); return before(blob); }; })()"""
    )
    chat.click("#export")
    document = json.loads(chat.evaluate("exported[0].text()"))
    assert document["title"] == "hello"
    assert [each["content"] for each in document["messages"]] == ["hello", "Hello **world**, how are you?"]


def test_full_storage_is_said_and_does_not_stop_the_chat(chat: Page):
    chat.evaluate("localStorage.setItem('filler', 'x'.repeat(5 * 1024 * 1024 - 64 - 'filler'.length))")
    assert answered(chat, "hello") == "Hello world, how are you?"
    assert "storage is full" in chat.evaluate(NOTICE)
    assert answered(chat, "hello") == "Hello world, how are you?"


def test_entries_that_are_none_of_the_page_do_no_harm(chat: Page):
    entries = [
        "{",
        "null",
        "[]",
        '{"title": 1, "messages": []}',
        '{"title": "x", "messages": [null, {"content": 1}]}',
    ]
    store = "forEach((each, at) => localStorage.setItem(`edge.conversation.${at}`, each))"
    chat.evaluate(f"{json.dumps(entries)}.{store}, localStorage.setItem('edge.settings', '{{')")
    reload(chat)
    assert chat.evaluate(TITLES) == ["x"] and answered(chat, "hello")


def test_what_the_model_writes_is_text(chat: Page):
    text = answered(chat, "attack")
    for part in (
        "<img src=x onerror=",
        "<script>window.attacked = 2</script>",
        "javascript:window.attacked=3",
    ):
        assert part in text
    assert (
        '"><img src=x onerror=1>\n<iframe' not in text
        and '<iframe src="javascript:window.attacked = 4"></iframe>' in text
    )
    inside = ".assistant > .markdown"
    tags = set(chat.evaluate(f"[...document.querySelectorAll('{inside} *')].map((each) => each.tagName)"))
    assert tags <= set(
        re.findall(
            r"\w+", "P BR A CODE PRE FIGURE FIGCAPTION SPAN BUTTON DIV TABLE THEAD TBODY TR TH TD svg use"
        )
    )
    links = chat.evaluate(f"[...document.querySelectorAll('{inside} a')].map(({{href, rel}}) => [href, rel])")
    assert links == [
        ["https://example.org/a.png", "noopener noreferrer"],
        ["https://example.org/?a=%22", "noopener noreferrer"],
    ]
    handlers = "[...each.attributes].some(({ name }) => /^(on|style|src)/.test(name))"
    assert not chat.evaluate(f"[...document.querySelectorAll('{inside} *')].some((each) => {handlers})")
    assert chat.evaluate("window.attacked") is None and ATTACK.count("attacked") == 5


def test_no_source_parses_html():
    """Texts reach the page as texts; and what needs a style has a class."""
    sources = [path for path in PAGE.iterdir() if path.suffix in (".js", ".html")]
    assert len(sources) > 10
    for path in sources:
        parsing = (
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|\sstyle="
        )
        assert not re.search(parsing, path.read_text(encoding="utf-8")), path.name


def test_the_policy_is_in_force(chat: Page):
    """What would be an attack is seen by the watch that all these tests end with."""
    chat.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.attacked = 1\">')"
    )
    chat.wait("problems.length", 20)
    assert (
        "script-src" in chat.evaluate("problems.splice(0).join()")
        and chat.evaluate("window.attacked") is None
    )
    assert "script-src 'self'" in POLICY


def test_thinking_and_calls_are_folded_and_results_are_asked_for(chat: Page, script: Script):
    ask(chat, "weather")
    chat.wait("document.querySelector('.results') !== null", 20)
    folds = "[...document.querySelectorAll('.assistant details')]"
    assert chat.evaluate(f"{folds}.map((each) => each.open)") == [False] * 3
    labels = chat.evaluate(f"{folds}.map((each) => each.querySelector('summary').textContent)")
    assert labels[0].startswith("Thought") and labels[1:] == ["Called get_weather", "Called get_time"]
    assert chat.evaluate(ANSWERS) == ["Let me look."]
    assert chat.evaluate("document.querySelector('.thinking .inside').checkVisibility()") is False
    chat.click(".call summary")
    assert json.loads(chat.evaluate("document.querySelector('.call pre').innerText")) == {
        "city": "Zürich",
        "days": 2,
    }
    for place, text in ((1, "sunny"), (2, "noon")):
        chat.evaluate(f"document.querySelector('.results .field:nth-child({place}) textarea').focus()")
        chat.type(text)
    press_button(chat, ".results button")
    chat.wait(f"!{BUSY} && {ANSWERS}.length === 2", 20)
    asked = script.requests[-1]["messages"]
    assert [each["role"] for each in asked] == ["user", "assistant", "tool", "tool"]
    assert [each["function"]["name"] for each in asked[1]["tool_calls"]] == ["get_weather", "get_time"]
    assert [(each["tool_call_id"], each["content"]) for each in asked[2:]] == [
        ("call-0", "sunny"),
        ("call-1", "noon"),
    ]
    assert "I need the weather" not in json.dumps(asked)
    assert "sunny" in chat.evaluate("document.querySelector('.call').textContent")
    assert chat.evaluate("document.querySelector('.results')") is None


def test_questions_are_edited_and_answers_asked_for_again(chat: Page, script: Script):
    answered(chat, "hello")
    answered(chat, "empty")
    press_button(chat, find(chat, "Answer again"))
    chat.wait(f"!{BUSY} && {ANSWERS}.length === 2", 20)
    assert [each["messages"][-1]["content"] for each in script.requests] == ["hello", "empty", "empty"]
    chat.click(find(chat, "Edit and send again"))
    chat.press("Escape")
    assert chat.evaluate(QUESTIONS) == ["hello", "empty"]
    chat.click(find(chat, "Edit and send again"))
    chat.evaluate("document.activeElement.select()")
    chat.type("long")
    chat.press("Enter")
    chat.wait(f"!{BUSY} && {ANSWERS}.length === 1", 20)
    assert chat.evaluate(QUESTIONS) == ["long"] and len(script.requests[-1]["messages"]) == 1


def test_later_messages_come_back(chat: Page):
    for question in ("hello", "empty", "hello"):
        answered(chat, question)
    press_button(chat, ".message:nth-child(2) [aria-label='Answer again']")
    chat.wait(f"!{BUSY} && {ANSWERS}.length === 1", 20)
    assert "removed" in chat.evaluate(NOTICE)
    press_button(chat, "#notice button")
    assert chat.evaluate(QUESTIONS) == ["hello", "empty", "hello"] and chat.evaluate(f"{ANSWERS}.length") == 3


def test_what_was_unfolded_stays_so(chat: Page):
    answered(chat, "rich")
    chat.evaluate("document.querySelector('.thinking').open = true")
    answered(chat, "hello")
    assert chat.evaluate("document.querySelector('.thinking').open")


def test_another_tab_is_followed(chat: Page):
    answered(chat, "hello")
    chat.evaluate(
        """(() => {
          const key = Object.keys(localStorage).find((each) => each.startsWith("edge.conversation."));
          const found = JSON.parse(localStorage[key]);
          found.title = "From elsewhere";
          found.messages[0].content = "changed";
          window.other = open("/page/theme.js");
          other.localStorage.setItem(key, JSON.stringify(found));
        })()"""
    )
    chat.wait(f"{TITLES}[0] === 'From elsewhere'", 20)
    assert chat.evaluate(QUESTIONS) == ["changed"] and chat.evaluate(ANSWERS) == ["Hello world, how are you?"]
    chat.evaluate("other.localStorage.clear(), other.close()")


def test_errors_are_one_sentence_with_a_way_on(chat: Page, script: Script):
    answered(chat, "refused")
    assert chat.evaluate(ERROR) == "The prompt has 9000 tokens, 808 more than fit."
    answered(chat, "busy")
    assert (
        chat.evaluate("[...document.querySelectorAll('.error p')].at(-1).textContent")
        == "The server is busy; try again in 7 s."
    )
    press_button(chat, ".error button")
    chat.wait(f"!{BUSY} && {ANSWERS}.at(-1) === 'Hello world, how are you?'", 20)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("breaks", "The connection broke off before the answer was complete."),
        ("fails", "The machine is out of memory."),
    ],
)
def test_what_came_before_an_error_is_kept(chat: Page, question: str, said: str):
    assert answered(chat, question) == "Half an ans"
    assert chat.evaluate(ERROR) == said
    reload(chat)
    assert chat.evaluate(ANSWERS) == ["Half an ans"] and chat.evaluate(ERROR) == said


def test_a_server_that_is_gone(chat: Page):
    chat.evaluate("window.before = fetch, window.fetch = () => before('http://127.0.0.1:1/'), true")
    answered(chat, "hello")
    assert chat.evaluate(ERROR) == "The server can't be reached; is it still running?"
    chat.wait("problems.length > 0", 20)  # the policy has refused that address, and says so a moment later
    chat.evaluate("problems.length = 0, window.fetch = before, true")
    press_button(chat, ".error button")
    chat.wait(f"!{BUSY} && {ANSWERS}.at(-1) === 'Hello world, how are you?'", 20)


def test_settings_are_kept_and_sent(chat: Page, script: Script):
    tools = '[{"type": "function", "function": {"name": "get_weather"}}]'
    numbers = {
        "temperature": "0.25",
        "top_p": "0.5",
        "max_tokens": "64",
        "seed": "7",
        "thinking_budget": "100",
    }
    fill(chat, system="Be brief.", tools=tools, **numbers)
    chat.evaluate("document.querySelector('#thinking').value = 'on'")
    chat.evaluate("document.querySelector('#thinking').dispatchEvent(new Event('input', { bubbles: true }))")
    reload(chat)
    answered(chat, "hello")
    (request,) = script.requests
    assert {name: request[name] for name in numbers} == {
        name: json.loads(text) for name, text in numbers.items()
    }
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert request["tools"] == json.loads(tools) and request["chat_template_kwargs"] == {
        "enable_thinking": True
    }
    fill(chat, temperature="9", tools="[")
    assert "2" in chat.evaluate("document.querySelector('#temperature-error').textContent")
    assert "no list" in chat.evaluate("document.querySelector('#tools-error').textContent")
    answered(chat, "hello")
    assert script.requests[-1]["temperature"] == 0.25  # what can't be sent is not taken over
    press_button(chat, "#settings [type=reset]")
    answered(chat, "hello")
    assert not {*numbers, "tools", "chat_template_kwargs"} & set(script.requests[-1])


def test_thinking_is_not_offered_where_the_model_has_none(chat: Page, script: Script):
    offered = "document.querySelectorAll('.thinking-setting:not([hidden])').length"
    assert chat.evaluate(offered) == 2
    fill(chat, thinking_budget="5")
    script.thinks = False
    reload(chat)
    assert chat.evaluate(offered) == 0
    answered(chat, "hello")
    assert "thinking_budget" not in script.requests[-1]


def test_a_server_with_a_key(chat: Page, script: Script):
    script.key = KEY
    answered(chat, "hello")
    assert "wants an API key" in chat.evaluate(ERROR)
    fill(chat, api_key=KEY)
    press_button(chat, ".error button")
    chat.wait(f"!{BUSY} && {ANSWERS}.at(-1) === 'Hello world, how are you?'", 20)


def test_shift_and_enter_start_a_line(chat: Page):
    chat.evaluate("document.querySelector('#message').focus()")
    chat.type("one")
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": SHIFT}
    chat.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
    chat.call("Input.dispatchKeyEvent", type="keyUp", **key)
    chat.type("two")
    assert (
        chat.evaluate("document.querySelector('#message').value") == "one\ntwo"
        and chat.evaluate(QUESTIONS) == []
    )
