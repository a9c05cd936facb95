"""The chat page of a real server, with a real model."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette", reason="the package starlette is not installed")

from tests.apps.serve.conftest import ServerProcess
from tests.apps.serve.page.conftest import DESKTOP
from tests.apps.serve.page.reading import ANSWERS, ask
from tests.browser import Page

IS_DONE = "document.querySelector('.assistant')?.getAttribute('aria-busy') !== 'true'"


def show(chromium: Page, server: ServerProcess) -> None:
    chromium.look(*DESKTOP)
    chromium.evaluate("window.old = true")
    chromium.open(f"{server.address}/")
    chromium.wait("!window.old && document.querySelector('#model')?.value === 'smollm2-135m'", 30)


def test_a_model_answers_in_the_page(chromium: Page, server: ServerProcess):
    show(chromium, server)
    ask(chromium, "How are you?")
    chromium.wait(f"{ANSWERS}.length === 1 && {IS_DONE} && {ANSWERS}[0].length > 0", 60)
    assert "tokens/s" in chromium.wait("document.querySelector('.figures')?.textContent", 20)
    assert chromium.evaluate("problems") == []


def test_stop_in_the_page_ends_the_answer_of_the_server(chromium: Page, server: ServerProcess):
    show(chromium, server)
    ask(chromium, "Write a very long story about a ship.")
    chromium.wait(f"{ANSWERS}.at(-1)?.length > 20", 60)
    chromium.click("#stop")
    server.wait_for("request", path="/v1/chat/completions", client_left=True)
    server.until(running=0)
    assert chromium.evaluate("problems") == []
