"""A function that a test holds up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Held:
    """A function that waits when it is called, until it is let go."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()
        self._function = function

    def __call__(self, *given: Any) -> Any:
        self.entered.set()
        assert self.let_go.wait(60)
        return self._function(*given)
