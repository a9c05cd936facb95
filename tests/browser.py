"""Headless Chromium, driven by its own protocol through a pipe: real clicks, keys, sizes and colours."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
KEYS = {"Enter": 13, "Escape": 27, "k": 75}
CONTROL = 2


class Page:
    """One page of a browser. Every call raises AssertionError when the browser is silent for too long."""

    def __init__(self, requests: int, answers: int) -> None:
        """requests, answers: file descriptors of pipes to and from the browser."""
        self._requests, self._answers = requests, answers
        self._buffer, self._id, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol: its result."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == self._id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                found: dict[str, Any] = answer["result"]
                return found

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def look(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """The size of the window in CSS pixels, and the colours that its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=phone, **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[colours])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of its promise."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, timeout: float = 60) -> Any:
        """The first true value of the expression, which is asked every 20 ms."""
        end = monotonic() + timeout
        body = f"async () => {{ let found; for (let i = 0; i < 50 && !(found = {expression}); i++) "
        body += "await new Promise((resolve) => setTimeout(resolve, 20)); return found; }"
        while not (found := self.evaluate(f"({body})()")):
            assert monotonic() < end, f"never true: {expression}; {self.evaluate('document.body.innerText')}"
        return found

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.evaluate(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box})")
        for event in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, modifiers: int = 0) -> None:
        """One key of KEYS."""
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        for event in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=event, **facts)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def _next(self, timeout: float) -> dict[str, Any]:
        end = monotonic() + timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(end - monotonic(), 0))
            data = os.read(self._answers, 1 << 16) if ready else b""
            assert data, "the browser does not answer"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


def browser() -> str | None:
    """The program, if one is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def page(program: str) -> Iterator[Page]:
    """A page in a browser of its own, which ends with the block."""
    (its_requests, requests), (answers, its_answers) = os.pipe(), os.pipe()
    profile = tempfile.mkdtemp(prefix="edge-browser-")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    # The browser wants its pipes as descriptors 3 and 4.
    moved = f'exec "$0" "$@" 3<&{its_requests} 4>&{its_answers}'
    process = subprocess.Popen(
        ["bash", "-c", moved, program, *options, f"--user-data-dir={profile}"],
        pass_fds=(its_requests, its_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(its_requests)
    os.close(its_answers)
    try:
        yield Page(requests, answers)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # Debian's browser is a script, which outlives its signal
        process.wait(20)
        os.close(requests)
        os.close(answers)
        shutil.rmtree(profile, ignore_errors=True)
