"""What a reader of the chat page does and sees, as expressions and functions of its tests."""

from __future__ import annotations

import json

from tests.apps.serve.page.conftest import READY
from tests.browser import Page

BUSY = "document.body.classList.contains('running')"
ANSWERS = "[...document.querySelectorAll('.assistant > .markdown')].map((each) => each.textContent)"
QUESTIONS = "[...document.querySelectorAll('.user .bubble')].map((each) => each.textContent)"
TITLES = "[...document.querySelectorAll('#conversations .open')].map((each) => each.textContent)"
ERROR = "document.querySelector('.error p')?.textContent"
NOTICE = "document.querySelector('#notice').innerText"
FOCUS = "document.activeElement.id"


def ask(chat: Page, text: str) -> None:
    chat.evaluate("document.querySelector('#message').focus()")
    chat.type(text)
    chat.press("Enter")


def answered(chat: Page, text: str) -> str:
    """The last answer, once it is complete."""
    before = chat.evaluate(f"{ANSWERS}.length")
    ask(chat, text)
    chat.wait(f"!{BUSY} && {ANSWERS}.length > {before}", 20)
    return str(chat.evaluate(f"{ANSWERS}.at(-1)"))


def reload(chat: Page) -> None:
    chat.evaluate("window.old = true")
    chat.call("Page.reload")
    chat.wait(f"!window.old && document.readyState === 'complete' && {READY}", 20)


def find(chat: Page, label: str, inside: str = "") -> str:
    """The selector of the last element of that label."""
    selector = f"{inside} [aria-label={json.dumps(label, ensure_ascii=False)}]".strip()
    assert chat.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"), selector
    return selector


def press_button(chat: Page, selector: str) -> None:
    chat.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].at(-1).click()")


def fill(chat: Page, **fields: str) -> None:
    """Types into the settings, as a reader does."""
    press_button(chat, "#open-settings")
    chat.evaluate("document.querySelector('.more').open = true")
    for name, text in fields.items():
        chat.evaluate(
            f"document.querySelector('#{name}').focus(); document.querySelector('#{name}').select?.()"
        )
        chat.type(text)
    chat.press("Escape")
    assert chat.evaluate("document.querySelector('#settings').open") is False
