"""What the server writes about itself: one JSON object a line, on stderr, and no prompts unless asked to."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

_MOST_FRAMES = 12


class Log:
    """prompts: whether what people say may be written."""

    def __init__(self, prompts: bool = False) -> None:
        self.prompts = prompts

    def write(self, event: str, **facts: Any) -> None:
        """One line. Facts that are None are left out."""
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time, "event": event, **{k: v for k, v in facts.items() if v is not None}}
        with suppress(OSError, ValueError):  # whoever read it is gone
            sys.stderr.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            sys.stderr.flush()

    def surprise(self, number: str, error: BaseException) -> None:
        """An error that is our own mistake. Its text may quote a prompt, so only its place is written."""
        frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
        self.write(
            "error",
            id=number,
            kind=type(error).__name__,
            message=str(error) if self.prompts else None,
            at=[f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
        )

    def take_over(self, name: str) -> None:
        """Write the warnings of a library's logger in the same way."""
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Handler(self)], False
        logger.setLevel(logging.WARNING)


class _Handler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Without a traceback."""
        self._log.write("library", level=record.levelname.lower(), message=record.getMessage())
