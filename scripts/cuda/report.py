"""What a part has found, a line of JSON for each thing: a process that ends early has said all before it."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import ContextError, EdgeError


class Report:
    """Lines of one part. into: the file that they are added to. seconds: after which a part should stop.
    alive: raises after a failure of the GPU, which spoils all that follows.
    """

    def __init__(self, into: Path, seconds: float) -> None:
        self.alive: Callable[[], None] = lambda: None
        self._into = into
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def check(self, name: str, good: object, /, **facts: Any) -> None:
        """Something that is right or wrong."""
        self._add({"check": name, "good": bool(good), **facts})

    def near(self, name: str, found: npt.NDArray[Any], wanted: npt.NDArray[Any], limit: float) -> None:
        """Whether two arrays differ by `limit` of the largest wanted value at most; not if one is NaN."""
        apart = np.abs(found.astype(np.float64) - wanted).max() / max(float(np.abs(wanted).max()), 1e-30)
        self.check(name, apart <= limit, apart=float(apart), limit=limit)

    def same(self, name: str, found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> None:
        """Whether two arrays have the same bits."""
        differing = int((found != wanted).sum()) if found.shape == wanted.shape else -1
        self.check(name, differing == 0, differing=differing, of=wanted.size)

    def measured(self, name: str, /, **values: Any) -> None:
        """A figure, or several that belong together."""
        self._add({"measured": name, **values})

    def left_out(self, name: str, why: str) -> None:
        """What was not done."""
        self._add({"left_out": name, "why": why})

    def run(self, name: str, work: Callable[[], None], seconds: float = 10.0) -> None:
        """Some checks, if there are so many seconds left. What they fail with is a wrong one, and the part
        goes on where the GPU does; a lack of memory is none.
        """
        started = time.monotonic()
        if self.left < seconds:
            self.left_out(name, f"{self.left:.0f} s are left, and it needs {seconds:.0f} s")
            return
        try:
            work()
        except ContextError as error:
            self.left_out(name, str(error))
        except (EdgeError, ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            traceback.print_exc(file=sys.stderr)
            self.check(name, False, error=f"{type(error).__name__}: {error}"[:2000])
            self.alive()
        self._add({"step": name, "seconds": round(time.monotonic() - started, 3)})

    def _add(self, line: dict[str, Any]) -> None:
        with self._into.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
