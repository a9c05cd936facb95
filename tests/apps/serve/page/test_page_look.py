"""How the chat page looks: on a phone, in light and dark colours, and to a screen reader."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("starlette", reason="the package starlette is not installed")
pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")

from tests.apps.serve.page.conftest import DESKTOP
from tests.apps.serve.page.reading import FOCUS, answered, press_button, reload
from tests.browser import Page

PHONE = (390, 844)
BOXES = ".code, .table, .bubble, #composer, header"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_a_phone(chat: Page):
    answered(chat, "rich")
    chat.look(*PHONE, phone=True)
    reload(chat)
    assert chat.evaluate("innerWidth") == PHONE[0] and chat.evaluate(WIDER) == 0
    inside = (
        "(({ scrollWidth, clientWidth }) => scrollWidth > clientWidth)(document.querySelector('SELECTOR'))"
    )
    assert chat.evaluate(inside.replace("SELECTOR", ".code pre"))  # long lines scroll where they stand
    assert not chat.evaluate(inside.replace("SELECTOR", "#scroll"))
    boxes = f"[...document.querySelectorAll('{BOXES}')].map((each) => each.getBoundingClientRect().toJSON())"
    for box in chat.evaluate(boxes):
        assert box["left"] >= 0 and box["right"] <= PHONE[0]
    assert not chat.evaluate(
        "document.querySelector('#sidebar').checkVisibility({ visibilityProperty: true })"
    )
    chat.click("#open-sidebar")
    assert chat.evaluate("document.querySelector('#sidebar').classList.contains('open')")
    assert chat.evaluate(FOCUS) == "new-chat" and chat.evaluate("document.querySelector('#main').inert")
    chat.press("Escape")
    assert chat.evaluate(FOCUS) == "open-sidebar" and not chat.evaluate(
        "document.querySelector('#main').inert"
    )
    press_button(chat, "#open-settings")
    assert chat.evaluate(WIDER) == 0
    chat.press("Escape")


def channels(colour: str) -> list[float]:
    return [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [part / 255 for part in channels(colour)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


COLOURS = """[...document.querySelectorAll(SELECTOR)].filter((each) => each.checkVisibility()).map((each) => {
  const behind = (at) => getComputedStyle(at).backgroundColor;
  let at = each;
  while (at.parentElement && behind(at) === "rgba(0, 0, 0, 0)") at = at.parentElement;
  return [getComputedStyle(each).color, behind(at), each.outerHTML.slice(0, 80)];
})"""
TEXTS = (
    "p, h1, h2, h3, li, td, th, a, code, kbd, summary span, .code span, .figures span, .open, .primary, "
    ".plain, .bubble, select, #settings label"
)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_can_be_read(chat: Page, dark: bool):
    """4.5 : 1 for every text, as WCAG AA wants it."""
    answered(chat, "rich")
    answered(chat, "refused")
    chat.look(*DESKTOP, dark=dark)
    press_button(chat, "#open-settings")
    chat.evaluate("Promise.all(document.getAnimations().map((each) => each.finished))")
    found = chat.evaluate(COLOURS.replace("SELECTOR", json.dumps(TEXTS)))
    assert len(found) > 60
    assert [each for each in found if contrast(*each[:2]) < 4.5] == []
    chat.press("Escape")


def test_colours_follow_the_system_until_the_reader_chooses(chat: Page):
    background = "getComputedStyle(document.body).backgroundColor"
    light = chat.evaluate(background)
    chat.look(*DESKTOP, dark=True)
    dark = chat.evaluate(background)
    assert min(channels(light)) > 200 and max(channels(dark)) < 60
    chat.click("#theme")
    assert chat.evaluate(background) == light
    reload(chat)
    assert chat.evaluate(background) == light
    chat.click("#theme")
    chat.look(*DESKTOP, dark=False)
    assert chat.evaluate(background) == dark


def test_every_control_has_a_name(chat: Page):
    answered(chat, "weather")
    nameless = """[...document.querySelectorAll("button, input, textarea, select")]
      .filter((each) => !(each.textContent.trim() || each.getAttribute("aria-label") || each.labels?.length))
      .map((each) => each.outerHTML)"""
    assert chat.evaluate(nameless) == []
    ids = "[...document.querySelectorAll('[id]')].map((each) => each.id)"
    assert chat.evaluate(f"{ids}.length - new Set({ids}).size") == 0
