"""A browser, the chat page, and a server with scripted answers behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser import Page, browser, page

if TYPE_CHECKING:
    from tests.apps.serve.page.scripted import Script

DESKTOP = (1280, 860)
READY = "document.querySelector('#model')?.value === 'minicpm5-1b'"  # the server has said what it has
# Whatever the page should not do: what its policy refuses, and errors.
WATCH = """
window.problems = [];
addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));
addEventListener("error", (event) => problems.push(event.message));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Page]:
    program = browser()
    if program is None:
        pytest.skip("no Chromium is installed; scripts/install-test-packages installs it")
    with page(program) as found:
        found.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        yield found


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[Script, str]]:
    """What the server does, and the address of the page."""
    from tests.apps.serve.page.scripted import Script, serving

    script = Script()
    with serving(script) as address:
        yield script, address


@pytest.fixture
def script(served: tuple[Script, str]) -> Script:
    """What the server is to do and what it was asked, as at the start."""
    found, _ = served
    for name, value in vars(type(found)()).items():
        setattr(found, name, value)
    return found


@pytest.fixture
def chat(chromium: Page, script: Script, served: tuple[Script, str]) -> Iterator[Page]:
    """The page on a desk, in a browser that has never seen it; at the end it has done nothing it must not."""
    chromium.look(*DESKTOP)
    chromium.call("Storage.clearDataForOrigin", origin=served[1].rstrip("/"), storageTypes="all")
    chromium.evaluate("window.old = true")
    chromium.open(served[1])
    chromium.wait(f"!window.old && {READY}", 20)
    yield chromium
    assert chromium.evaluate("problems") == []
    script.gate.set()
