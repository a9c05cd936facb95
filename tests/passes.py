"""Passes of an executor, watched: those that return logits and those that draw tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edge.executors.protocol import Executor, SequenceStep

Around = Callable[[list[int], Callable[[], Any]], Any]


def watch(monkeypatch: pytest.MonkeyPatch, executor: Executor, around: Around) -> None:
    """Call `around(sizes, run)` in the place of every pass. sizes: the tokens of each step. run: the pass."""

    def watched(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda steps: around([_size(step) for step in steps], lambda: run(steps))

    for name in ("forward", "decode"):
        monkeypatch.setattr(executor, name, watched(getattr(executor, name)))


def _size(step: Any) -> int:
    return len(step.tokens) if isinstance(step, SequenceStep) else 1
