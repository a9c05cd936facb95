"""A run of training on the terminal."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.apps.cli.errors import FAILED
from edge.apps.cli.terminal import error_console, output_console, print_json
from edge.errors import EdgeError
from edge.system.units import format_count
from edge.train.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Another value for an option, such as schedule.steps=100."
    ),
]
_SIGNALLED = 128
"""Exit code of a program that a signal ended, plus the signal's number."""


def train_as(config: RunConfig, out: Path, as_json: bool, said: str) -> int:
    """Train, or go on, and tell of it; the exit code. said: at the end."""
    check_torch()
    from edge.train.distributed import ToldByFirst
    from edge.train.pretrain import train

    watcher = TerminalWatcher(error_console())
    try:
        outcome = train(config, out, watcher)
    except ToldByFirst:
        return FAILED
    if outcome.first and as_json:
        print_json({"schema": 1, "run": str(out), "step": outcome.step, **watcher.last})
    elif outcome.first and outcome.model is not None:
        output_console().print(said, soft_wrap=True)
    return 0 if outcome.signal is None else _SIGNALLED + outcome.signal


def check_torch() -> None:
    """Raise EdgeError with what to install where PyTorch is missing: chats do without."""
    if find_spec("torch") is None:
        raise EdgeError("Training needs PyTorch, which is not installed: pip install 'minicpm-edge[train]'.")


class TerminalWatcher:
    """A line on the terminal that is written anew, or lines where it is none. last: the log's last line."""

    def __init__(self, console: Console) -> None:
        self._console, self._live = console, console.is_terminal
        self._steps, self._first, self._began = 0, 0, 0.0
        self.last: dict[str, Any] = {}

    def begin(self, first: int, steps: int) -> None:
        """The run goes from step `first` to `steps`."""
        self._first, self._steps, self._began = first, steps, time.monotonic()
        if first:
            self.say(f"Goes on after step {first} of {steps}.")

    def step(self, record: dict[str, Any]) -> None:
        """A line of the log."""
        self.last = record
        text = self._line(record)
        if self._live and record["step"] < self._steps:
            self._console.file.write(f"\r\x1b[2K{text[: self._console.width - 1]}")
            self._console.file.flush()
        else:
            self.say(text)

    def say(self, sentence: str) -> None:
        """Something that happened."""
        if self._live:
            self._console.file.write("\r\x1b[2K")
        self._console.print(sentence, soft_wrap=True, markup=False, highlight=False)

    def _line(self, record: dict[str, Any]) -> str:
        step, loss = record["step"], record["loss"]
        per_step = (time.monotonic() - self._began) / max(step - self._first, 1)
        held_out = [f"{name} {value:.4f}" for name, value in record.items() if name.startswith("held_out/")]
        parts = [
            f"step {step}/{self._steps}",
            "loss -" if loss is None else f"loss {loss:.4f}",
            *held_out,
            f"rate {record['learning_rate']:.2e}",
            f"{format_count(record['tokens_per_second'])} tokens/s",
            f"{record['utilisation']:.0%} of peak",
            f"{_duration(per_step * (self._steps - step))} left",
        ]
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
